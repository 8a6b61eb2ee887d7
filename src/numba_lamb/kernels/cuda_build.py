"""From a CUDA kernel's Python text to machine code, which is kept on disk like the CPU kernels'.

numba-cuda compiles to PTX and nvJitLink on to machine code for one compute capability; neither needs a GPU. The
driver loads what comes out: numba-cuda's own launching, which costs several driver calls, is left out.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from numba_lamb import _private
from numba_lamb._compile import cache_state
from numba_lamb.kernels.book import THREADS

_INSTALL = "pip install 'numba-lamb[cuda13]' (driver 580 or newer) or 'numba-lamb[cuda12]'"
_TOOLS = (
    "numba",
    "numba-cuda",
    "llvmlite",
    "cuda-bindings",
    "nvidia-nvvm",
    "nvidia-nvjitlink",
    "nvidia-nvjitlink-cu12",
)

_LEAST_BLOCKS = {("lamb_advance", "float32"): 4}
"""Blocks that a multiprocessor must hold, where the compiler would use registers for fewer without need."""


def machine_code(kernel: Callable[..., None], dtype: np.dtype[Any], capability: tuple[int, int]) -> bytes:
    """Return a kernel's machine code for parameters of `dtype`, from the disk where it was made before."""
    path = _cached_path(kernel, dtype, capability)
    found = None if path is None else _private.read(path)
    if found is not None:
        return found
    code = link(ptx(kernel, dtype, capability), capability)
    if path is not None:
        _save(path, code)
    return code


def ptx(kernel: Callable[..., None], dtype: np.dtype[Any], capability: tuple[int, int]) -> str:
    """Return a kernel's PTX, in which its entry has the kernel's own name."""
    from numba import cuda
    from numba.cuda import types

    if getattr(cuda, "implementation", None) != "NVIDIA":
        raise ImportError(f"arrays on a GPU need numba-cuda: {_INSTALL}")
    value = types.float32 if dtype == np.float32 else types.float64
    signature = types.void(types.CPointer(types.int64), types.CPointer(value))
    blocks = _LEAST_BLOCKS.get((kernel.__name__, dtype.name))
    bounds = None if blocks is None else (THREADS, blocks)
    text, _ = cuda.compile(
        kernel, signature, cc=capability, device=False, abi="numba", output="ptx", launch_bounds=bounds
    )
    entry = re.search(r"\.entry\s+(\w+)", text)
    if entry is None:
        raise RuntimeError(f"numba-cuda made no entry for {kernel.__name__}")
    return str(text).replace(entry.group(1), kernel.__name__)


def link(text: str, capability: tuple[int, int]) -> bytes:
    """Return the machine code that nvJitLink makes of PTX."""
    try:
        from cuda.bindings import nvjitlink

        handle = nvjitlink.create(1, [f"-arch=sm_{capability[0]}{capability[1]}"])
    except (ImportError, RuntimeError) as error:
        # The bindings may be there without the library itself.
        raise ImportError(f"arrays on a GPU need nvJitLink ({error}): {_INSTALL}") from error
    try:
        source = text.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, source, len(source), "numba_lamb")
        nvjitlink.complete(handle)
        code = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, code)
    except Exception as error:
        log = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, log)
        raise RuntimeError(f"nvJitLink failed: {log.decode(errors='replace')}") from error
    finally:
        nvjitlink.destroy(handle)
    return bytes(code)


def _cached_path(
    kernel: Callable[..., None], dtype: np.dtype[Any], capability: tuple[int, int]
) -> Path | None:
    sources, folder = cache_state.sources, cache_state.folder
    if sources is None or folder is None:
        return None
    versions = [f"{name} {_version(name)}" for name in _TOOLS]
    key = f"{sources} {kernel.__module__}.{kernel.__name__} {dtype.name} {capability} {versions}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    return Path(folder, f"cuda.{kernel.__name__}-{dtype.name}.{sources[:8]}-{digest}.cubin")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _save(path: Path, code: bytes) -> None:
    try:
        _private.write(path, code)
        kept = path.name.rsplit("-", 1)[0]
        for older in path.parent.glob(f"{path.name.split('.')[0]}.{path.name.split('.')[1]}.*.cubin"):
            if not older.name.startswith(kept):
                older.unlink(missing_ok=True)
    except OSError:
        pass  # a full disk or a folder that turned read-only costs a compilation next time
