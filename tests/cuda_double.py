"""A GPU for tests that have none: compiled kernels run by the PTX interpreter behind a double of the driver."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from numba_lamb import device
from numba_lamb.kernels import cuda_build
from ptx.driver import FakeDriver


@cache
def kernel_ptx(kernel: Any, dtype: str, capability: tuple[int, int]) -> str:
    return cuda_build.ptx(kernel, np.dtype(dtype), capability)


def machine_code(kernel: Any, dtype: np.dtype[Any], capability: tuple[int, int]) -> bytes:
    return kernel_ptx(kernel, dtype.name, capability).encode()


class GpuArray:
    """An array on the double's GPU, as other libraries show theirs: by ``__cuda_array_interface__``."""

    def __init__(
        self, gpu: "Gpu", values: Any, device: int = 0, misaligned_by: int = 0, stream: int | None = None
    ):
        self.gpu = gpu
        self.memory = np.array(values, order="C")
        self.shape, self.dtype, self.ndim = self.memory.shape, self.memory.dtype, self.memory.ndim
        self.address = 0
        if self.memory.size:
            self.address = gpu.driver.allocate(self.memory, device, misaligned_by)
        self.stream = stream
        self.read_only = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, self.read_only),
            "strides": None,
            "version": 3,
            "stream": self.stream,
        }

    def item(self) -> Any:
        return self.get().item()

    def get(self) -> np.ndarray:
        self.gpu.driver.finish()
        return self.memory.copy()


class Gpu:
    """The double's driver, and arrays on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> None:
        self.driver = FakeDriver(devices)
        monkeypatch.setattr(device, "driver", lambda: self.driver)
        monkeypatch.setattr(device, "_devices", {})
        monkeypatch.setattr(cuda_build, "machine_code", machine_code)

    def array(self, values: Any, **options: Any) -> GpuArray:
        return GpuArray(self, values, **options)


@pytest.fixture(name="gpu")
def gpu_fixture(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)
