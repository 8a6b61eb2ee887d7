"""Ranks: what a backend does whose layers lie in parts on several ranks, with the norms of the whole."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import Comm, CommError, Disagreement
from numba_lamb.engine.agreement import UNCHANGED, Agreement, described_layers, digest
from numba_lamb.engine.interface import Backend, Plan
from numba_lamb.kernels import columns
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.gradients import Held
from numba_lamb.methods.passes import Pass
from numba_lamb.sharding import Division

_BROKEN = (
    "a step failed or was interrupted halfway, and ranks may not be at one step; load a checkpoint into a new "
    "optimizer"
)
_UNLOADED = (
    "load_state_dict failed on a rank, and ranks may have different state; load a checkpoint on all of them"
)

_Result = TypeVar("_Result")


class _Cut(NamedTuple):
    """How ranks have a layer, as in `Division`."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    near: NDArray[np.bool_] | None


class Known(Exception):
    """Around an error that all ranks know of."""


class Ranks(Backend):
    """Agrees with the other ranks before each step; a backend of one kind of memory comes behind it."""

    comm: Comm
    _plan: Plan

    def _join(self, comm: Comm) -> None:
        """Begin as one of the ranks."""
        self.comm = comm
        self._agreement = Agreement(comm)
        self._layers = self._division = self._options = b""
        # How ranks have layers: state stays where it is when other layers come.
        self._cuts: dict[str, _Cut] = {}
        self._broken = ""
        self._unloaded = False

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an optimizer that ranks share cannot be copied or pickled; use its state_dict")

    def _note_layers(self) -> None:
        self._layers = digest(self._plan.method.name, described_layers(self._plan.layout))
        divisions = [bucket.division for bucket in self._plan.buckets if bucket.division is not None]
        self._division = digest(*(cut.tobytes() for one in divisions for cut in (one.starts, one.stops)))

    def _note_options(self) -> None:
        # What a step writes of its own is told by other facts.
        written = {columns.ADAPT, columns.DECAY, columns.RESCALE, columns.SHRINK}
        if self._plan.method.needs_steps:
            written |= {columns.CORRECTION1, columns.CORRECTION2}
        kept = [column for column in range(columns.HYPER) if column not in written]
        self._options = digest(
            self._plan.nonfinite,
            *(bucket.hyper[:, kept].tobytes() for bucket in self._plan.buckets),
            *(bucket.hyper64.tobytes() for bucket in self._plan.buckets),
            *(bucket.random[:, columns.SEED].tobytes() for bucket in self._plan.buckets),
        )

    # -- who has what --------------------------------------------------------------------------------------

    def _part_of(self, layout: FlatLayout, dtype: np.dtype[Any]) -> tuple[Division | None, int]:
        """Return how ranks have the layers of `dtype`, and which rank this is."""
        layers = [layout.layers[k] for k in layout.indices(dtype)]
        known = [self._is_cut(layer) for layer in layers]
        others = FlatLayout(
            (layer.name, (0,) if old else layer.shape, layer.dtype)
            for layer, old in zip(layers, known, strict=True)
        )
        division = self._fresh(others, layers, dtype)
        for k, (layer, old) in enumerate(zip(layers, known, strict=True)):
            if old:
                cut = self._cuts[layer.name]
                division.starts[:, k], division.stops[:, k] = cut.starts, cut.stops
                if division.near is not None:
                    division.near[:, k] = cut.near
        return division, self.comm.rank

    def _is_cut(self, layer: Layer) -> bool:
        """Return whether it is known how ranks have a layer, and not one that had its name before."""
        return layer.name in self._cuts and int(self._cuts[layer.name].stops.max()) == layer.size

    def _fresh(self, layout: FlatLayout, layers: Sequence[Layer], dtype: np.dtype[Any]) -> Division:
        """Return how ranks have layers of which nothing is known yet; those of no size are known."""
        sizes = np.array([layer.size for layer in layout.layers], dtype=np.int64)
        starts = np.zeros((self.comm.size, len(sizes)), dtype=np.int64)
        # What is not in pieces is each rank's own.
        near = np.zeros(starts.shape, dtype=np.bool_)
        near[self.comm.rank] = True
        return Division(starts, starts + sizes, near)

    def cut_as(
        self,
        name: str,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        near: NDArray[np.bool_] | None = None,
    ) -> None:
        """Have ranks have these runs of a layer from now on; those of ranks that are not `near` are of another."""
        self._cuts[name] = _Cut(starts.copy(), stops.copy(), near)

    def forget(self) -> None:
        """Forget how ranks have layers: state is about to be replaced."""
        self._cuts = {}

    # -- the step ------------------------------------------------------------------------------------------

    def prepare(self, read: Callable[[], Held], stream: object = None) -> bool:
        """Write all that the next step depends on, and return whether it can be taken, alike on all ranks."""
        return self._unbroken(lambda: self._prepared(read, stream))

    def _prepared(self, read: Callable[[], Held], stream: object) -> bool:
        try:
            held = self._ready(read, stream)
        except BaseException as error:
            self._agreement.fail(error)
            raise Known(error) from None
        given = np.zeros(len(self._plan.placement), dtype=np.bool_) if held is None else held.found != 0
        given, skips = self._agreement.reach(self._facts(given), given, held is None)
        if skips:
            self._leave_out()
            return False
        assert held is not None
        self._enter(held, given)
        return self._inspected(held, given)

    def commit(self, between: Sequence[Callable[[], Any]] = ()) -> None:
        """Update and count all layers; if this is interrupted or fails, the optimizer cannot be used any more."""
        self._unbroken(lambda: self._take(between))

    def _unbroken(self, work: Callable[[], _Result]) -> _Result:
        """Do a part of a step; unless it ends, or all ranks leave it at one point, the optimizer is broken."""
        self.check_whole()
        self._broken = _BROKEN
        try:
            found = work()
        except (Disagreement, FloatingPointError, Known) as error:
            # All ranks are still at one step.
            self._broken = ""
            if isinstance(error, Known):
                raise error.args[0] from None
            raise
        self._broken = ""
        return found

    @abstractmethod
    def _ready(self, read: Callable[[], Held], stream: object) -> Held | None:
        """Write what a step depends on but for what is told by all gradients; None to leave the step out."""

    def _leave_out(self) -> None:
        """Count a step that is left out before anything looked at its gradients."""

    def _enter(self, held: Held, given: NDArray[np.bool_]) -> None:
        """Get hold of the gradients, of which all ranks together have those that are `given`."""

    @abstractmethod
    def _inspected(self, held: Held, given: NDArray[np.bool_]) -> bool:
        """Return whether the gradients can be used, as far as the host is to know."""

    @abstractmethod
    def _take(self, between: Sequence[Callable[[], Any]]) -> None:
        """Take the step that was prepared, and do what is `between`."""

    def _facts(self, given: NDArray[np.bool_]) -> dict[str, bytes]:
        """Return what must be the same on all ranks."""
        steps, rates, scale = self._said()
        return {
            "the call": digest("step"),
            "the layers": self._layers,
            "how ranks have cut the layers": self._division,
            "the number of steps": digest(steps),
            "options": self._options,
            "learning rates and weight decays": digest(rates),
            "the loss scale": digest(scale),
            "which parameters have gradients": digest(given.tobytes()),
        }

    @abstractmethod
    def _said(self) -> tuple[Any, Any, Any]:
        """Return what the host knows of the number of steps, of rates, and of the loss scale."""

    def _parts_of(self, passes: Sequence[Pass]) -> list[list[Pass]]:
        """Return the passes, cut where the next one over layers needs sums of all ranks."""
        parts: list[list[Pass]] = [[]]
        for one in passes:
            if one.when and not any(getattr(bucket, one.when) for bucket in self._plan.buckets):
                continue
            if one.unit == "layer" and any(earlier.writes for earlier in parts[-1]):
                parts.append([])
            parts[-1].append(one)
        return parts

    # -- errors --------------------------------------------------------------------------------------------

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks of an error that keeps this one from a step, but for one that all know of."""
        if isinstance(error, CommError):
            return
        self.check_whole(loading=True)
        self._broken = _BROKEN
        self._agreement.fail(error)
        self._broken = ""

    def agree(self, call: str, facts: Mapping[str, bytes] | None = None) -> None:
        """Raise on all ranks unless all are at this call, and know the same facts, by their names in an error."""
        self.check_whole(loading=True)
        self._broken = _BROKEN
        try:
            self._agreement.reach({"the call": digest(call), **(facts or {})}, np.zeros(0, dtype=np.bool_))
        except Disagreement:
            self._broken = ""
            raise
        self._broken = ""

    def load(self, work: Callable[[], object], loaded: Callable[[], bytes]) -> None:
        """Load state by `work` on every rank; no step can be taken if any fails, or they `loaded` other steps."""
        self._unloaded = True
        try:
            self.on_all(work)
            self.agree("load_state_dict", {"the number of steps": loaded()})
        except Disagreement as error:
            raise Disagreement(f"{str(error).removesuffix(UNCHANGED)}; {_UNLOADED}") from None
        self._unloaded = False

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
        self.agree("on all")
        return found

    def check_whole(self, loading: bool = False) -> None:
        """Raise if a step was not finished, and state is worth nothing."""
        if self._broken:
            raise CommError(self._broken)
        if self._unloaded and not loading:
            raise CommError(_UNLOADED)


def written_by(passes: Sequence[Pass]) -> list[int]:
    """Return the columns of sums that passes write."""
    return sorted({column for one in passes for column in one.writes})
