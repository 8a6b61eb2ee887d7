"""Who read and wrote what in shared memory since threads last met: two accesses that nothing orders are found."""

from typing import Any

import numpy as np

from tests.cuda.ptx.arithmetic import DTYPES
from tests.cuda.ptx.errors import LaneError
from tests.cuda.ptx.parser import Kernel

WARP = 32
NOBODY = -1
EVERYBODY = np.iinfo(np.int64).max
ELSEWHERE = {"param", "global", "local"}


class Races:
    """What happened to each cell of the shared memory of `slots` blocks; no access is smaller than a cell.

    Two threads race where both access a cell, one of them at least writes, not both are atomic, and between the
    two neither the block met at a barrier nor their own warp, as a whole, at a ``bar.warp.sync``. In which order
    the threads happen to run does not count.
    """

    def __init__(self, kernel: Kernel, slots: int, size: int, lanes: int) -> None:
        self.cell, self.threads = smallest_access(kernel), lanes // slots
        shape = slots, -(-size // self.cell)
        # Lanes, and how often their warps had met.
        self.writer, self.written_at = np.full(shape, NOBODY), np.zeros(shape, np.int64)
        self.first_reader, self.last_reader = np.full(shape, EVERYBODY), np.full(shape, NOBODY)
        self.read_at = np.zeros(shape, np.int64)
        self.is_atomic = np.zeros(shape, bool)
        self.meetings = np.zeros(-(-lanes // WARP), np.int64)

    def forget(self, slots: Any) -> None:
        """Begin anew in blocks whose threads all met, or whose slots are given to others."""
        self.writer[slots] = self.last_reader[slots] = NOBODY
        self.first_reader[slots] = EVERYBODY
        self.is_atomic[slots] = False

    def meet(self, lanes: np.ndarray) -> None:
        """Note that these lanes, of whole warps, met."""
        self.meetings[np.unique(lanes // WARP)] += 1

    def note(
        self, slots: np.ndarray, lanes: np.ndarray, offsets: np.ndarray, size: int, writes: bool, atomic: bool
    ) -> None:
        """Note an access of `size` bytes by each lane, or raise if it races with an earlier one."""
        first = offsets.view(np.int64) // self.cell
        for cell in range(size // self.cell):
            place = slots, first + cell
            self.check_writer(place, lanes, atomic)
            if writes:
                self.check_readers(place, lanes)
                self.note_write(place, lanes, atomic)
            else:
                np.minimum.at(self.first_reader, place, lanes)
                np.maximum.at(self.last_reader, place, lanes)
                self.read_at[place] = self.meetings[lanes // WARP]

    def check_writer(self, place: Any, lanes: np.ndarray, atomic: bool) -> None:
        writer = self.writer[place]
        racing = (writer != NOBODY) & (writer != lanes)
        if racing.any():
            met = (writer // WARP == lanes // WARP) & (self.written_at[place] < self.meetings[lanes // WARP])
            self.raise_where(racing & ~met & ~(self.is_atomic[place] & atomic), writer, "written")

    def check_readers(self, place: Any, lanes: np.ndarray) -> None:
        first, last = self.first_reader[place], self.last_reader[place]
        racing = (last != NOBODY) & ((first != lanes) | (last != lanes))
        if racing.any():
            warp = lanes // WARP
            of_warp = (first // WARP == warp) & (last // WARP == warp)
            met = of_warp & (self.read_at[place] < self.meetings[warp])
            self.raise_where(racing & ~met, np.where(first == lanes, last, first), "read")

    def note_write(self, place: Any, lanes: np.ndarray, atomic: bool) -> None:
        self.writer[place], self.written_at[place] = lanes, self.meetings[lanes // WARP]
        self.is_atomic[place] = atomic
        # Of those that write one cell together the last is there.
        self.raise_where((self.writer[place] != lanes) & (not atomic), self.writer[place], "written")

    def raise_where(self, races: np.ndarray, others: np.ndarray, done: str) -> None:
        if races.any():
            position = int(np.flatnonzero(races)[0])
            other = int(others[position]) % self.threads
            raise LaneError(position, f"a race: {done} by thread {other}, and no barrier came since")


def smallest_access(kernel: Kernel) -> int:
    """Return the size of the smallest access that a kernel may make to shared memory, 1 if there is none."""
    sizes = [
        np.dtype(DTYPES[one.modifiers[-1]]).itemsize
        for one in kernel.code
        if one.opcode in ("ld", "st", "atom", "red")
        and not ELSEWHERE.intersection(one.modifiers)
        and one.modifiers[-1] in DTYPES
    ]
    return min(sizes, default=1)
