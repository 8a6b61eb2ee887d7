"""The measurement on a GPU, run on the double of a driver, in the process of a test or as a script of its own.

As a script it is ``asv_bench/gpu.py`` with the double for a GPU and tiny profiles.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.cuda.double import Gpu, fresh_gpu

SHAPES = [(5,), (2, 65)]
FOLDER = Path(__file__).parents[2] / "asv_bench"


class Lab:
    """The double of a GPU instead of PyTorch's; everything takes 1 microsecond more than the last time."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.clock = 0.0
        self.taken: list[str] = []

    def arrays(self, shapes: Sequence[tuple[int, ...]], seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        return [self.gpu.array(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]

    def copies(self, arrays: Sequence[Any]) -> list[Any]:
        return [self.gpu.array(array.get()) for array in arrays]

    def stream(self) -> int:
        return 0

    def finish(self) -> None:
        self.gpu.driver.progress()

    def free(self) -> None:
        pass

    def seconds(self, step: Callable[[], object], steps: int) -> float:
        step()
        self.clock += 1e-6
        return self.clock

    def seconds_of_each(self, steps: Sequence[Callable[[], object]]) -> list[float]:
        return [self.seconds(step, 1) for step in steps]

    def copy(self) -> tuple[Callable[[], object], int]:
        return lambda: None, 1000

    sweep = copy

    def peers(self, shapes: Any, gradients: Any) -> dict[str, Any]:
        def broken() -> Any:
            raise ImportError("no such peer")

        return {"adamw-fused": (lambda: lambda: None, 28), "broken": (broken, 52)}

    def graph(self, step: Callable[[], object]) -> Callable[[], object]:
        step()
        return lambda: None


def main() -> int:
    sys.path.insert(0, str(FOLDER))
    from numba_lamb.cli.bench import profiles

    profiles.PROFILES.update(dict.fromkeys(profiles.PROFILES, SHAPES))
    import gpu
    import gpu_sections

    gpu_sections.ROUNDS = 2
    with fresh_gpu() as double:
        gpu_sections.new_lab = lambda: Lab(double)
        return int(gpu.main(command=(sys.executable, __file__)))


if __name__ == "__main__":
    sys.exit(main())
