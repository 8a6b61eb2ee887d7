"""numba-cuda on a NumPy that no longer has what numba-cuda asks for at import.

numba-cuda 0.30.4 overloads ``np.row_stack``, which NumPy 2.5 removed, so that no kernel compiles. Here its
module is run with the name of the function that `row_stack` was an alias of; ``numpy`` itself is never changed.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np

_MODULE = "numba.cuda.np.arrayobj"
_ALIASES = {"row_stack": "vstack"}


@contextmanager
def names_supplied() -> Iterator[None]:
    """Let numba-cuda be loaded inside, whether or not NumPy has the names that it asks for."""
    finder = _Finder({old: new for old, new in _ALIASES.items() if old not in vars(np)})
    if not finder.aliases:
        yield
        return
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds one module as the other finders do, and has it run under `_Loader`."""

    def __init__(self, aliases: dict[str, str]) -> None:
        self.aliases = aliases

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        # Another thread may have a finder of its own here.
        others = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
        specs = (other.find_spec(name, path, target) for other in others if hasattr(other, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and isinstance(spec.loader, InspectLoader):
            spec.loader = _Loader(spec.loader, self.aliases)
        return spec


class _Loader(Loader):
    """Runs a module whose top level says one name for another; functions in it are as they were."""

    def __init__(self, loader: InspectLoader, aliases: dict[str, str]) -> None:
        self.loader = loader
        self.aliases = aliases

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        code = self.loader.get_code(module.__name__)
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        if code is None:
            raise ImportError(f"{module.__name__} must be a Python module", name=module.__name__)
        names = tuple(self.aliases.get(name, name) for name in code.co_names)
        exec(code.replace(co_names=names), vars(module))
