"""Described: an optimizer in words, laid out as PyTorch's are."""

from typing import Any

import numpy as np

from numba_lamb._text import shorten
from numba_lamb.memory.arrays import is_array


class Described:
    """What `repr` says: kind, options, groups with their layers, steps. It never waits for a GPU."""

    def __repr__(self: Any) -> str:
        names = ["loss_scale"] if self._has_loss_scale else []
        lines = [f"{name}: {_shown(getattr(self, name))}" for name in names]
        for index, group in enumerate(self.param_groups):
            own = [layer for layer in self.layout.layers if layer.group == index]
            lines.append(f"Parameter Group {index}")
            options = {key: value for key, value in group.items() if key != "params"}
            options["layers"] = f"{len(own):,} with {sum(layer.size for layer in own):,} elements"
            lines += [f"    {key}: {_shown(options[key])}" for key in sorted(options)]
        steps = "counted on the GPU" if self._backend.waits else f"{self._backend.counters()[0]:,}"
        return "\n".join([f"{type(self).__name__} (", *lines, f"steps: {steps}", ")"])


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype} array of {len(value):,} values"
    if is_array(value) and not isinstance(value, np.ndarray):
        # Its value would be waited for.
        return "a value on the GPU"
    # Two in a tuple are the bounds of something.
    if isinstance(value, list | tuple) and not (isinstance(value, tuple) and len(value) == 2):
        return f"{type(value).__name__} of {len(value):,} values"
    name = getattr(value, "__qualname__", None)
    return shorten(repr(value) if name is None else f"{value.__module__}.{name}", 100)
