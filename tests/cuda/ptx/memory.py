"""The memory that a kernel sees: registered arrays as global memory, bytes per block or per lane for the rest."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from tests.cuda.ptx.errors import LaneError

# Generic addresses of shared and local memory; global memory lies below both.
SHARED_WINDOW = 1 << 60
LOCAL_WINDOW = 2 << 60
WINDOWS = {0: "global", 1: "shared", 2: "local"}
FIRST_ADDRESS = 0x7F0000000000
# Far more than a wrong index is likely to be off by, so that it does not fall into another buffer.
GAP = 1 << 24
UNINITIALISED = 0xFF


class Buffer(NamedTuple):
    """A registered array and the device address of its first byte."""

    address: int
    array: np.ndarray
    bytes: np.ndarray


class Piece(NamedTuple):
    """Where some of the lanes of an access go: `cells` of `view` for the lanes at `positions`."""

    positions: Any
    view: np.ndarray
    cells: np.ndarray


class Memory:
    """Global memory: NumPy arrays at device addresses of their own, far apart.

    Kernels read and write the arrays themselves. An access must lie inside one of them.
    """

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.next_address = FIRST_ADDRESS
        self.views: dict[tuple[int, Any], np.ndarray] = {}

    def add(self, array: np.ndarray, *, misaligned_by: int = 0, address: int | None = None) -> int:
        """Register a C-contiguous array and return its address, a multiple of 256 plus `misaligned_by`."""
        if not array.flags.c_contiguous:
            raise ValueError("a buffer must be C-contiguous")
        if address is None:
            address = self.next_address + misaligned_by
            self.next_address += -(-(array.nbytes + misaligned_by + GAP) // 256) * 256
        if any(
            b.address < address + array.nbytes and address < b.address + b.bytes.size for b in self.buffers
        ):
            raise ValueError(f"a buffer at {address:#x} would overlap another")
        position = bisect_right([b.address for b in self.buffers], address)
        self.buffers.insert(position, Buffer(address, array, array.reshape(-1).view(np.uint8)))
        self.views.clear()
        self.starts = [buffer.address for buffer in self.buffers]
        return address

    def address_of(self, array: np.ndarray) -> int:
        """Return the device address of `array`, which may be part of a registered array."""
        start = array.__array_interface__["data"][0]
        for buffer in self.buffers:
            begin = buffer.array.__array_interface__["data"][0]
            if begin <= start and start + array.nbytes <= begin + buffer.bytes.size:
                return buffer.address + start - begin
        raise ValueError("the array lies in no registered buffer")

    def pieces(self, addresses: np.ndarray, size: int, dtype: Any, writes: bool) -> Iterator[Piece]:
        """Find the cells of accesses of `size` bytes, made of elements of `dtype`."""
        which = self.buffer_numbers(addresses)
        if isinstance(which, int):
            yield self.piece(which, slice(None), addresses, size, dtype, writes)
            return
        order = np.argsort(which, kind="stable")
        bounds = np.flatnonzero(np.diff(which[order], prepend=-2, append=-2))
        for begin, end in pairwise(bounds):
            positions = order[begin:end]
            yield self.piece(int(which[order[begin]]), positions, addresses[positions], size, dtype, writes)

    def buffer_numbers(self, addresses: np.ndarray) -> Any:
        """Return the number of the last buffer that begins at or before each address; an int if all agree."""
        if not self.buffers:
            raise LaneError(0, f"address {int(addresses[0]):#x} lies outside every buffer: there is none")
        low, high = int(addresses.min()), int(addresses.max())
        first, last = bisect_right(self.starts, low) - 1, bisect_right(self.starts, high) - 1
        if first == last and first >= 0:
            return first
        which = np.searchsorted(np.array(self.starts, np.uint64), addresses, "right") - 1
        if first < 0:
            position = int(np.argmin(which))
            raise LaneError(position, f"address {int(addresses[position]):#x} lies outside every buffer")
        return which

    def piece(
        self, number: int, positions: Any, addresses: np.ndarray, size: int, dtype: Any, writes: bool
    ) -> Piece:
        buffer = self.buffers[number]
        offsets = (addresses - np.uint64(buffer.address)).view(np.int64)
        bad = offsets + size > buffer.bytes.size
        if bad.any() or (writes and not buffer.bytes.flags.writeable):
            at = int(np.flatnonzero(bad)[0]) if bad.any() else 0
            why = "is out of bounds" if bad.any() else "would write to a read-only array"
            message = (
                f"address {int(addresses[at]):#x} {why}: {size} bytes at offset {int(offsets[at])}"
                f" of buffer {number}, which has {buffer.bytes.size} bytes"
            )
            raise LaneError(at if isinstance(positions, slice) else int(positions[at]), message)
        # A buffer need not begin at a multiple of the element size, but every access does.
        skipped = -buffer.address % np.dtype(dtype).itemsize
        return Piece(
            positions, self.view(number, dtype, skipped), (offsets - skipped) // np.dtype(dtype).itemsize
        )

    def view(self, number: int, dtype: Any, skipped: int) -> np.ndarray:
        key = number, dtype
        if key not in self.views:
            content = self.buffers[number].bytes[skipped:]
            whole = content.size // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize
            self.views[key] = content[:whole].view(dtype)
        return self.views[key]


class Private:
    """Memory of which each owner, a block or a lane, has `size` bytes of its own."""

    def __init__(self, space: str, owners: int, size: int) -> None:
        self.space, self.size = space, size
        self.stride = -(-size // 16) * 16
        self.bytes = np.full((owners, self.stride), UNINITIALISED, np.uint8)
        self.views: dict[Any, np.ndarray] = {}

    def forget(self, owners: Any) -> None:
        self.bytes[owners] = UNINITIALISED

    def piece(self, owners: np.ndarray, offsets: np.ndarray, size: int, dtype: Any) -> Piece:
        offsets = offsets.view(np.int64)
        bad = (offsets < 0) | (offsets + size > self.size)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            message = f"{size} bytes at offset {int(offsets[at])} of {self.size} bytes of {self.space} memory"
            raise LaneError(at, f"is out of bounds: {message}")
        if dtype not in self.views:
            self.views[dtype] = self.bytes.reshape(-1).view(dtype)
        return Piece(
            slice(None), self.views[dtype], (offsets + owners * self.stride) // np.dtype(dtype).itemsize
        )


def check_alignment(addresses: np.ndarray, size: int) -> None:
    """Raise if an access of `size` bytes, a power of two, is not at a multiple of its size."""
    wrong = addresses & np.uint64(size - 1)
    if wrong.any():
        position = int(np.flatnonzero(wrong)[0])
        raise LaneError(position, f"address {int(addresses[position]):#x} is misaligned for {size} bytes")
