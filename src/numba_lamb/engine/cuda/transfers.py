"""Small tables on their way between host and device, in stream order and without waiting.

Copies start and end in page-locked memory, of which there are pieces in turn: one is written or read while the
copies of others are still to come.
"""

import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.memory.cuda_memory import Buffer, page_locked
from numba_lamb.memory.device import LEGACY_STREAM, Device, Event

FEWEST_PIECES = 8
MOST_BYTES = 1 << 24
"""What the pieces of one table may take up before a copy waits for the oldest of them."""
_ALIGNMENT = 256


class Block:
    """Several tables in one piece of memory, each as an array over it and by the byte it begins at."""

    def __init__(self, forms: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        self.offsets: dict[str, int] = {}
        sizes: dict[str, int] = {}
        end = 0
        for name, (shape, dtype) in forms.items():
            self.offsets[name] = end
            sizes[name] = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            end += -(-sizes[name] // _ALIGNMENT) * _ALIGNMENT
        self.memory: NDArray[np.uint8] = np.zeros(end, dtype=np.uint8)
        self.tables: dict[str, NDArray[Any]] = {
            name: self.memory[self.offsets[name] :][: sizes[name]].view(dtype).reshape(shape)
            for name, (shape, dtype) in forms.items()
        }

    def fill(self, tables: Mapping[str, NDArray[Any]]) -> None:
        """Copy `tables` in."""
        for name, table in tables.items():
            self.tables[name][...] = table


def block_of(tables: Mapping[str, NDArray[Any]]) -> Block:
    """Return a block that holds copies of `tables`."""
    block = Block({name: (table.shape, table.dtype) for name, table in tables.items()})
    block.fill(tables)
    return block


class Piece:
    """Page-locked host memory shaped as a table, and the mark behind the last copy from or to it."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.host = page_locked(device, shape, dtype)
        self.event = Event(device)


class Pieces:
    """Pieces of one form, each used again once its copy is over.

    Parameters
    ----------
    device : Device
        What is copied to or from.
    shape : tuple of int
        Of each piece.
    dtype : numpy.dtype
        Of each piece.
    ready : int
        Pieces that are made at once, because generation them can wait for the device.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any], ready: int = 4) -> None:
        self._device = device
        self._shape = shape
        self._dtype = dtype
        self._used: deque[Piece] = deque()
        self._ready = [self.new() for _ in range(ready)]

    def new(self) -> Piece:
        """Return a piece that was never used."""
        return Piece(self._device, self._shape, self._dtype)

    def take(self) -> Piece:
        """Return a piece whose copy is over; wait for one only if there are many under way."""
        oldest = self._used[0] if self._used else None
        if oldest is None or not oldest.event.is_reached():
            if self._ready:
                return self._ready.pop()
            if oldest is None or len(self._used) < max(
                FEWEST_PIECES, MOST_BYTES // max(oldest.host.nbytes, 1)
            ):
                return self.new()
            oldest.event.wait()
        return self._used.popleft()

    def give(self, piece: Piece) -> None:
        """Take back a piece whose copy was queued, and the mark behind it."""
        self._used.append(piece)


class Mirror:
    """A small host table and its copy on the device, which follows it in stream order without waiting.

    Parameters
    ----------
    device : Device
        Where the copy lives.
    values : array
        The table; what changes in it is sent by `send`.
    """

    def __init__(self, device: Device, values: NDArray[Any]) -> None:
        self.values = values
        self.buffer = Buffer(device, values.nbytes)
        self._sent = b""
        self._device = device
        self._pieces = Pieces(device, values.shape, values.dtype)
        # Each replay of a graph reads the piece that its capture copied from.
        self._captured: list[Piece] = []
        self.send(LEGACY_STREAM)
        device.synchronize(LEGACY_STREAM)

    @property
    def address(self) -> int:
        """Where the device's copy lies."""
        return self.buffer.address

    def send(self, stream: int) -> None:
        """Queue a copy of the table on `stream` if it differs from what was sent last."""
        content = self.values.tobytes()
        if content != self._sent:
            # An interrupt may come before it is known whether this was sent.
            self.forget()
            piece = self._pieces.take()
            piece.host[...] = self.values
            self._device.send(self.address, piece.host, stream)
            piece.event.record(stream)
            self._pieces.give(piece)
            self._sent = content

    def capture(self, stream: int) -> None:
        """Have a graph copy the table as it is now, whatever other steps send in between."""
        piece = self._pieces.new()
        piece.host[...] = self.values
        self._device.send(self.address, piece.host, stream)
        self._captured.append(piece)

    def forget(self) -> None:
        """Have the next `send` copy whatever the table holds: after a graph's replay, which may send another."""
        self._sent = b""


class Snapshots:
    """Copies of one small table as it is on the device at points of a stream.

    Parameters
    ----------
    device : Device
        Where the table is.
    address : int
        Where it begins.
    like : array
        Its form.
    """

    def __init__(self, device: Device, address: int, like: NDArray[Any]) -> None:
        self.device = device
        self.address = address
        self.pieces = Pieces(device, like.shape, like.dtype, ready=1)

    def take(self, stream: int) -> "Snapshot":
        """Queue a copy on the stream that writes the table."""
        return Snapshot(self, stream)


class Snapshot:
    """A table as it was at one point of a stream; only reading it waits."""

    def __init__(self, source: Snapshots, stream: int) -> None:
        self._device = source.device
        self._piece = source.pieces.take()
        # Page-locking memory takes far longer than copying into it, so pieces are used again.
        weakref.finalize(self, source.pieces.give, self._piece)
        source.device.fetch(self._piece.host, source.address, stream)
        self._piece.event.record(stream)

    def is_ready(self) -> bool:
        """Return whether reading would not wait."""
        with self._device.current():
            return self._piece.event.is_reached()

    def read(self) -> NDArray[Any]:
        """Return the values, after waiting for the copy."""
        with self._device.current():
            self._piece.event.wait()
        return self._piece.host.copy()
