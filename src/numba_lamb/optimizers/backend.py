"""Backend: what an optimizer asks of the place where its arrays live."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from numba_lamb.gradients import GradientReader
from numba_lamb.groups import Parameter
from numba_lamb.layout import FlatLayout
from numba_lamb.optimizers.parts import Part

if TYPE_CHECKING:
    from numba_lamb.optimizers.base import Optimizer


class Backend(ABC):
    """The phases of a step on one kind of memory."""

    nonfinite: Literal["raise", "skip"]
    """What is done about a gradient that is not finite unless the user says otherwise."""
    reader: GradientReader
    """Tells where gradients lie."""

    @abstractmethod
    def new_part(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        decayed: Sequence[bool],
        state_names: Sequence[str],
    ) -> Part:
        """Return tables and zeroed state for the layers of `dtype`."""

    def check_copyable(self) -> None:  # noqa: B027  (NumPy arrays can be copied)
        """Raise if an optimizer of such arrays cannot be copied or pickled."""

    @abstractmethod
    def placed(self, optimizer: "Optimizer") -> None:
        """Get ready for the optimizer's parts, groups and ratios, which are new."""

    @abstractmethod
    def step(self, optimizer: "Optimizer", gradients: Any, stream: object) -> bool:
        """Take a step and return whether it was applied, or queued where only the device can tell."""

    @abstractmethod
    def counters(self) -> tuple[int, int]:
        """Return how many steps were applied and how many skipped."""

    @abstractmethod
    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""

    @abstractmethod
    def stats(self, optimizer: "Optimizer") -> Mapping[str, float]:
        """Return the optimizer's statistics by name."""

    def refusals(self) -> tuple[int, Sequence[str]]:
        """Return how many steps the device refused, and why."""
        return 0, ()


Written = tuple[NDArray[np.float64], NDArray[Any], NDArray[Any]]
"""For each layer of a part its norms, whether it was updated, and whether it adapts."""


def named_stats(
    quantities: Sequence[tuple[str, int, bool]],
    slots: Sequence[tuple[Part, int]],
    written: Mapping[int, Written],
    grad_norm: float | None,
) -> dict[str, float]:
    """Return statistics by name; `slots` are the layers in order, and `written` is by the ``id`` of a part."""
    found = {}
    for quantity, column, adapted_only in quantities:
        for part, row in slots:
            norms, updated, adapts = written[id(part)]
            if updated[row] and (adapts[row] or not adapted_only):
                found[f"{quantity}/{part.layers[row].name}"] = float(norms[row, column])
    return found if grad_norm is None else {**found, "grad_norm": grad_norm}
