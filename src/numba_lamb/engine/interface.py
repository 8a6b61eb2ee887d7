"""What a front end tells a backend, and what it asks of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.precision import Precision
from numba_lamb.engine.records import Record
from numba_lamb.engine.scale import Following, HostScale, Scale
from numba_lamb.groups import Parameter
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.gradients import Held, Reader
from numba_lamb.methods.options import Method, Statistic
from numba_lamb.rates import Rate
from numba_lamb.sharding import Division

_Result = TypeVar("_Result")


class Groups(Protocol):
    """Parameter groups, whose learning rate is under ``"lr"`` and weight decay under ``"weight_decay"``."""

    @property
    def dicts(self) -> Sequence[Mapping[str, Any]]:
        """One for each group; how many there are is all that is read."""

    def rate(self, index: int, key: str) -> Rate:
        """Return the rate that a group has under `key` now; the same object as long as it is the same rate."""

    def values(self, key: str, step: int) -> list[float]:
        """Return each group's value under `key` at the 0-based `step`."""


@dataclass(eq=False)
class Plan:
    """Everything that a backend reads of the optimizer whose steps it takes; what enters arithmetic is in columns.

    Attributes
    ----------
    method : Method
        Whose steps they are.
    layout : FlatLayout
        Where each layer lies.
    buckets : sequence of Bucket
        The layers by dtype, each made by the backend's `new_bucket`.
    placement : sequence of (Bucket, int)
        Each layer's bucket and its row there, in the layout's order.
    groups : Groups
        The parameter groups, by the number that layers have.
    counts : sequence or None
        For each bucket where others have its layers' steps counted, as its `use_steps` takes it.
    nonfinite : {"raise", "skip", "propagate"}
        What is done about a gradient that is not finite; on a GPU ``"raise"`` waits for the device.
    loss_scale : float
        What gradients were multiplied by.
    grad_scale, found_inf : Any
        What a loss scaler says of the next step: on the CPU numbers, on a GPU the addresses of float32 values,
        0 for none.
    scaler : int
        On a GPU the address of how what is at `grad_scale` follows the steps (`numba_lamb.kernels.cuda.fields`).
    """

    method: Method
    layout: FlatLayout
    buckets: Sequence[Bucket]
    placement: Sequence[tuple[Bucket, int]]
    groups: Groups
    counts: Sequence[Any] | None = None
    nonfinite: str = "raise"
    loss_scale: float = 1.0
    grad_scale: Any = 0
    scaler: int = 0
    found_inf: Any = 0


class Backend(ABC):
    """The phases of a step on one kind of memory."""

    nonfinite: Literal["raise", "skip"]
    """What is done about a gradient that is not finite unless the user says otherwise."""
    waits: ClassVar[bool]
    """Whether `counters` waits for a device."""

    @abstractmethod
    def new_reader(self, layers: Sequence[Layer], arrays: Sequence[Any]) -> Reader:
        """Return what says where these parameters and their gradients lie."""

    @abstractmethod
    def new_bucket(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        precisions: Sequence[Precision],
        state_names: Sequence[str],
    ) -> Bucket:
        """Return tables and zeroed state for the layers of `dtype`."""

    def _part_of(self, layout: FlatLayout, dtype: np.dtype[Any]) -> tuple[Division | None, int]:
        """Return how ranks have the layers of `dtype`, None for one rank, and which rank this is."""
        return None, 0

    def new_scale(self, following: Following, value: float) -> Scale:
        """Return a loss scale that is to follow this backend's steps."""
        return HostScale(following, value)

    def check_copyable(self) -> None:  # noqa: B027  (NumPy arrays can be copied)
        """Raise if an optimizer of such arrays cannot be copied or pickled."""

    @abstractmethod
    def values_of(self, parameter: Parameter) -> NDArray[Any]:
        """Return a parameter's values on the host, to be read before the next step."""

    @abstractmethod
    def writer(self, parameter: Parameter, values: NDArray[Any]) -> Callable[[], Any]:
        """Return what writes values of the right form into a parameter, and cannot fail."""

    @abstractmethod
    def place(self, plan: Plan) -> None:
        """Get ready for a plan that is new, or whose buckets, groups or method are."""

    def columns_changed(self) -> None:  # noqa: B027  (a GPU is sent what changed)
        """Forget what was derived from columns that were rewritten."""

    @abstractmethod
    def prepare(self, read: Callable[[], Held], stream: object = None) -> bool:
        """Write all that the next step depends on, and return whether it can be taken.

        Rates are evaluated, then gradients are `read`, which may run the user's code; nothing after that does.
        """

    @abstractmethod
    def commit(self, between: Sequence[Callable[[], Any]] = ()) -> None:
        """Take the step that was prepared; what is `between` belongs to the update and runs no Python."""

    def whole_state(self, bucket: Bucket) -> dict[str, NDArray[Any]]:
        """Return what a step left behind of all layers, as `Bucket.full` knows it; not copied."""
        return bucket.saved()

    def whole_blank(self, bucket: Bucket) -> dict[str, NDArray[Any]]:
        """Return arrays of the form of `whole_state`, to be filled and taken."""
        return bucket.blank()

    def on_one(self, work: Callable[[], object]) -> None:
        """Do `work` on one of all ranks; raise on every rank if it fails."""
        work()

    def on_all(self, work: Callable[[], _Result]) -> _Result:
        """Do `work` on every rank, and raise on every rank if it fails on any."""
        return work()

    def tell(self, error: BaseException) -> None:  # noqa: B027  (most are alone)
        """Tell other ranks of an error that keeps this one from a step."""

    def check_whole(self) -> None:  # noqa: B027  (most are alone)
        """Raise if a step was not finished, and state is worth nothing."""

    def take_state(self, bucket: Bucket, values: Mapping[str, NDArray[Any]]) -> None:
        """Put back what `whole_state` returned."""
        bucket.restore(values)

    @abstractmethod
    def counters(self) -> tuple[int, int]:
        """Return how many steps were applied and how many skipped."""

    @abstractmethod
    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""

    @abstractmethod
    def stats(self) -> Mapping[str, float]:
        """Return statistics by name."""

    @abstractmethod
    def record(self) -> Record:
        """Return a copy of what the last step left, without waiting for it."""

    def refusals(self) -> tuple[int, Sequence[str]]:
        """Return how many steps the device refused, and why."""
        return 0, ()


Written = tuple[NDArray[np.float64], NDArray[Any], NDArray[Any]]
"""For each layer of a bucket its norms, whether it was updated, and whether it adapted then."""


def named_stats(
    statistics: Sequence[Statistic],
    placement: Sequence[tuple[Bucket, int]],
    written: Mapping[int, Written],
    grad_norm: float | None,
) -> dict[str, float]:
    """Return statistics by name; `placement` has the layers in order, `written` is by the ``id`` of a bucket."""
    found = {}
    for statistic, column, adapted_only in statistics:
        for bucket, row in placement:
            norms, updated, adapts = written[id(bucket)]
            if updated[row] and (adapts[row] or not adapted_only):
                found[f"{statistic}/{bucket.layers[row].name}"] = float(norms[row, column])
    return found if grad_norm is None else {**found, "grad_norm": grad_norm}
