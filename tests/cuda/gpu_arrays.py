"""Arrays on a real GPU as each library makes them, and why there are none where there are none."""

import weakref
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest

from numba_lamb.memory import device


def why_no_gpu() -> str | None:
    """Return what is missing to run tests on a GPU, None where one can be used."""
    try:
        from cuda.bindings import driver

        status, *_ = driver.cuInit(0)
        if status == driver.CUresult.CUDA_SUCCESS:
            status, count = driver.cuDeviceGetCount()
            return None if count else "needs an NVIDIA GPU: the driver counts none"
        return f"needs an NVIDIA GPU: cuInit says {status.name}"
    # Whatever the bindings raise where there is no driver: it differs from release to release.
    except Exception as error:
        return f"needs an NVIDIA GPU: {type(error).__name__}: {' '.join(str(error).split())}"


NO_GPU = why_no_gpu()


class Library(NamedTuple):
    """How a library copies to the GPU, leaving out some elements' room before the first, and back."""

    name: str
    put: Callable[..., Any]
    get: Callable[[Any], np.ndarray]


class DriverArray:
    """Device memory that nothing but the driver knows of."""

    def __init__(self, values: np.ndarray, skip: int = 0) -> None:
        self._gpu = device.open_device(0)
        with self._gpu.current():
            base = int(device.call("cuMemAlloc", values.nbytes + skip * values.itemsize + 1))
        self._address = base + skip * values.itemsize
        weakref.finalize(self, _free, self._gpu, base)
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim
        self.write(values)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._address, False),
            "version": 3,
        }

    def write(self, values: np.ndarray) -> None:
        """Copy from an array of the same form, which begins and ends with nothing under way."""
        with self._gpu.current():
            self._gpu.finish()
            if values.nbytes:
                device.call("cuMemcpyHtoD", self._address, values.ctypes.data, values.nbytes)

    def get(self) -> np.ndarray:
        values = np.empty(self.shape, self.dtype)
        with self._gpu.current():
            self._gpu.finish()
            if values.nbytes:
                device.call("cuMemcpyDtoH", values.ctypes.data, self._address, values.nbytes)
        return values


def _free(gpu: device.Device, address: int) -> None:
    with gpu.current():
        device.call("cuMemFree", address)


def finish() -> None:
    """Wait for all that the GPU has to do."""
    gpu = device.open_device(0)
    with gpu.current():
        gpu.finish()


def padded(values: np.ndarray, skip: int) -> np.ndarray:
    """Return the values as one row with `skip` more before them."""
    return np.concatenate([np.zeros(skip, values.dtype), np.ravel(values)])


def bare() -> Library:
    return Library(
        "bare", lambda values, skip=0: DriverArray(np.array(values, order="C"), skip), DriverArray.get
    )


def of_numba() -> Library:
    from numba import cuda

    def put(values: np.ndarray, skip: int = 0) -> Any:
        if not skip or not values.size or not values.ndim:
            return cuda.to_device(np.array(values, order="C"))
        return cuda.to_device(padded(values, skip))[skip:].reshape(values.shape)

    return Library("numba", put, lambda array: np.asarray(array.copy_to_host()))


def of_cupy() -> Library:
    import cupy

    def put(values: np.ndarray, skip: int = 0) -> Any:
        return cupy.asarray(padded(values, skip))[skip:].reshape(values.shape)

    return Library("cupy", put, cupy.asnumpy)


def of_torch() -> Library:
    import torch

    def put(values: np.ndarray, skip: int = 0) -> Any:
        return torch.from_numpy(padded(values, skip)).cuda()[skip:].view(values.shape)

    return Library("torch", put, lambda tensor: tensor.cpu().numpy())


MAKERS = {"bare": bare, "numba": of_numba, "cupy": of_cupy, "torch": of_torch}
NEEDS = {"bare": "numpy", "numba": "numba_cuda", "cupy": "cupy", "torch": "torch"}


def library_called(name: str) -> Library:
    """Return a library, or skip the test where it is not installed or was built without CUDA."""
    if find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    if name == "torch":
        cuda_torch()
    return MAKERS[name]()


def cuda_torch() -> Any:
    """Return PyTorch, or skip the test where it cannot use the GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch was built without CUDA")
    return torch
