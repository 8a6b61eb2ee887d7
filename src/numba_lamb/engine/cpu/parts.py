"""PartBackend: a step on layers of which each rank has a part, with the norms of the whole."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import Comm, CommError, Disagreement
from numba_lamb.engine.agreement import Agreement, digest
from numba_lamb.engine.cpu.backend import CpuBackend
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.engine.interface import Plan
from numba_lamb.engine.precision import Precision
from numba_lamb.groups import Parameter
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch
from numba_lamb.kernels.cpu.threads import cpu_quota, usable_cpus
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.gradients import Held
from numba_lamb.methods.passes import Pass
from numba_lamb.sharding import Division

_BROKEN = (
    "a step failed or was interrupted halfway, and ranks may not be at one step; load a checkpoint into a new "
    "optimizer"
)


_Result = TypeVar("_Result")


class _Failed(Exception):
    """An error that the other ranks were told of."""


class PartBackend(CpuBackend):
    """Runs steps on the CPU, and has ranks tell each other the sums of their chunks.

    Parameters
    ----------
    num_threads : int or None
        CPU threads; by default no more than there are CPUs for each rank.
    comm : Comm
        The ranks.
    """

    def __init__(self, num_threads: int | None, comm: Comm) -> None:
        if num_threads is None:
            # A container's quota is for all of its ranks.
            cpus = min(usable_cpus(), cpu_quota() or usable_cpus())
            num_threads = max(1, min(launch.thread_count(None), cpus // comm.sharing))
        super().__init__(num_threads)
        self.comm = comm
        self._agreement = Agreement(comm)
        self._layers = self._options = b""
        # How ranks have layers: state stays where it is when other layers come.
        self._cuts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._broken = ""

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an optimizer that ranks share cannot be copied or pickled; use its state_dict")

    def place(self, plan: Plan) -> None:
        """Get ready for a plan that is new, or whose buckets, groups or method are."""
        super().place(plan)
        self._layers = digest(
            plan.method.name,
            [(layer.name, layer.shape, str(layer.dtype), layer.group) for layer in plan.layout.layers],
        )

    def columns_changed(self) -> None:
        """Have the next step write rates, decays and the gradients' factors anew."""
        super().columns_changed()
        # What a step writes of its own is told by other facts.
        written = {columns.ADAPT, columns.DECAY, columns.RESCALE, columns.SHRINK}
        if self._plan.method.needs_steps:
            written |= {columns.CORRECTION1, columns.CORRECTION2}
        kept = [column for column in range(columns.HYPER) if column not in written]
        self._options = digest(
            self._plan.nonfinite,
            *(bucket.hyper[:, kept].tobytes() for bucket in self._buckets),
            *(bucket.hyper64.tobytes() for bucket in self._buckets),
            *(bucket.random[:, columns.SEED].tobytes() for bucket in self._buckets),
        )

    def new_bucket(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        precisions: Sequence[Precision],
        state_names: Sequence[str],
    ) -> CpuBucket:
        """Return tables and zeroed state for this rank's part of the layers of `dtype`."""
        division = self._division(layout, dtype)
        return CpuBucket(layout, dtype, parameters, precisions, state_names, division, self.comm.rank)

    def _division(self, layout: FlatLayout, dtype: np.dtype[Any]) -> Division:
        """Return how ranks have the layers of `dtype`."""
        layers = [layout.layers[k] for k in layout.indices(dtype)]
        known = [layer.name in self._cuts for layer in layers]
        others = FlatLayout(
            (layer.name, (0,) if old else layer.shape, layer.dtype)
            for layer, old in zip(layers, known, strict=True)
        )
        division = self._fresh(others, layers, dtype)
        for k, (layer, old) in enumerate(zip(layers, known, strict=True)):
            if old:
                division.starts[:, k], division.stops[:, k] = self._cuts[layer.name]
        return division

    def _fresh(self, layout: FlatLayout, layers: Sequence[Layer], dtype: np.dtype[Any]) -> Division:
        """Return how ranks have layers of which nothing is known yet; those of no size are known."""
        sizes = np.array([layer.size for layer in layout.layers], dtype=np.int64)
        starts = np.zeros((self.comm.size, len(sizes)), dtype=np.int64)
        return Division(starts, starts + sizes)

    def cut_as(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Have ranks have these runs of a layer from now on."""
        self._cuts[name] = starts.copy(), stops.copy()

    def forget(self) -> None:
        """Forget how ranks have layers: state is about to be replaced."""
        self._cuts = {}

    # -- the step ------------------------------------------------------------------------------------------

    def prepare(self, read: Callable[[], Held], stream: object = None) -> bool:
        """Write all that the next step depends on, and return whether it can be taken, alike on all ranks."""
        self.check_whole()
        self._broken = _BROKEN
        try:
            passed = self._prepared(read, stream)
        except (Disagreement, FloatingPointError, _Failed) as error:
            # All ranks are still at one step.
            self._broken = ""
            if isinstance(error, _Failed):
                raise error.args[0] from None
            raise
        self._broken = ""
        return passed

    def _prepared(self, read: Callable[[], Held], stream: object) -> bool:
        held = None
        try:
            if not self._plan.found_inf:
                held = self._look(read, stream)
        except BaseException as error:
            self._agreement.fail(error)
            raise _Failed(error) from None
        given = np.zeros(len(self._plan.placement), dtype=np.bool_) if held is None else held.found != 0
        given, skips = self._agreement.reach(self._facts(given), given, held is None)
        if skips:
            self._counters.skip()
            return False
        assert held is not None
        self._enter(held, given)
        passed = self._inspect()
        if passed:
            self._held, self._found = held, given.astype(np.int64)
        return passed

    def _facts(self, given: NDArray[np.bool_]) -> dict[str, bytes]:
        """Return what must be the same on all ranks."""
        return {
            "the layers": self._layers,
            "the number of steps": digest(self.counters()),
            "options": self._options,
            "learning rates and weight decays": digest(self._written),
            "the loss scale": digest(self._scale),
            "which parameters have gradients": digest(given.tobytes()),
        }

    def _enter(self, held: Held, given: NDArray[np.bool_]) -> None:
        """Get hold of the gradients, of which all ranks together have those that are `given`."""

    def commit(self, between: Sequence[Callable[[], Any]] = ()) -> None:
        """Update and count all layers; if this is interrupted or fails, the optimizer cannot be used any more."""
        self._broken = _BROKEN
        self._take(between)
        self._broken = ""

    def _take(self, between: Sequence[Callable[[], Any]]) -> None:
        super().commit(between)

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks of an error that keeps this one from a step."""
        self.check_whole()
        self._broken = _BROKEN
        self._agreement.fail(error)
        self._broken = ""

    def on_one(self, work: Callable[[], object]) -> None:
        """Do `work` on the first rank; raise on every rank if it fails."""
        self.on_all(work if self.comm.rank == 0 else int)

    def on_all(self, work: Callable[[], _Result]) -> _Result:
        """Do `work` on every rank, and raise on every rank if it fails on any."""
        try:
            found = work()
        except BaseException as error:
            self.tell(error)
            raise
        self._agreement.reach({}, np.zeros(0, dtype=np.bool_))
        return found

    def check_whole(self) -> None:
        """Raise if a step was not finished, and state is worth nothing."""
        if self._broken:
            raise CommError(self._broken)

    # -- passes --------------------------------------------------------------------------------------------

    def _parts_of(self, passes: Sequence[Pass]) -> list[list[Pass]]:
        """Return the passes, cut where the next one over layers needs sums of all ranks."""
        parts: list[list[Pass]] = [[]]
        for one in passes:
            if one.when and not any(getattr(bucket, one.when) for bucket in self._buckets):
                continue
            if one.unit == "layer" and any(earlier.writes for earlier in parts[-1]):
                parts.append([])
            parts[-1].append(one)
        return parts

    def _meet(self, written: Sequence[int], looked: bool) -> None:
        """Have all ranks know the sums in these columns, and what a finite check found if they looked."""
        columns_of = [*written] + [columns.SUMS] * looked
        rooms = [max(map(len, _divided(bucket).own)) for bucket in self._buckets]
        begins = np.cumsum([0, *rooms]).tolist()
        if not begins[-1]:
            return
        sent = np.zeros((begins[-1], len(columns_of)))
        for at, bucket in zip(begins, self._buckets, strict=False):
            # What was found comes after all sums.
            known = np.concatenate([bucket.sums, bucket.nonfinite[:, None]], axis=1)
            sent[at : at + len(known)] = known[:, columns_of]
        told = np.zeros((self.comm.size, *sent.shape))
        self.comm.all_gather(told.view(np.uint8), sent.reshape(-1).view(np.uint8))()
        for at, bucket in zip(begins, self._buckets, strict=False):
            division = _divided(bucket)
            rank, place = division.owner
            found = told[rank, at + place]
            bucket.all_sums[:, written] = found[:, : len(written)]
            if looked:
                bucket.all_nonfinite[:] = found[:, -1]
                for numbers, values in zip(division.own, told, strict=True) if division.overlaps else ():
                    # Any of several ranks that have a chunk may have found something.
                    more = values[at : at + len(numbers), -1].astype(np.int32)
                    bucket.all_nonfinite[numbers] = np.maximum(bucket.all_nonfinite[numbers], more)


def _divided(bucket: CpuBucket) -> Division:
    assert bucket.division is not None
    return bucket.division
