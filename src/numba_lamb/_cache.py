"""The on-disk kernel cache: one file per compiled signature, named by everything that could change it.

Numba's own cache keeps one index per function and looks at that function's file alone: it misses an edit in
a helper file, and two processes that save at once can leave an index that points at the other one's code.
Here the file's name is a digest of the key, so that there is no index to race for and a stale entry is never
found. The files lie in a folder that is this user's alone (`numba_lamb._private`), since whoever can write one
can have its code run. A cache that cannot be read or written costs a compilation, never an error.
"""

import hashlib
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from numba_lamb import _private

_PACKAGE = Path(__file__).parent
_SOURCES = (
    "_cache.py",
    "_compile.py",
    "_private.py",
    "layout.py",
    "numerics/rules.py",
    "numerics/storage.py",
    "kernels/**/*.py",
)

_VERSIONS = (numba.__version__, llvmlite.__version__, np.__version__)
"""What else compiled code depends on, as the pickle around it does."""


def source_hash() -> str:
    """Return a digest of every source file that compiled code depends on."""
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(_PACKAGE.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class KernelCache(FunctionCache):  # type: ignore[misc]
    """Cache of one kernel's compiled signatures, one self-contained file for each.

    Raises
    ------
    RuntimeError
        If no folder can be written.
    OSError
        If the folder cannot be made, or another user could write into it.
    """

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any], sources: str) -> None:
        super().__init__(function)
        self._salt = f"{sources} {sorted(options.items())} {_VERSIONS}"
        self._prefix = f"{self._impl.filename_base}.{sources[:8]}-"
        # One for each user, below the folder that Numba chose, which several may share.
        user = f"-{os.geteuid()}" if hasattr(os, "geteuid") else ""
        self._cache_path = os.path.join(self._impl.locator.get_cache_path(), f"numba_lamb{user}")
        _private.make_folder(self._cache_path)

    def _path(self, signature: Any, codegen: Any) -> str:
        key = f"{self._index_key(signature, codegen)} {self._salt}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        return os.path.join(self.cache_path, f"{self._prefix}{digest}.nbc")

    def _load_overload(self, signature: Any, target: Any) -> Any:
        if not self._enabled:
            return None
        payload = _private.read(self._path(signature, target.codegen()))
        if payload is None:
            return None
        try:
            return self._impl.rebuild(target, pickle.loads(payload))
        except Exception:
            # Whatever is wrong with an entry is a miss: the kernel is compiled again and saved over it.
            return None

    def _save_overload(self, signature: Any, result: Any) -> None:
        if not self._enabled or not self._impl.check_cachable(result):
            return
        try:
            _private.write(self._path(signature, result.codegen), dumps(self._impl.reduce(result)))
            self._forget_older_sources()
        except OSError:
            # A full disk or a folder that turned read-only: this process goes on without a cache.
            self.disable()

    def _forget_older_sources(self) -> None:
        base = f"{self._impl.filename_base}."
        for name in os.listdir(self.cache_path):
            if name.startswith(base) and name.endswith(".nbc") and not name.startswith(self._prefix):
                Path(self.cache_path, name).unlink(missing_ok=True)
