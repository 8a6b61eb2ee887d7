"""A GPU for tests that have none: compiled kernels run by the PTX interpreter behind a double of the driver."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.kernels.cuda import build
from numba_lamb.memory import cuda_memory, device
from tests.cuda.kernel_texts import kernel_ptx
from tests.cuda.ptx.driver import FakeDriver
from tests.helpers import frozen

Arrays = Mapping[str, Any]


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
        self.more: dict[str, Any] = {}

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, self.read_only),
            "strides": None,
            "version": 3,
            "stream": self.stream,
            **self.more,
        }

    def get(self) -> np.ndarray:
        """The values when all that is queued is done."""
        self.gpu.driver.progress()
        return self.memory.copy()


class Gpu:
    """The double's driver, and arrays on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> None:
        self.driver = FakeDriver(devices)
        monkeypatch.setattr(device, "driver", lambda: self.driver)
        monkeypatch.setattr(device, "_devices", {})
        monkeypatch.setattr(device, "_process", None)
        monkeypatch.setattr(build, "machine_code", machine_code)
        self._finalizers: list[Any] = []
        for module in (device, cuda_memory):
            monkeypatch.setattr(module, "weakref", SimpleNamespace(finalize=self._finalize))

    def _finalize(self, *arguments: Any) -> None:
        self._finalizers.append(weakref.finalize(*arguments))

    def close(self) -> None:
        """Keep what outlives the double from talking to a real driver."""
        for finalizer in self._finalizers:
            finalizer.detach()

    def array(self, values: Any, **options: Any) -> GpuArray:
        return GpuArray(self, values, **options)

    def arrays(self, values: Arrays, **options: Any) -> dict[str, Any]:
        """These host arrays on the GPU; None stays."""
        return {
            name: None if value is None else GpuArray(self, value, **options)
            for name, value in values.items()
        }


@contextmanager
def fresh_gpu(devices: int = 1) -> Iterator[Gpu]:
    """A GPU of its own for each example of a hypothesis test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        gpu = Gpu(monkeypatch, devices)
        try:
            yield gpu
        finally:
            gpu.close()


class Pair:
    """One optimizer on NumPy arrays and one on the GPU, which must stay equal to the byte.

    `make` gets the parameters and returns an optimizer; it is called once for each.
    """

    def __init__(
        self, gpu: Gpu, weights: Arrays, make: Callable[[Any], Any], misaligned_by: int = 0, device: int = 0
    ) -> None:
        self.gpu = gpu
        self.on_cpu = {name: np.array(value) for name, value in weights.items()}
        self.on_gpu = gpu.arrays(weights, misaligned_by=misaligned_by, device=device)
        self.cpu = make(self.on_cpu)
        self.gpu_optimizer = make(self.on_gpu)

    @property
    def both(self) -> tuple[Any, Any]:
        return self.cpu, self.gpu_optimizer

    def step(self, gradients: Arrays, stream: Any = None, misaligned_by: int = 0) -> None:
        self.cpu.step(gradients)
        self.gpu_optimizer.step(self.gpu.arrays(gradients, misaligned_by=misaligned_by), stream)

    def check(self, stats: bool = True) -> None:
        """Compare all there is, by bytes; NaNs by being one, since their payload is no promise."""
        on_gpu = {name: array.get() for name, array in self.on_gpu.items()}
        assert_same(on_gpu, self.on_cpu)
        assert_same(self.gpu_optimizer.state_dict(), self.cpu.state_dict())
        if stats:
            assert_same(dict(self.gpu_optimizer.stats()), dict(self.cpu.stats()))


def one_nan(tree: Any) -> Any:
    """`tree` with all NaNs alike."""
    if isinstance(tree, dict):
        return {key: one_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [one_nan(value) for value in tree]
    if isinstance(tree, np.ndarray) and tree.dtype.kind not in "iu":
        return np.where(np.isnan(tree), np.asarray(np.nan, tree.dtype), tree)
    return tree


def assert_same(found: Any, expected: Any) -> None:
    found, expected = one_nan(found), one_nan(expected)
    if frozen(found) != frozen(expected):
        np.testing.assert_equal(found, expected)
        raise AssertionError(f"equal values with different bits: {found} and {expected}")


def gradients_like(weights: Arrays, random: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: random.standard_normal(value.shape).astype(value.dtype) for name, value in weights.items()}


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "Lamb": lambda params, lr=0.01, **options: nl.Lamb(params, lr, **options),
    "Momentum": lambda params, lr=0.01, **options: nl.Momentum(params, lr, 0.9, **options),
    "Lars": lambda params, lr=0.01, **options: nl.Lars(nl.Momentum(params, lr, 0.9, **options)),
}
