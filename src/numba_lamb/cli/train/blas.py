"""NumPy's matrix products on one thread: sums then have one order, on any number of cores."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

_NAMES = [
    (f"{prefix}openblas_set_num_threads{suffix}", f"{prefix}openblas_get_num_threads{suffix}")
    for prefix in ("scipy_", "")
    for suffix in ("64_", "")
]


@contextmanager
def one_thread() -> Iterator[None]:
    """Have NumPy's OpenBLAS, which its wheels bring, use one thread; another BLAS is left as it is.

    Matrices as small as those of the demonstration gain nothing from more.
    """
    found = thread_functions()
    if found is None:
        yield
        return
    set_threads, get_threads = found
    before = get_threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)


def thread_functions() -> tuple[Any, Any] | None:
    """Return what sets and what gets the threads of NumPy's OpenBLAS; None if it has another BLAS."""
    spec = find_spec("numpy._core._multiarray_umath")
    if spec is None or spec.origin is None:
        return None
    try:
        # Symbols are looked for in what the module is linked with, too.
        library = ctypes.CDLL(spec.origin)
    except OSError:
        return None
    for set_name, get_name in _NAMES:
        if hasattr(library, set_name) and hasattr(library, get_name):
            return getattr(library, set_name), getattr(library, get_name)
    return None
