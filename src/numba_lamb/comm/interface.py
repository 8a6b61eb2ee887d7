"""Comm: the two collectives that a step needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]
Wait = Callable[[], None]
"""Returns when a collective is done; raises `CommError` if it is not in time, or cannot be done."""


class CommError(RuntimeError):
    """A rank is gone, does not answer in time, or is not where the others are."""


class Disagreement(CommError):
    """All ranks found that they are not at one step; all raise it, and nothing has changed."""


class Comm(Protocol):
    """Ranks and their collectives, which all ranks begin in the same order.

    Arrays are contiguous and in the CPU's memory. They are neither read nor written by anybody else until the
    collective is waited for.
    """

    @property
    def rank(self) -> int:
        """Which one this process is, from 0 on."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def sharing(self) -> int:
        """How many of them may run on the CPUs of this one, itself among them."""

    def all_gather(self, out: Array, values: Array) -> Wait:
        """Begin to write every rank's `values`, which are bytes, into `out`, one rank after the other."""

    def all_to_all(self, out: Array, values: Array) -> Wait:
        """Begin to write into `out` this rank's part of every rank's `values`, one rank after the other."""


@dataclass(frozen=True)
class Span:
    """A run of bytes in a GPU's memory, whose owner keeps it alive."""

    address: int
    nbytes: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "version": 3}


class DeviceComm(Protocol):
    """Collectives on a GPU's memory, in the order of a stream.

    What was queued on the stream comes first, and what is queued on it after the collective was waited for comes
    behind. A host that need not wait does not.
    """

    def all_gather(self, out: Span, values: Span, stream: int) -> Wait:
        """Begin to write every rank's `values` into `out`, one rank after the other."""

    def all_to_all(self, out: Span, values: Span, stream: int) -> Wait:
        """Begin to write into `out` this rank's part of every rank's `values`, one rank after the other."""
