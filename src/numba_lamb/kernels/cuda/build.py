"""From a CUDA kernel's Python text to machine code, which is kept on disk like the CPU kernels'.

numba-cuda compiles to PTX and nvJitLink on to machine code for one compute capability; neither needs a GPU. The
driver loads what comes out: numba-cuda's own launching, which costs several driver calls, is left out.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from numba_lamb import _private
from numba_lamb._compile import cache_state
from numba_lamb._install import how_to_install
from numba_lamb.kernels.cuda.link import link
from numba_lamb.kernels.cuda.numpy_names import names_supplied
from numba_lamb.kernels.cuda.tools import INSTALL, PACKAGES, named, nvvm_package
from numba_lamb.kernels.cuda.tools import version as _version

_TOOLS = ("numba", "llvmlite", *PACKAGES)


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
    with names_supplied():
        from numba import cuda
        from numba.cuda import types

        if getattr(cuda, "implementation", None) != "NVIDIA":
            raise ImportError(f"arrays on a GPU need numba-cuda: {INSTALL}")
        value = types.float32 if dtype == np.float32 else types.float64
        signature = types.void(types.CPointer(types.int64), types.CPointer(value))
        try:
            text, _ = cuda.compile(kernel, signature, cc=capability, device=False, abi="numba", output="ptx")
        except Exception as error:
            told = _explained(error, capability)
            if told is None:
                raise
            raise told from error
    entry = re.search(r"\.entry\s+(\w+)", text)
    if entry is None:
        raise RuntimeError(f"numba-cuda made no entry for {kernel.__name__}")
    return str(text).replace(entry.group(1), kernel.__name__)


def _explained(error: Exception, capability: tuple[int, int]) -> Exception | None:
    """Return an error that names the package to change; None where no package is known to be at fault."""
    from cuda.bindings import nvvm
    from cuda.pathfinder import DynamicLibNotFoundError
    from numba.cuda.cudadrv.error import CCSupportError, NvvmSupportError

    if isinstance(error, DynamicLibNotFoundError | NvvmSupportError):
        return ImportError(f"arrays on a GPU need NVVM and NVRTC ({error}): {INSTALL}")
    if isinstance(error, CCSupportError):
        return RuntimeError(f"{error}; CUDA 12 supports older GPUs than CUDA 13: {how_to_install('cuda12')}")
    if isinstance(error, nvvm.nvvmError) and error.status == nvvm.Result.ERROR_INVALID_OPTION:
        return RuntimeError(
            f"NVVM must know compute capability {capability[0]}.{capability[1]}, got {named(nvvm_package())} "
            f"({error}); a newer one may: pip install --upgrade {nvvm_package()}"
        )
    if isinstance(error, AttributeError) and error.obj is np:
        release = ".".join(np.__version__.split(".")[:2])
        return RuntimeError(
            f"NumPy must have {error.name} for {named('numba-cuda')}, got NumPy {np.__version__}: "
            f"pip install --upgrade numba-cuda, or pip install 'numpy<{release}'"
        )
    return None


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


def _save(path: Path, code: bytes) -> None:
    try:
        _private.write(path, code)
        kept = path.name.rsplit("-", 1)[0]
        for older in path.parent.glob(f"{path.name.split('.')[0]}.{path.name.split('.')[1]}.*.cubin"):
            if not older.name.startswith(kept):
                older.unlink(missing_ok=True)
    except OSError:
        pass  # a full disk or a folder that turned read-only costs a compilation next time
