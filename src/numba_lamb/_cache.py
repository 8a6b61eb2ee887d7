"""The on-disk kernel cache: one file per compiled signature, named by everything that could change it.

Numba's own cache keeps one index per function and looks at that function's file alone: it misses an edit in
a helper file, and two processes that save at once can leave an index that points at the other one's code.
Here the file's name is a digest of the key, so that there is no index to race for and a stale entry is never
found. A cache that cannot be read or written costs a compilation, never an error.
"""

import hashlib
import os
import pickle
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

_PACKAGE = Path(__file__).parent
_SOURCES = ("_cache.py", "_compile.py", "layout.py", "numerics/rules.py", "kernels/*.py")


def source_hash() -> str:
    """Return a digest of every source file that compiled code depends on."""
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(_PACKAGE.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class KernelCache(FunctionCache):  # type: ignore[misc]
    """Cache of one kernel's compiled signatures, one self-contained file for each."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any], sources: str) -> None:
        super().__init__(function)
        self._salt = f"{sources} {sorted(options.items())}"
        self._prefix = f"{self._impl.filename_base}.{sources[:8]}-"

    def _path(self, signature: Any, codegen: Any) -> str:
        key = f"{self._index_key(signature, codegen)} {self._salt}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        return os.path.join(self.cache_path, f"{self._prefix}{digest}.nbc")

    def _load_overload(self, signature: Any, target: Any) -> Any:
        if not self._enabled:
            return None
        try:
            payload = Path(self._path(signature, target.codegen())).read_bytes()
            return self._impl.rebuild(target, pickle.loads(payload))
        except FileNotFoundError:
            return None
        except (OSError, EOFError, pickle.UnpicklingError):
            # A torn or unreadable entry is a miss: the kernel is compiled again and saved over it.
            return None

    def _save_overload(self, signature: Any, result: Any) -> None:
        if not self._enabled or not self._impl.check_cachable(result):
            return
        path = self._path(signature, result.codegen)
        beside = f"{path}.{uuid.uuid4().hex[:8]}"
        try:
            self._impl.locator.ensure_cache_path()
            Path(beside).write_bytes(dumps(self._impl.reduce(result)))
            os.replace(beside, path)
            self._forget_older_sources()
        except OSError:
            # A full disk or a folder that turned read-only: this process goes on without a cache.
            self.disable()
            with suppress(OSError):
                Path(beside).unlink(missing_ok=True)

    def _forget_older_sources(self) -> None:
        base = f"{self._impl.filename_base}."
        for name in os.listdir(self.cache_path):
            if name.startswith(base) and name.endswith(".nbc") and not name.startswith(self._prefix):
                Path(self.cache_path, name).unlink(missing_ok=True)
