"""Records: what one step left in the tables, copied so that later steps can write over it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.bucket import Bucket
from numba_lamb.kernels import columns


class RecordLayout:
    """The layers that an optimizer has tables for, and where in all buckets' tables together each one's row is."""

    def __init__(
        self,
        buckets: Sequence[Bucket],
        placement: Sequence[tuple[Bucket, int]],
        statistics: Sequence[tuple[str, int, bool]],
    ) -> None:
        self.tells_adapted = any(adapted_only for _, _, adapted_only in statistics)
        """Whether there are statistics that only layers have which adapt."""
        first = dict(
            zip(
                map(id, buckets),
                np.cumsum([0, *(len(bucket.layers) for bucket in buckets)]).tolist(),
                strict=False,
            )
        )
        self.names = [bucket.layers[row].name for bucket, row in placement]
        self._rows = np.array([first[id(bucket)] + row for bucket, row in placement], dtype=np.intp)

    def ordered(self, tables: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the rows of the buckets' tables in the order of `names`."""
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

    Attributes
    ----------
    placement : RecordLayout or None
        Whose tables they are; None where there are none yet.
    started : list of int
        The numbers of steps applied and skipped that counting began with: the same object until they are set.
    limit : float
        What gradients were clipped to, the least of all groups; infinite for no limit.
    step : int
        The number that the record is shown under.
    """

    __slots__ = ("limit", "placement", "started", "step")

    placement: RecordLayout | None
    started: list[int]
    limit: float
    step: int

    @property
    def is_pending(self) -> bool:
        """Whether the values are still to come from a device."""
        return False

    @abstractmethod
    def read(self) -> Reading:
        """Return the values, which may have to be waited for."""

    def is_ready(self) -> bool:
        """Return whether `read` would not wait."""
        return True


class EmptyRecord(Record):
    """What an optimizer leaves that has not taken a step, and has no tables."""

    __slots__ = ()

    def __init__(self) -> None:
        self.placement, self.started, self.limit = None, [0, 0], math.inf

    def read(self) -> Reading:
        """Return no rows."""
        nothing = np.zeros(0, dtype=np.bool_)
        return Reading(0, 0, None, np.zeros((0, columns.NORMS)), nothing, nothing)


def least_limit(buckets: Sequence[Bucket]) -> float:
    """Return the least norm that any layer's gradients are clipped to, infinite if none are."""
    return min(bucket.least_limit for bucket in buckets)
