"""CudaPartBackend: a step on a GPU on layers of which each rank has a part, with the norms of the whole."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import Comm
from numba_lamb.engine.complaint import Looked
from numba_lamb.engine.cuda.backend import LOOKING, CudaBackend
from numba_lamb.engine.cuda.bucket import CudaBucket
from numba_lamb.engine.cuda.collectives import on_device
from numba_lamb.engine.cuda.meeting import Meeting
from numba_lamb.engine.interface import Plan
from numba_lamb.engine.ranks import Known, Ranks, written_by
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.memory import device
from numba_lamb.memory.gradients import Held

_Kernels = Sequence[tuple[CudaBucket, str]]


class CudaPartBackend(Ranks, CudaBackend):
    """Runs steps on a GPU, and has ranks tell each other the sums of their chunks.

    What ranks agree on before a step goes by the CPU, which waits for the other ranks and not for the GPU; what
    they tell each other in it goes from GPU to GPU where `comm` can do that.

    Parameters
    ----------
    index : int
        The GPU.
    library : str or None
        As for `CudaBackend`.
    comm : Comm
        The ranks.
    """

    def __init__(self, index: int, library: str | None, comm: Comm) -> None:
        CudaBackend.__init__(self, index, library, None)
        self._join(comm)
        # By the columns that are told.
        self._meetings: dict[tuple[int, ...], Meeting] = {}
        # Steps that were queued since counts were set.
        self._queued = 0

    def place(self, plan: Plan) -> None:
        """Get ready for a plan that is new, or whose buckets, groups or method are."""
        self._meetings = {}
        self._connect()
        CudaBackend.place(self, plan)
        self._note_layers()
        self._note_options()

    def _connect(self) -> None:
        """Have collectives that know nothing of memory that is given back."""
        with self._device.current():
            self._device_comm = on_device(self.comm, self._device)

    def columns_changed(self) -> None:
        """Have the other ranks know of columns that were rewritten."""
        self._note_options()

    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""
        CudaBackend.set_counters(self, applied, skipped)
        self._queued = 0

    # -- the step ------------------------------------------------------------------------------------------

    def _ready(self, read: Callable[[], Held], stream: object) -> Held:
        held = self._look(read, stream)
        if self._next.capturing:
            raise RuntimeError(
                "a step of several ranks cannot be captured into a graph: ranks agree on the host"
            )
        return held

    def _inspected(self, held: Held, given: NDArray[np.bool_]) -> bool:
        return True

    def _said(self) -> tuple[Any, Any, Any]:
        # How many of the steps were applied is known on the GPU alone, where ranks come to one verdict.
        return (self._started, self._queued), self._rates.said(), self._plan.loss_scale

    def _take(self, between: Sequence[Callable[[], Any]]) -> None:
        CudaBackend.commit(self, between)
        self._queued += 1

    def _queue(self, kernels: _Kernels, stream: int, capturing: bool) -> None:
        raises = self._plan.nonfinite == "raise"
        self._is_looking = True
        self._average(stream)
        self._launch([one for one in kernels if one[1] == "open_step"], stream)
        if self._may_stop():
            clips = any(bucket.clips for bucket in self._buckets)
            self._told = [columns.GRADIENT_SQUARES] * clips + [columns.SUMS] * raises
            self._meet(self._told, stream)
        self._launch([one for one in kernels if one[1] in LOOKING and one[1] != "open_step"], stream)
        if raises:
            try:
                self._verify(stream)
            except ValueError as error:
                # Ranks come to one verdict.
                raise Known(error) from None
        self._progress.expect()
        *before, last = self._parts_of(self._plan.method.passes)
        for part in before:
            self._launch(self._over_buckets(part), stream)
            self._meet(written_by(part), stream)
        self._launch(self._over_buckets(last[:-1]), stream)
        self._update(last[-1].kernel, stream)
        self._is_looking = False

    def _may_stop(self) -> bool:
        """Return whether anything may keep any rank from the step."""
        checked = any(bucket.checks or bucket.clips for bucket in self._buckets)
        return checked or bool(self._plan.found_inf) or self._rates.are_on_device

    def _over_buckets(self, passes: Sequence[Any]) -> list[tuple[CudaBucket, str]]:
        """Return passes over all buckets that have something to do in them, as kernels."""
        return [
            (bucket, one.kernel)
            for bucket in self._buckets
            for one in passes
            if not one.when or getattr(bucket, one.when)
        ]

    @staticmethod
    def _launch(kernels: _Kernels, stream: int) -> None:
        device.launch([bucket.on(stream, name) for bucket, name in kernels])

    def _average(self, stream: int) -> None:
        """Have gradients where kernels look for them: they are there."""

    def _update(self, kernel: str, stream: int) -> None:
        """Queue the last pass."""
        self._launch([(bucket, kernel) for bucket in self._buckets], stream)

    def _meet(self, written: Sequence[int], stream: int) -> None:
        """Have all ranks know the sums in these columns, and what keeps any of them from the step."""
        self._meeting(written).meet(stream)

    def _meeting(self, written: Sequence[int]) -> Meeting:
        key = tuple(written)
        if key not in self._meetings:
            self._meetings[key] = Meeting(self._buckets, self.comm.size, self._device_comm, key)
        return self._meetings[key]

    def _looked(self) -> list[Looked]:
        _, counts = self._meeting(self._told).told()
        return [
            (bucket, count, bucket.looked_at()[1])
            for bucket, count in zip(self._buckets, counts, strict=True)
        ]

    def _is_left_out(self) -> bool:
        flags, _ = self._meeting(self._told).told()
        return bool(flags[:, fields.LEAVES_OUT].any())
