"""LazyStats: statistics that reach the host when somebody reads one."""

from collections.abc import Iterator, Mapping, Sequence

from numba_lamb.kernels import book as at
from numba_lamb.kernels import rows
from numba_lamb.optimizers.backend import Subject, named_stats
from numba_lamb.optimizers.cuda_part import CudaPart
from numba_lamb.optimizers.cuda_tables import Snapshot


class LazyStats(Mapping[str, float]):
    """Statistics as they were when asked for; the first that is read waits for them.

    Parameters
    ----------
    optimizer : Subject
        Whose they are. What it is now decides their names, whatever becomes of it.
    parts : sequence of CudaPart
        Its parts.
    snapshots : sequence of Snapshot
        What each part wrote, and last what the clip did.
    """

    def __init__(self, optimizer: Subject, parts: Sequence[CudaPart], snapshots: Sequence[Snapshot]) -> None:
        self._parts = parts
        self._snapshots = snapshots
        self._slots = optimizer._slots
        self._quantities = optimizer._quantities
        self._adapted = {id(part): part.scalars[:, rows.ADAPT] != 0 for part in parts}
        self._found: dict[str, float] | None = None

    def _values(self) -> dict[str, float]:
        if self._found is None:
            *of_parts, clip = [snapshot.read() for snapshot in self._snapshots]
            written = {
                id(part): (*part.written_in(memory), self._adapted[id(part)])
                for part, memory in zip(self._parts, of_parts, strict=True)
            }
            grad_norm = float(clip[at.CLIP_NORM]) if clip[at.CLIPPED] else None
            self._found = named_stats(self._quantities, self._slots, written, grad_norm)
            # The rest would keep the optimizer's memory.
            self._snapshots, self._parts, self._slots = (), (), ()
        return self._found

    def __getitem__(self, name: str) -> float:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __repr__(self) -> str:
        return repr(self._values())
