"""CudaBackend: the phases of a step on a GPU, none of which waits for the device unless it is asked to.

The kernels of a step are queued one after another, whatever they will find: whether gradients are finite, by how
much they are clipped and how often the step was applied is decided and counted on the device.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_lamb._calls import run_in_order
from numba_lamb.engine.columns import write_gradient_formats
from numba_lamb.engine.complaint import Looked, require
from numba_lamb.engine.cuda.bucket import CudaBucket
from numba_lamb.engine.cuda.order import Order
from numba_lamb.engine.cuda.rates import CudaRates, Progress
from numba_lamb.engine.cuda.record import CudaRecord
from numba_lamb.engine.cuda.refusals import reasons_of, refuse_to_capture
from numba_lamb.engine.cuda.scale import CudaScale
from numba_lamb.engine.cuda.stats import LazyStats
from numba_lamb.engine.cuda.transfers import Snapshot, Snapshots
from numba_lamb.engine.interface import Backend, Plan
from numba_lamb.engine.precision import Precision
from numba_lamb.engine.records import RecordLayout
from numba_lamb.engine.scale import Following, Scale
from numba_lamb.groups import Parameter
from numba_lamb.kernels.cuda import fields
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory import device
from numba_lamb.memory.cuda_memory import zeros
from numba_lamb.memory.device_reader import DeviceReader
from numba_lamb.memory.gradients import Held, Reader

LOOKING = ("open_step", "gradient_squares", "clip_gradients", "scale_gradients")
"""The kernels that only look at gradients; ``nonfinite="raise"`` reads what they found before the others run."""


class _Next(NamedTuple):
    """A step that was prepared: its gradients, its stream and the usual one, and its kernels."""

    held: Held
    target: int
    usual: int
    capturing: bool
    kernels: list[tuple[CudaBucket, str]]


class CudaBackend(Backend):
    """Runs steps on one GPU.

    Parameters
    ----------
    index : int
        The GPU.
    library : str or None
        ``"torch"`` or ``"cupy"`` where that owns the parameters: steps go to its current stream.
    capture_steps : int or None
        Steps whose rates are tabulated beforehand, so that a step can be captured into a graph.
    """

    nonfinite = "skip"
    waits = True
    _plan: Plan
    _next: _Next

    def __init__(self, index: int, library: str | None, capture_steps: int | None) -> None:
        if capture_steps is not None and (
            isinstance(capture_steps, bool) or not isinstance(capture_steps, int)
        ):
            raise TypeError(f"capture_steps must be an int or None, not {type(capture_steps).__name__}")
        if capture_steps is not None and capture_steps < 1:
            raise ValueError(f"capture_steps must be at least 1, not {capture_steps}")
        self._library = library
        self._device = device.open_device(index)
        self._buckets: list[CudaBucket] = []
        # Whether kernels that look at gradients were queued without those that lower their flags.
        self._is_looking = False
        # The counts that were set last: another list whenever they are.
        self._started = [0, 0]
        # What captured graphs may still read and write.
        self._kept: list[Any] = []
        with self._device.current():
            self._device.free_parked(device.current_stream(library, index))
            self._order = Order(self._device)
            self._control = zeros(self._device, fields.CONTROLS * 8)
            self._clip = zeros(self._device, fields.CLIP_FIELDS * 8)
            self._clips = Snapshots(self._device, self._clip.address, np.zeros(fields.CLIP_FIELDS))
            self._progress = Progress(self._device, self._control.address)
            self._rates = CudaRates(self._device, self._progress, capture_steps)

    def new_reader(self, layers: Sequence[Layer], arrays: Sequence[Any]) -> Reader:
        """Return what says where these parameters and their gradients lie."""
        return DeviceReader(layers, arrays, self._device.index)

    def new_scale(self, following: Following, value: float) -> Scale:
        """Return a loss scale on the GPU that is to follow this backend's steps."""
        return CudaScale(self._device, following, value)

    def check_copyable(self) -> None:
        """Raise: the arrays of a copy would be somewhere else."""
        raise TypeError(
            "an optimizer of arrays on a GPU cannot be copied or pickled; make another one and give it this one's "
            "state with state_dict and load_state_dict"
        )

    def new_bucket(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        precisions: Sequence[Precision],
        state_names: Sequence[str],
    ) -> CudaBucket:
        """Return tables and zeroed state for the layers of `dtype`."""
        for parameter in parameters:
            if parameter.storage.device not in (None, self._device.index):
                raise ValueError(
                    f"parameter {parameter.name!r} must be on GPU {self._device.index}, like the others, "
                    f"not on GPU {parameter.storage.device}"
                )
        # Validate before anything is modified.
        self._rates.rehearse()
        given = layout, dtype, parameters, precisions, state_names, self._device
        with self._device.current():
            return CudaBucket(*given, *self._part_of(layout, dtype))

    def values_of(self, parameter: Parameter) -> NDArray[Any]:
        """Return a parameter's values, after waiting for the device."""
        storage = parameter.found_again().storage
        values = np.empty(storage.shape, dtype=storage.dtype)
        with self._device.current():
            self._device.read(storage.address, values)
        return values

    def writer(self, parameter: Parameter, values: NDArray[Any]) -> Callable[[], Any]:
        """Return what writes values of the right form into a parameter, after waiting for the device."""
        return partial(self._write, parameter.found_again().storage.address, np.ascontiguousarray(values))

    def _write(self, address: int, values: NDArray[Any]) -> None:
        with self._device.current():
            self._device.finish()
            self._device.write(address, values)

    def place(self, plan: Plan) -> None:
        """Make the rates' tables, load kernels, tell the buckets what never changes, and wait for all of it."""
        buckets = [bucket for bucket in plan.buckets if isinstance(bucket, CudaBucket)]
        with self._device.current():
            # Nothing is under way after this, so that what is replaced can be given back.
            generation = self._progress.begin_generation()
            self._order.release()
            if self._progress.replayed:
                self._kept.append((self._buckets, self._rates.mirror, self._rates.table))
            self._plan, self._buckets = plan, buckets
            self._record_layout: RecordLayout | None = None
            self._dtypes: Mapping[int, np.dtype[Any]] | None = None
            groups = range(len(plan.groups.dicts))
            self._rates.place(plan.groups, [_largest_in(buckets, group) for group in groups])
            for bucket, counts in zip(buckets, plan.counts or (), strict=False):
                bucket.use_steps(counts)
            for bucket in buckets:
                args = bucket.args
                args[fields.GROUPS] = self._rates.mirror.address
                args[fields.RATE_TABLE] = self._rates.table.address
                args[fields.CONTROL], args[fields.GRAD_CLIP] = self._control.address, self._clip.address
                args[fields.GROUP_COUNT] = len(groups)
                args[fields.TABLE_STEPS], args[fields.TABLE_REPEATS] = self._rates.steps, self._rates.repeats
                args[fields.CORRECTS] = plan.method.needs_steps
                args[fields.CENTRALIZES_DECAY] = plan.method.centralizes_decay
                args[fields.LAST_BUCKET] = bucket is buckets[-1]
                args[fields.GENERATION] = generation
            for bucket, name in self._tell(capturing=False):
                bucket.load(name)
            self._device.finish()

    # -- the step ------------------------------------------------------------------------------------------

    def prepare(self, read: Callable[[], Held], stream: object = None) -> bool:
        """Refuse what can be refused, and note what is to be queued: always, because only the device can tell."""
        self._look(read, stream)
        return True

    def _look(self, read: Callable[[], Held], stream: object) -> Held:
        """Note what is to be queued; return the gradients."""
        usual = device.current_stream(self._library, self._device.index)
        target = usual if stream is None else device.stream_address(stream)
        with self._device.current():
            capturing = self._device.is_capturing(target)
            if capturing and self._plan.nonfinite == "raise":
                raise RuntimeError('a step with nonfinite="raise" waits for the GPU and cannot be captured')
            self._device.free_parked(target, usual)
            self._rates.evaluate(capturing)
            if self._is_looking:
                # A step was interrupted before its last kernel, which lowers the flags.
                self._lower_flags()
            # Schedules and what gives the gradients are the user's code; from here on none runs.
            held = read()
            if held.dtypes is not self._dtypes:
                self._write_formats(held.dtypes)
            self._next = _Next(held, target, usual, capturing, self._tell(capturing))
        return held

    def _write_formats(self, dtypes: Mapping[int, np.dtype[Any]]) -> None:
        """Tell kernels how gradients are stored, by layer."""
        # Not known until all buckets have them.
        self._dtypes = None
        write_gradient_formats(self._buckets, self._plan.placement, dtypes)
        self._dtypes = dtypes

    def commit(self, between: Sequence[Callable[[], Any]] = ()) -> None:
        """Queue the step that was prepared, and what is `between` behind it."""
        held, target, usual, capturing, kernels = self._next
        # It would keep the gradients until the next step.
        del self._next
        with self._device.current():
            self._order.before(held.producers, target, capturing)
            self._rates.send(target, capturing)
            for bucket in self._buckets:
                if capturing:
                    bucket.mirror.capture(target)
                    continue
                if self._progress.replayed:
                    bucket.mirror.forget()
                bucket.mirror.send(target)
            self._queue(kernels, target, capturing)
            if capturing:
                self._progress.replayed = True
            else:
                self._progress.queued(target)
                self._order.mark(target)
                self._order.hold(held.arrays, target, usual)
        run_in_order(between)

    def _tell(self, capturing: bool) -> list[tuple[CudaBucket, str]]:
        """Tell the buckets what the next step is like, and return its kernels, loaded, in order."""
        plan = self._plan
        clips = any(bucket.clips for bucket in self._buckets)
        for bucket in self._buckets:
            if not bucket.rows_are_placed:
                refuse_to_capture(capturing, "'grad_centralization' of a group")
                bucket.place_rows()
            bucket.constants[fields.LOSS_SCALE] = plan.loss_scale
            bucket.inspect_gradients(clips)
            bucket.args[fields.GRAD_SCALE], bucket.args[fields.FOUND_INF] = plan.grad_scale, plan.found_inf
            bucket.args[fields.SCALER] = plan.scaler
        kernels = self._kernels()
        for bucket, name in kernels:
            if bucket.lacks(name):
                refuse_to_capture(capturing, "max_grad_norm, a gradient's dtype, or another option,")
            bucket.load(name)
        return kernels

    def _kernels(self) -> list[tuple[CudaBucket, str]]:
        kernels = [(bucket, "open_step") for bucket in self._buckets]
        for name in ("gradient_squares", "clip_gradients"):
            kernels += [(bucket, name) for bucket in self._buckets if bucket.clips]
        if self._plan.grad_scale or any(bucket.clips for bucket in self._buckets):
            kernels += [(bucket, "scale_gradients") for bucket in self._buckets]
        method = self._plan.method
        for bucket in self._buckets:
            for one in method.passes:
                if not one.when or getattr(bucket, one.when):
                    kernels.append((bucket, one.kernel))
        return kernels

    def _queue(self, kernels: Sequence[tuple[CudaBucket, str]], stream: int, capturing: bool) -> None:
        calls = [bucket.on(stream, name) for bucket, name in kernels]
        looking = 0
        if self._plan.nonfinite == "raise":
            looking = sum(name in LOOKING for _, name in kernels)
            self._is_looking = True
            device.launch(calls[:looking])
            self._verify(stream)
        if not capturing:
            self._progress.expect()
        device.launch(calls[looking:])
        self._is_looking = False

    def _verify(self, stream: int) -> None:
        """Wait for what the device found, and raise if it must stop the step; nothing was changed then."""
        self._device.synchronize(stream)
        control = self._progress.read()
        refusal = int(control[fields.REFUSAL])
        if not control[fields.FOUND] and not refusal:
            return
        if not refusal and self._is_left_out():
            return
        norm = self._lower_flags()
        if refusal:
            raise ValueError(f"{' and '.join(reasons_of(refusal))}; nothing was changed")
        looked = self._looked()
        watched = any(bucket.checks and bucket.clips for bucket in self._buckets)
        require(looked, norm if watched else None)

    def _looked(self) -> list[Looked]:
        """Return what was found in each bucket's gradients."""
        return [(bucket, *bucket.looked_at()) for bucket in self._buckets]

    def _lower_flags(self) -> float:
        """Undo what the kernels that look at gradients left on the device; return the norm that they found."""
        control = self._progress.read()
        clip = np.zeros(fields.CLIP_FIELDS)
        self._device.read(self._clip.address, clip)
        norm = float(clip[fields.STEP_NORM])
        clip[fields.CLIP_SUM] = 0.0
        self._device.write(self._clip.address, clip)
        control[[fields.FOUND, fields.REFUSAL]] = 0
        self._device.write(self._control.address, control)
        self._is_looking = False
        return norm

    def _is_left_out(self) -> bool:
        """Return whether a loss scaler leaves this step out, about which nothing is raised."""
        found = np.zeros(1, dtype=np.float32)
        if self._plan.found_inf:
            self._device.read(self._plan.found_inf, found)
        return bool(found[0] != 0)

    # -- what the device knows -----------------------------------------------------------------------------

    def _read_control(self) -> NDArray[np.int64]:
        with self._device.current():
            control = self._progress.read()
        self._order.release()
        return control

    def counters(self) -> tuple[int, int]:
        """Return how many steps were applied and how many skipped, after waiting for the device."""
        control = self._read_control()
        return int(control[fields.APPLIED]), int(control[fields.SKIPPED])

    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""
        with self._device.current():
            self._device.finish()
            self._device.write(self._clip.address, np.zeros(fields.CLIP_FIELDS))
            self._progress.write(applied, skipped)
            self._rates.forget()
        self._started = [applied, skipped]

    def refusals(self) -> tuple[int, Sequence[str]]:
        """Return how many steps the device refused, and why."""
        control = self._read_control()
        return int(control[fields.REFUSED]), reasons_of(int(control[fields.REASONS]))

    def stats(self) -> Mapping[str, float]:
        """Return statistics by name; they are waited for when the first is read, and here where masters are."""
        snapshots, _ = self._copies("stats()", counts=False)
        found = LazyStats(self._plan, self._buckets, snapshots)
        beyond = {key: value for bucket in self._buckets for key, value in bucket.beyond_float16().items()}
        return {**found, **beyond} if beyond else found

    def record(self) -> CudaRecord:
        """Return copies of what the last step left, which are queued behind it and waited for when read."""
        if self._record_layout is None:
            self._record_layout = RecordLayout(
                self._buckets, self._plan.placement, self._plan.method.statistics
            )
        snapshots, control = self._copies("record()", counts=True)
        return CudaRecord(self._record_layout, self._buckets, self._started, [*snapshots, *control])

    def _copies(self, asked: str, counts: bool) -> tuple[list[Snapshot], list[Snapshot]]:
        """Queue copies of what the buckets and the clip wrote, and of the counts, behind all work so far."""
        usual = device.current_stream(self._library, self._device.index)
        with self._device.current():
            if self._device.is_capturing(usual):
                raise RuntimeError(f"{asked} cannot be captured; call it outside of capture")
            if self._progress.replayed:
                # On which streams graphs were replayed is not known here.
                self._device.finish()
            self._order.follow(usual)
            snapshots = [bucket.snapshot(usual) for bucket in self._buckets]
            snapshots.append(self._clips.take(usual))
            control = [self._progress.snapshot(usual)] if counts else []
            self._order.mark(usual)
        return snapshots, control


def _largest_in(buckets: Sequence[CudaBucket], group: int) -> float:
    """Return the largest number that the dtypes of a group's parameters can all hold."""
    return min((bucket.largest for bucket in buckets if group in bucket.group_of), default=math.inf)
