"""Every kernel that reads arrays of layers, made anew for arrays in other formats.

The texts are those of `numba_lamb.kernels.cuda.passes`, `lans`, `frame` and `exchange`, in which the names of
`numba_lamb.kernels.cuda.stored` stand for those of `block`. So kernels for what is stored as it is computed with
have no trace of formats.
"""

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from numba_lamb._compile import cuda_function
from numba_lamb.kernels.cuda import exchange, frame, lans, passes, stored

_SUFFIX = "_stored"
_NAMES = (
    "STORED",
    "ROWS",
    "STRIDE",
    "array_of",
    "own_rows",
    "load",
    "load_fenced",
    "decode",
    "until",
    "key_of",
    "store",
    "store_rows",
    "make_keys",
)


def _made_anew(module: ModuleType) -> dict[str, Callable[[Any, Any], None]]:
    """Return the kernels of a module that use any of those names, directly or not, by their names."""
    scope = {**vars(module), **{name: getattr(stored, name) for name in _NAMES}}
    changed: set[str] = set(_NAMES)
    kernels: dict[str, Callable[[Any, Any], None]] = {}
    for name, value in vars(module).items():
        text = getattr(value, "py_func", value)
        if not isinstance(text, FunctionType) or text.__module__ != module.__name__:
            continue
        if changed.isdisjoint(text.__code__.co_names):
            continue
        changed.add(name)
        if text is value:
            kernels[name] = scope[name] = FunctionType(text.__code__, scope, name + _SUFFIX)
        else:
            scope[name] = cuda_function(FunctionType(text.__code__, scope, name))
    return kernels


STORED_KERNELS = {
    name: kernel for module in (exchange, frame, lans, passes) for name, kernel in _made_anew(module).items()
}
"""By the names of those whose place they take."""
