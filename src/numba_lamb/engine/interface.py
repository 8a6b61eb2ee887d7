"""Backend: what an optimizer asks of the place where its arrays live."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.records import Record
from numba_lamb.groups import Parameter
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.gradients import Reader
from numba_lamb.rates import Rate


class Groups(Protocol):
    """Parameter groups, whose learning rate is under ``"lr"`` and weight decay under ``"weight_decay"``."""

    @property
    def dicts(self) -> Sequence[Mapping[str, Any]]:
        """One for each group; how many there are is all that is read."""

    def rate(self, index: int, key: str) -> Rate:
        """Return the rate that a group has under `key` now; the same object as long as it is the same rate."""

    def values(self, key: str, step: int) -> list[float]:
        """Return each group's value under `key` at the 0-based `step`."""


class Gradients(Protocol):
    """Where a step's gradients lie, kept up in the buckets' addresses."""

    @property
    def found(self) -> NDArray[np.int64]:
        """Where each layer's gradient was at the last update, 0 for None: an array that stays as it is."""

    def ordered(self, gradients: Any) -> Sequence[Any]:
        """Return `gradients` by layer, to be held while they are used; this may run code of the user's own."""

    def update(self, gradients: Any) -> None:
        """Write the addresses of the parameters and of what `ordered` returned; raise if one does not fit."""

    def producers(self, gradients: Sequence[Any]) -> set[int]:
        """Return the streams on which gradients that were read last say that they are ready."""


class Subject(Protocol):
    """All that a backend reads of the optimizer whose steps it takes.

    What enters arithmetic is in the buckets' tables `hyper` and `hyper64`.
    """

    @property
    def layout(self) -> FlatLayout:
        """Where each layer lies."""

    @property
    def _buckets(self) -> Sequence[Bucket]:
        """The layers by dtype, each made by the backend's `new_part`."""

    @property
    def _placement(self) -> Sequence[tuple[Bucket, int]]:
        """Each layer's bucket and its row there, in the layout's order."""

    @property
    def _parameters(self) -> Sequence[Parameter]:
        """The parameters, in the layout's order."""

    @property
    def _arrays(self) -> Sequence[Any]:
        """The parameters' arrays, in the layout's order."""

    @property
    def _groups(self) -> Groups:
        """The parameter groups, by the number that layers have."""

    @property
    def _gradients(self) -> Gradients:
        """Where the gradients lie."""

    @property
    def _nonfinite(self) -> str:
        """What is done about a gradient that is not finite; ``"raise"`` makes a step wait for the device."""

    @property
    def _loss_scale(self) -> float:
        """What gradients were multiplied by."""

    @property
    def _has_two_moments(self) -> bool:
        """Whether steps are LAMB's; else they are those of Lars and Momentum."""

    @property
    def _statistics(self) -> Sequence[tuple[str, int, bool]]:
        """What `stats` tells: a name, its column of norms, and whether only layers that adapt have it."""


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
        state_names: Sequence[str],
    ) -> Bucket:
        """Return tables and zeroed state for the layers of `dtype`."""

    def check_copyable(self) -> None:  # noqa: B027  (NumPy arrays can be copied)
        """Raise if an optimizer of such arrays cannot be copied or pickled."""

    @abstractmethod
    def values_of(self, parameter: Parameter) -> NDArray[Any]:
        """Return a parameter's values on the host, to be read before the next step."""

    @abstractmethod
    def writer(self, parameter: Parameter, values: NDArray[Any]) -> Callable[[], Any]:
        """Return what writes values of the right form into a parameter, and cannot fail."""

    @abstractmethod
    def placed(self, optimizer: Subject) -> None:
        """Get ready for the optimizer's buckets, groups and columns, which are new."""

    @abstractmethod
    def step(self, optimizer: Subject, gradients: Any, stream: object) -> bool:
        """Take a step and return whether it was applied, or queued where only the device can tell."""

    @abstractmethod
    def counters(self) -> tuple[int, int]:
        """Return how many steps were applied and how many skipped."""

    @abstractmethod
    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""

    @abstractmethod
    def stats(self, optimizer: Subject) -> Mapping[str, float]:
        """Return the optimizer's statistics by name."""

    @abstractmethod
    def record(self, optimizer: Subject) -> Record:
        """Return a copy of what the last step left, without waiting for it."""

    def refusals(self) -> tuple[int, Sequence[str]]:
        """Return how many steps the device refused, and why."""
        return 0, ()


Written = tuple[NDArray[np.float64], NDArray[Any], NDArray[Any]]
"""For each layer of a bucket its norms, whether it was updated, and whether it adapts."""


def named_stats(
    statistics: Sequence[tuple[str, int, bool]],
    placement: Sequence[tuple[Bucket, int]],
    written: Mapping[int, Written],
    grad_norm: float | None,
) -> dict[str, float]:
    """Return statistics by name; `placement` has the layers in order, `written` is by the ``id`` of a bucket."""
    found = {}
    for quantity, column, adapted_only in statistics:
        for bucket, row in placement:
            norms, updated, adapts = written[id(bucket)]
            if updated[row] and (adapts[row] or not adapted_only):
                found[f"{quantity}/{bucket.layers[row].name}"] = float(norms[row, column])
    return found if grad_norm is None else {**found, "grad_norm": grad_norm}
