"""Memory of a GPU, and page-locked memory of the host beside it: had from the driver, and parked when it goes."""

import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.memory import device
from numba_lamb.memory.device import Device


class Buffer:
    """Device memory; when this goes, it is freed at the next wait for the device."""

    def __init__(self, gpu: Device, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = _allocated(gpu, max(nbytes, 1))
        weakref.finalize(self, gpu.park, "cuMemFree", self.address)


def zeros(gpu: Device, nbytes: int) -> Buffer:
    """Return device memory filled with zero bytes."""
    buffer = Buffer(gpu, nbytes)
    if nbytes:
        device.call("cuMemsetD8", buffer.address, 0, nbytes)
    return buffer


def page_locked(gpu: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a host array that copies to and from the device need not wait for; when it goes, as `Buffer`."""
    nbytes = max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, 1)
    functions = device.driver()
    with device.allocating():
        status, address = functions.cuMemHostAlloc(nbytes, 0)
    if status == functions.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise MemoryError(
            f"a page-locked table must fit into the host's free memory, got {nbytes:,} bytes, which the driver "
            "refused; free memory of the host, or raise the limit on locked memory"
        )
    device.check("cuMemHostAlloc", status)
    memory = _Memory(int(address), shape, dtype)
    weakref.finalize(memory, gpu.park, "cuMemFreeHost", int(address))
    return np.asarray(memory)


class _Memory:
    """Memory that NumPy can look at and that somebody else owns."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


def _allocated(gpu: Device, nbytes: int) -> int:
    """Return the address of new device memory, for which other libraries' caches are emptied if they must be."""
    functions = device.driver()
    full = functions.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    status, address = functions.cuMemAlloc(nbytes)
    emptied = ""
    if status == full:
        gpu.free_parked()
        emptied = _empty_caches()
        status, address = functions.cuMemAlloc(nbytes)
    if status == full:
        free, total = device.call("cuMemGetInfo")
        raise MemoryError(
            f"an optimizer's table must fit into GPU {gpu.index}'s free memory, got {nbytes:,} bytes for "
            f"{int(free):,} free of {int(total):,}{emptied}; free arrays on that GPU, or use one with more memory"
        )
    device.check("cuMemAlloc", status)
    return int(address)


def _empty_caches() -> str:
    """Give memory that no array of PyTorch or CuPy uses back to the driver; return which caches were emptied."""
    torch: Any = sys.modules.get("torch")
    cupy: Any = sys.modules.get("cupy")
    if torch is not None:
        torch.cuda.empty_cache()
    if cupy is not None:
        cupy.get_default_memory_pool().free_all_blocks()
    names = [name for name, module in (("PyTorch", torch), ("CuPy", cupy)) if module is not None]
    return f" after the cache of {' and '.join(names)} was emptied" if names else ""
