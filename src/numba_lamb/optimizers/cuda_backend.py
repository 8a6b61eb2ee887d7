"""CudaBackend: the phases of a step on a GPU, none of which waits for the device unless it is asked to.

The kernels of a step are queued one after another, whatever they will find: whether gradients are finite, by how
much they are clipped and how often the step was applied is decided and counted on the device.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numba_lamb import device as cuda
from numba_lamb.arrays import DeviceGradients
from numba_lamb.groups import Parameter
from numba_lamb.kernels import book as at
from numba_lamb.kernels import rows
from numba_lamb.layout import FlatLayout
from numba_lamb.numerics import rules
from numba_lamb.optimizers import inspection
from numba_lamb.optimizers.backend import Backend
from numba_lamb.optimizers.cuda_part import CudaPart
from numba_lamb.optimizers.cuda_rates import CudaRates, Progress

if TYPE_CHECKING:
    from numba_lamb.optimizers.base import Optimizer

_REASONS = {
    1: "a captured step was replayed past capture_steps",
    2: "a rate in device memory was negative, not finite, or more than the parameters' dtype can hold",
}


class LazyStats(Mapping[str, float]):
    """Statistics as they were when asked for, which reach the host when the first of them is read."""

    def __init__(
        self, optimizer: "Optimizer", snapshots: Sequence[cuda.Snapshot], parts: Sequence[CudaPart]
    ) -> None:
        self._optimizer = optimizer
        self._snapshots = snapshots
        self._parts = parts
        self._found: dict[str, float] | None = None

    def _values(self) -> dict[str, float]:
        if self._found is None:
            *of_parts, clip = [snapshot.read() for snapshot in self._snapshots]
            written = [part.written_in(memory) for part, memory in zip(self._parts, of_parts, strict=True)]
            norm = rules.gradient_norm(float(clip[at.CLIP_NORM]), self._optimizer._loss_scale)
            self._found = self._optimizer._stats_of(written, norm if clip[at.CLIPPED] else None)
        return self._found

    def __getitem__(self, name: str) -> float:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __repr__(self) -> str:
        return repr(self._values())


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

    def __init__(self, index: int, library: str | None, capture_steps: int | None) -> None:
        if capture_steps is not None and (
            isinstance(capture_steps, bool) or not isinstance(capture_steps, int)
        ):
            raise TypeError(f"capture_steps must be an int or None, not {type(capture_steps).__name__}")
        if capture_steps is not None and capture_steps < 1:
            raise ValueError(f"capture_steps must be at least 1, not {capture_steps}")
        self.reader = self._gradients = DeviceGradients(index)
        self._library = library
        self._device = cuda.open_device(index)
        self._held: deque[tuple[cuda.Event, Any]] = deque()
        self._stream = cuda.LEGACY_STREAM
        with self._device.current():
            self._control = self._device.zeros(at.CONTROLS * 8)
            self._clip = self._device.zeros(at.CLIP_FIELDS * 8)
            self._progress = Progress(self._device, self._control.address)
            self._rates = CudaRates(self._device, self._progress, capture_steps)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "an optimizer of arrays on a GPU cannot be copied or pickled; make another one and give it this one's "
            "state with state_dict and load_state_dict"
        )

    def new_part(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        decayed: Sequence[bool],
        state_names: Sequence[str],
    ) -> CudaPart:
        """Return tables and zeroed state for the layers of `dtype`."""
        for parameter in parameters:
            if parameter.storage.device not in (None, self._device.index):
                raise ValueError(
                    f"parameter {parameter.name!r} must be on GPU {self._device.index}, like the others, "
                    f"not on GPU {parameter.storage.device}"
                )
            if not parameter.storage.on_gpu:
                raise ValueError(
                    f"parameter {parameter.name!r} must be on GPU {self._device.index}, like the others, "
                    "not a NumPy array"
                )
        with self._device.current():
            return CudaPart(layout, dtype, parameters, decayed, state_names, self._device)

    def placed(self, optimizer: "Optimizer") -> None:
        """Make the rates' tables, tell the parts what never changes, and wait until all of it is there."""
        with self._device.current():
            self._rates.place(optimizer._groups)
            for part in self._parts_of(optimizer):
                part.factors[...] = optimizer._decay_factors(part)
                part.trust[...] = optimizer._trust
                book = part.book
                book[at.GROUPS], book[at.RATE_TABLE] = self._rates.mirror.address, self._rates.table.address
                book[at.CONTROL], book[at.CLIP] = self._control.address, self._clip.address
                book[at.GROUP_COUNT] = len(optimizer.param_groups)
                book[at.TABLE_STEPS], book[at.TABLE_REPEATS] = self._rates.steps, self._rates.repeats
                # LAMB centralizes the gradient itself, with no decay in it.
                book[at.CENTERED_DECAY] = optimizer._betas is None
                book[at.LAST_PART] = part is optimizer._parts[-1]
                part.adapts = bool(part.scalars[:, rows.ADAPT].any())
            self._device.finish()

    def _parts_of(self, optimizer: "Optimizer") -> list[CudaPart]:
        return [part for part in optimizer._parts if isinstance(part, CudaPart)]

    # -- the step ------------------------------------------------------------------------------------------

    def step(self, optimizer: "Optimizer", gradients: Any, stream: object) -> bool:
        """Queue a step and return whether it was: always, unless something was refused."""
        index = self._device.index
        usual = cuda.current_stream(self._library, index)
        target = usual if stream is None else cuda.stream_address(stream)
        with self._device.current():
            capturing = self._device.is_capturing(target)
            if capturing and optimizer._nonfinite == "raise":
                raise RuntimeError('a step with nonfinite="raise" waits for the GPU and cannot be captured')
            self._gradients.producers.clear()
            held = optimizer._gradients.update(gradients)
            for producer in self._gradients.producers:
                self._device.order(producer, target)
            parts = self._parts_of(optimizer)
            self._rates.prepare(_largest_of(parts), target, capturing)
            for part in parts:
                self._tell(optimizer, part)
                if capturing:
                    # A replay must not depend on what other steps send in between.
                    part.mirror.forget()
                part.mirror.send(target, capturing)
            self._queue(optimizer, parts, target)
            self._stream = target
            if target != usual and not capturing:
                self._hold(held, target)
            if capturing:
                self._progress.replayed = True
            else:
                self._progress.queued(target)
        return True

    def _tell(self, optimizer: "Optimizer", part: CudaPart) -> None:
        limit = optimizer.max_grad_norm
        part.inspect_gradients(checks=optimizer._nonfinite != "propagate", clips=limit is not None)
        constants = part.constants
        constants[at.MAX_GRAD_NORM] = 0.0 if limit is None else limit
        constants[at.LOSS_SCALE] = optimizer._loss_scale
        constants[at.CORRECTED] = optimizer._betas is not None
        if optimizer._betas is not None:
            constants[at.BETA1], constants[at.BETA2] = optimizer._betas

    def _queue(self, optimizer: "Optimizer", parts: Sequence[CudaPart], stream: int) -> None:
        for part in parts:
            part.run("open_step", stream)
        if optimizer.max_grad_norm is not None:
            for name in ("gradient_squares", "clip_gradients"):
                for part in parts:
                    part.run(name, stream)
            for part in parts:
                part.run("scale_gradients", stream)
        if optimizer._nonfinite == "raise":
            self._verify(optimizer, parts, stream)
        for part in parts:
            if len(part.row_table):
                part.run("row_means", stream)
            if optimizer._betas is not None:
                part.run("lamb_advance", stream)
                part.run("lamb_ratio", stream)
                part.run("lamb_descend", stream)
            else:
                if part.adapts:
                    part.run("lars_sums", stream)
                part.run("lars_ratio", stream)
                part.run("lars_update", stream)

    def _verify(self, optimizer: "Optimizer", parts: Sequence[CudaPart], stream: int) -> None:
        """Wait for what the device found, and raise if it must stop the step; nothing was changed then."""
        self._device.synchronize(stream)
        control = self._progress.read()
        if not control[[at.FOUND, at.ENDED, at.BAD_RATE]].any():
            return
        clip = np.zeros(at.CLIP_FIELDS)
        self._device.read(self._clip.address, clip)
        norm = rules.gradient_norm(float(clip[at.CLIP_SUM]), optimizer._loss_scale)
        clip[at.CLIP_SUM] = 0.0
        self._device.write(self._clip.address, clip)
        refused = control[at.ENDED] + 2 * control[at.BAD_RATE]
        control[[at.FOUND, at.ENDED, at.BAD_RATE]] = 0
        self._device.write(self._control.address, control)
        if refused:
            raise ValueError(f"{' and '.join(_reasons(refused))}; nothing was changed")
        looked = [(part, part.read("nonfinite"), part.read("squares")) for part in parts]
        limited = optimizer.max_grad_norm is not None
        inspection.require(looked, norm if limited else None)

    def _hold(self, gradients: Sequence[Any], stream: int) -> None:
        """Keep gradients that another stream reads from being given away before it has."""
        torch: Any = sys.modules.get("torch")
        others = []
        for gradient in gradients:
            if torch is not None and isinstance(gradient, torch.Tensor):
                gradient.record_stream(torch.cuda.ExternalStream(stream, device=self._device.index))
            elif gradient is not None:
                others.append(gradient)
        while self._held and self._held[0][0].is_reached():
            self._held.popleft()
        if others:
            event = cuda.Event(self._device)
            event.record(stream)
            self._held.append((event, others))

    # -- what the device knows -----------------------------------------------------------------------------

    def counters(self) -> tuple[int, int]:
        """Return how many steps were applied and how many skipped, after waiting for the device."""
        with self._device.current():
            control = self._progress.read()
        return int(control[at.APPLIED]), int(control[at.SKIPPED])

    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""
        with self._device.current():
            self._device.finish()
            self._device.write(self._clip.address, np.zeros(at.CLIP_FIELDS))
            self._progress.write(applied, skipped)
            self._rates.forget()

    def refusals(self) -> tuple[int, Sequence[str]]:
        """Return how many steps the device refused, and why."""
        with self._device.current():
            control = self._progress.read()
        return int(control[at.REFUSED]), _reasons(int(control[at.REASONS]))

    def stats(self, optimizer: "Optimizer") -> Mapping[str, float]:
        """Return the optimizer's statistics by name; they are waited for when the first is read."""
        parts = self._parts_of(optimizer)
        with self._device.current():
            snapshots = [part.snapshot(self._stream) for part in parts]
            clip = np.zeros(at.CLIP_FIELDS)
            snapshots.append(cuda.Snapshot(self._device, self._clip.address, clip, self._stream))
        return LazyStats(optimizer, snapshots, parts)


def _reasons(bits: int) -> list[str]:
    return [reason for bit, reason in _REASONS.items() if bits & bit]


def _largest_of(parts: Sequence[CudaPart]) -> Callable[[int], float]:
    """Return a function from a group to the largest number that its parameters' dtypes can hold."""

    def largest(group: int) -> float:
        return min((part.largest for part in parts if group in part.group_of), default=np.inf)

    return largest
