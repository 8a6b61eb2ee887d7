"""Print what each optimizer allocates on a GPU, as the table in docs/benchmarks/cuda.md; needs no GPU.

``python asv_bench/cuda_memory.py``; the driver is the tests' double, which counts bytes and runs no kernel.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# The double is the tests'.
sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_sections import OURS

from numba_lamb.cli.bench.profiles import PROFILES, Shape, parameter_count
from tests.cuda import double
from tests.cuda.ptx.driver import OK, FakeDriver
from tests.cuda.ptx.driver_types import CUresult

MEASURED = ("bert-large", "resnet-50", "200-tiny")
SHOWN = ("lamb-checked", "lars", "momentum")
STEPS = 400
"""More than are ever queued with tables of their own."""


class Ledger(FakeDriver):
    """A driver that knows what was allocated, and has memory behind it where somebody writes."""

    def __init__(self, devices: int = 1) -> None:
        super().__init__(devices)
        self.perform = lambda name, arguments: None
        self.allocated: dict[int, int] = {}

    def cuMemAlloc(self, size: int) -> Any:
        address = self.allocate(np.empty(size, dtype=np.uint8))
        self.allocated[address] = size
        return CUresult.CUDA_SUCCESS, address

    def cuMemsetD8(self, address: int, value: int, size: int) -> Any:
        return OK

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory that are allocated."""
        return sum(size for address, size in self.allocated.items() if address in self.owners)

    @property
    def pinned_bytes(self) -> int:
        """Bytes of page-locked memory that are allocated."""
        return sum(memory.nbytes for memory in self.host.values())


class Array:
    """A float32 array on the GPU that nobody has written to."""

    def __init__(self, driver: Ledger, shape: Shape) -> None:
        self.memory = np.empty(shape, dtype=np.float32)
        self.ndim = len(shape)
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (driver.allocate(self.memory), False),
            "version": 3,
        }


def row(profile: str, subject: str) -> str:
    """Return one row of the table: bytes with the optimizer made, and the most that stay page-locked later."""
    moved, make = OURS[subject]
    shapes = PROFILES[profile]
    count = parameter_count(shapes)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(double, "FakeDriver", Ledger)
        gpu = double.Gpu(monkeypatch)
        driver: Any = gpu.driver
        weights, *gradients = [[Array(driver, shape) for shape in shapes] for _ in range(3)]
        optimizer = make(weights)
        device, made = driver.device_bytes, driver.pinned_bytes
        # Other arrays in each step, none of which the GPU gets on with.
        for step in range(STEPS):
            optimizer.step(gradients[step % 2])
        assert driver.device_bytes == device
        most = driver.pinned_bytes
        gpu.close()
    cells = [
        f"{device / 1e6:,.1f}",
        f"{device / count:.2f}",
        f"{made / 1e6:.2f}",
        f"{made / count:.3f}",
        f"{most / 1e6:.1f}",
        str(moved),
    ]
    return f"| {profile}, {count / 1e6:.1f} M | {subject} | {' | '.join(cells)} |"


if __name__ == "__main__":
    heads = ("device, MB", "B/param", "page-locked, MB", "B/param", "at most, MB", "moved, B/param")
    print("| parameters | optimizer |", " | ".join(heads), "|")
    print("| --- | --- |", " | ".join(["---:"] * len(heads)), "|")
    for profile in MEASURED:
        for subject in SHOWN:
            print(row(profile, subject), flush=True)
