"""Every Numba option and why it is what it is.

error_model="numpy"
    Python's model tests each divisor for zero, which blocks vectorisation (8 times slower).
nogil=True
    Other Python threads run while a kernel does.
no_cfunc_wrapper=True
    The wrapper for calls from C would be compiled with each function, and nothing here calls from C.
fastmath off
    Reassociation and contraction would make the bits depend on the machine; `fma` is explicit instead.
parallel
    Each kernel exists twice, serial and with its ``prange`` over chunks threaded. Chunks never share an
    accumulator, so both give the same bits.
cache
    On disk, see `numba_lamb._cache`; ``NUMBA_LAMB_CACHE=0`` turns it off.
"""

import os
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from numba import config, njit

from numba_lamb import _cache

if config.DISABLE_JIT:
    raise ImportError(
        f"NUMBA_DISABLE_JIT must be unset or 0 where numba_lamb is imported, got {config.DISABLE_JIT}: its "
        "kernels work on addresses and cannot run as Python; unset it in the processes that import numba_lamb"
    )

_OPTIONS = {"error_model": "numpy", "nogil": True, "no_cfunc_wrapper": True}


class Kernel(NamedTuple):
    """One Python body compiled twice: for one thread, and for many with the same bits."""

    serial: Callable[..., Any]
    parallel: Callable[..., Any]


class _CacheState:
    """Where compiled kernels are kept, or why they are not."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.reason: str | None = None
        self.sources: str | None = None
        if os.environ.get("NUMBA_LAMB_CACHE", "1") == "0":
            self.reason = "turned off by NUMBA_LAMB_CACHE=0"
            return
        try:
            self.sources = _cache.source_hash()
        except OSError as error:
            self.reason = f"kernel sources cannot be read ({error})"

    def attach(self, dispatcher: Any, options: dict[str, Any]) -> None:
        """Give `dispatcher` an on-disk cache where there is a folder to write one."""
        if self.sources is None:
            return
        try:
            dispatcher._cache = _cache.KernelCache(dispatcher.py_func, options, self.sources)
        except (RuntimeError, OSError) as error:
            # At import time: Numba finds no folder that can be written, or others could write into ours.
            self.reason = str(error)
        else:
            self.folder = dispatcher._cache.cache_path


cache_state = _CacheState()


def cpu_function(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call; LLVM inlines it."""
    return njit(**_OPTIONS)(function)


def object_reader(function: Callable[..., Any]) -> Any:
    """Compile a function that reads Python objects; it keeps the GIL, so that no other thread changes them."""
    options = {"error_model": "numpy"}
    dispatcher = njit(**options)(function)
    cache_state.attach(dispatcher, options)
    return dispatcher


def cuda_function(function: Callable[..., Any]) -> Any:
    """Compile a function that CUDA kernels call, at the call: so a kernel compiles with no GPU in the machine."""
    from numba import cuda  # costs every import a fifth of a second, and only CUDA users need it

    return cuda.jit(device=True, inline="always")(function)


def cpu_kernel(function: Callable[..., Any]) -> Kernel:
    """Compile `function`, a loop over chunks, once serial and once threaded; nothing compiles until called."""

    def compiled(parallel: bool) -> Any:
        options = {**_OPTIONS, "parallel": parallel}
        dispatcher = njit(**options)(function)
        cache_state.attach(dispatcher, options)
        return dispatcher

    return Kernel(serial=compiled(False), parallel=compiled(True))


def bind(text: ModuleType, decorate: Callable[[Callable[..., Any]], Any], **primitives: Any) -> Any:
    """Return a copy of the rules in `text` compiled for one target.

    Every function defined in `text` is decorated, and the names in `primitives` (such as ``fma``) stand for
    that target's own instructions. The source text stays one; only what its free names mean changes.
    """
    bound = ModuleType(f"{text.__name__}@{decorate.__name__}")
    scope = vars(bound)
    scope.update(vars(text))
    for name, value in vars(text).items():
        if isinstance(value, FunctionType) and value.__module__ == text.__name__:
            scope[name] = decorate(FunctionType(value.__code__, scope, name))
    scope.update(primitives)
    return bound
