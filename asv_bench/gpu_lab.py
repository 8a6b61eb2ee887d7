"""What the measurement needs of a GPU, by way of PyTorch: arrays, a clock, yardsticks and peers."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from numba_lamb.cli.bench.profiles import Shape
from numba_lamb.cli.bench.subjects import DECAY, RATE

COPIED = 2_000_000_000
"""Bytes that the copy reads, and as many that it writes: far more than any cache holds."""
LONGEST_QUEUEING = 2e-3
"""Seconds that queueing one step may take the host; what takes longer is not kept out of the GPU's time."""

Step = Callable[[], object]


class TorchLab:
    """The first GPU that PyTorch sees."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no GPU")
        cycles = 20_000_000
        torch.cuda._sleep(cycles)
        self.finish()
        # So long is one cycle of the sleep, whatever the clock is now.
        self._cycles_per_second = cycles / self._seconds(lambda: torch.cuda._sleep(cycles))

    def arrays(self, shapes: Sequence[Shape], seed: int) -> list[Any]:
        """Return normally distributed float32 tensors."""
        generator = torch.Generator("cuda").manual_seed(seed)
        return [torch.randn(shape, generator=generator, device="cuda") for shape in shapes]

    def copies(self, arrays: Sequence[Any]) -> list[Any]:
        """Return new tensors with the same values."""
        return [tensor.clone() for tensor in arrays]

    def stream(self) -> int:
        """Return the address of the current stream."""
        return int(torch.cuda.current_stream().cuda_stream)

    def finish(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()

    def free(self) -> None:
        """Give cached memory back."""
        torch.cuda.empty_cache()

    def seconds(self, step: Step, steps: int) -> float:
        """Return the GPU's time of one step, of so many queued without a gap.

        The GPU sleeps before them until the host has queued them all.
        """
        self._sleep(steps * self._queueing(step))

        def all_steps() -> None:
            for _ in range(steps):
                step()

        return self._seconds(all_steps) / steps

    def seconds_of_each(self, steps: Sequence[Step]) -> list[float]:
        """Return the GPU's time of each of several steps queued without a gap."""
        self._sleep(LONGEST_QUEUEING)
        marks = [self._mark()]
        for step in steps:
            step()
            marks.append(self._mark())
        marks[-1].synchronize()
        return [1e-3 * one.elapsed_time(other) for one, other in pairwise(marks)]

    def copy(self) -> tuple[Step, int]:
        """Return a copy between two large buffers, and the bytes that it moves."""
        source = torch.zeros(COPIED // 4, device="cuda")
        target = torch.empty_like(source)
        return lambda: target.copy_(source), 2 * COPIED

    def sweep(self) -> tuple[Step, int]:
        """Return a multiplication in place, and the bytes that it moves."""
        values = torch.zeros(COPIED // 4, device="cuda")
        return lambda: values.mul_(0.999), 2 * COPIED

    def peers(
        self, shapes: Sequence[Shape], gradients: Sequence[Any]
    ) -> dict[str, tuple[Callable[[], Step], float]]:
        """Return for each peer what sets up its step, and its bytes per parameter."""
        found: dict[str, tuple[Callable[[], Step], float]] = {
            "adamw-fused": (lambda: self.adamw(shapes, gradients).step, 28),
        }
        if importlib.util.find_spec("apex") is not None:
            found["apex-lamb"] = (lambda: self.apex(shapes, gradients), 52)
        return found

    def adamw(self, shapes: Sequence[Shape], gradients: Sequence[Any]) -> Any:
        """Return PyTorch's fused AdamW with these gradients."""
        return torch.optim.AdamW(self._parameters(shapes, gradients), lr=RATE, weight_decay=DECAY, fused=True)

    def apex(self, shapes: Sequence[Shape], gradients: Sequence[Any]) -> Step:
        """Return the step of Apex's FusedLAMB."""
        from apex.optimizers import FusedLAMB

        step: Step = FusedLAMB(self._parameters(shapes, gradients), lr=RATE, weight_decay=DECAY).step
        return step

    def graph(self, step: Step) -> Step:
        """Return the replay of `step`, captured."""
        self.finish()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        replay: Step = captured.replay
        return replay

    def _parameters(self, shapes: Sequence[Shape], gradients: Sequence[Any]) -> list[Any]:
        parameters = [torch.nn.Parameter(tensor) for tensor in self.arrays(shapes, 0)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return parameters

    def _queueing(self, step: Step) -> float:
        self.finish()
        start = time.perf_counter()
        step()
        taken = time.perf_counter() - start
        self.finish()
        return min(taken, LONGEST_QUEUEING)

    def _sleep(self, seconds: float) -> None:
        # Half as long again, for a host that is slower the next time.
        torch.cuda._sleep(int(self._cycles_per_second * (1.5 * seconds + 100e-6)))

    def _seconds(self, work: Step) -> float:
        start = self._mark()
        work()
        end = self._mark()
        end.synchronize()
        return float(1e-3 * start.elapsed_time(end))

    def _mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
