"""Records: what one step left in the tables, copied so that later steps can write over it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_lamb.kernels import rows
from numba_lamb.optimizers.cpu_part import CpuPart
from numba_lamb.optimizers.cpu_step import Counters
from numba_lamb.optimizers.parts import Part


class Placement:
    """The layers that an optimizer has tables for, and where in all parts' tables together each one's row is."""

    def __init__(self, parts: Sequence[Part], slots: Sequence[tuple[Part, int]]) -> None:
        first = dict(
            zip(map(id, parts), np.cumsum([0, *(len(part.layers) for part in parts)]).tolist(), strict=False)
        )
        self.dtypes = [part.dtype for part in parts]
        self.names = [part.layers[row].name for part, row in slots]
        self._rows = np.array([first[id(part)] + row for part, row in slots], dtype=np.intp)

    def ordered(self, tables: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the rows of the parts' tables in the order of `names`."""
        joined: NDArray[Any] = np.concatenate(tables)[self._rows]
        return joined


class Reading(NamedTuple):
    """A record's values; tables have a row for each of the placement's layers."""

    applied: int
    skipped: int
    grad_norm: float | None
    norms: NDArray[np.float64]
    given: NDArray[np.bool_]
    """Which layers had a gradient."""
    adapts: NDArray[np.bool_]


class Record(ABC):
    """One step's tables.

    Parameters
    ----------
    placement : Placement or None
        Whose tables they are; None where there are none yet.
    started : list of int
        The numbers of steps applied and skipped that counting began with; the same object as long as nobody
        sets them.
    limit : float
        What gradients were clipped to, the least of all groups; infinite for no limit.
    """

    is_pending = False
    """Whether the values are still to come from a device."""

    def __init__(self, placement: Placement | None, started: list[int], limit: float) -> None:
        self.placement = placement
        self.started = started
        self.limit = limit
        self.step = 0
        """The number that it is shown under."""

    @abstractmethod
    def read(self) -> Reading:
        """Return the values, which may have to be waited for."""

    def is_ready(self) -> bool:
        """Return whether `read` would not wait."""
        return True


class EmptyRecord(Record):
    """What an optimizer leaves that has not taken a step, and has no tables."""

    def __init__(self) -> None:
        super().__init__(None, [0, 0], math.inf)

    def read(self) -> Reading:
        """Return no rows."""
        nothing = np.zeros(0, dtype=np.bool_)
        return Reading(0, 0, None, np.zeros((0, rows.NORMS)), nothing, nothing)


class CpuRecord(Record):
    """Copies of tables in the CPU's memory."""

    def __init__(self, placement: Placement, parts: Sequence[CpuPart], counters: Counters) -> None:
        super().__init__(placement, counters.started, min([part.least_limit for part in parts]))
        self._counts = counters.state()
        # Bytes, which are copied in half the time of an array.
        self._tables = [
            (
                part.norms.tobytes(),
                part.addresses[:, rows.GRADIENT].tobytes(),
                part.scalars[:, rows.ADAPT].tobytes(),
            )
            for part in parts
        ]

    def read(self) -> Reading:
        """Return the values."""
        assert self.placement is not None
        norms, given, adapts = [], [], []
        for dtype, (of_norms, of_addresses, of_scalars) in zip(
            self.placement.dtypes, self._tables, strict=True
        ):
            norms.append(np.frombuffer(of_norms).reshape(-1, rows.NORMS))
            given.append(np.frombuffer(of_addresses, dtype=np.int64) != 0)
            adapts.append(np.frombuffer(of_scalars, dtype=dtype) != 0)
        return Reading(*self._counts, *map(self.placement.ordered, (norms, given, adapts)))
