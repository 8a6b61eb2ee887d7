"""What a worker measures: this package's optimizers, and what shows the bandwidth."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

import numba_lamb as nl
from numba_lamb.cli.bench.profiles import Shape, parameter_count
from numba_lamb.engine.cpu.calibration import STEPS as CALIBRATION_STEPS

__all__ = [
    "DECAY",
    "RATE",
    "Subject",
    "arrays",
    "lamb",
    "lamb_adamw",
    "lamb_checked",
    "lamb_fresh",
    "lars",
    "memory_copy",
    "memory_sweep",
    "momentum",
]

RATE = 1e-5
"""So small that weights stay of the same size over any number of steps."""
DECAY = 0.01


@dataclass(frozen=True)
class Subject:
    """A step that can be timed.

    Parameters
    ----------
    step : callable
        Takes one step and returns when it is done.
    version : str
        Version of the package that it comes from.
    prepare : callable, optional
        Called before each step, outside the clock.
    warm_steps : int
        Steps that it takes at least before it is timed.
    """

    step: Callable[[], object]
    version: str
    prepare: Callable[[], object] | None = None
    warm_steps: int = 4


def arrays(shapes: Sequence[Shape], seed: int) -> list[NDArray[np.float32]]:
    """Return normally distributed float32 arrays."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def lamb(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb without the finite check, gradient arrays reused."""
    return _ours(nl.Lamb(arrays(shapes, 0), RATE, nonfinite="propagate", **_options(threads)), shapes)


def lamb_adamw(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb with AdamW's formula, in which no layer adapts, without the finite check."""
    optimizer = nl.Lamb(arrays(shapes, 0), RATE, variant="adamw", nonfinite="propagate", **_options(threads))
    return _ours(optimizer, shapes)


def lamb_checked(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb as it is by default: gradients are checked first."""
    return _ours(nl.Lamb(arrays(shapes, 0), RATE, **_options(threads)), shapes)


def lamb_fresh(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb without the finite check, given new gradient arrays at each step."""
    optimizer = nl.Lamb(arrays(shapes, 0), RATE, nonfinite="propagate", **_options(threads))
    source = arrays(shapes, 1)
    gradients: list[NDArray[np.float32]] = []

    def renew() -> None:
        gradients[:] = [array.copy() for array in source]

    return Subject(lambda: optimizer.step(gradients), nl.__version__, renew, CALIBRATION_STEPS)


def lars(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lars, every layer adapted, without the finite check."""
    momentum = nl.Momentum(arrays(shapes, 0), RATE, 0.9, nonfinite="propagate", **_options(threads))
    return _ours(nl.Lars(momentum), shapes)


def momentum(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Momentum without the finite check."""
    return _ours(
        nl.Momentum(arrays(shapes, 0), RATE, 0.9, nonfinite="propagate", **_options(threads)), shapes
    )


def memory_copy(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return a threaded copy between two buffers that together are as large as LAMB's four arrays.

    So it lives in the same level of the memory hierarchy. Each parameter stands for 8 bytes read and 8 written.
    """
    source, target = _buffers(shapes)
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(threads)
        into, given = torch.from_numpy(target), torch.from_numpy(source)
        return Subject(lambda: into.copy_(given), torch.__version__)
    numba.set_num_threads(threads)
    copy = numba.njit(parallel=True)(_copy)
    return Subject(lambda: copy(target, source), numba.__version__)


def memory_sweep(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return a threaded ``a = c*a + b`` over the same two buffers: 16 bytes read and 8 written per parameter.

    The simplest thing that treats memory as an optimizer does. A copy does not: it writes where it has not
    read, which most processors make it read first, and so shows as little as half of the bandwidth.
    """
    numba.set_num_threads(threads)
    source, target = _buffers(shapes)
    sweep = numba.njit(parallel=True)(_sweep)
    return Subject(lambda: sweep(target, source), numba.__version__)


def _buffers(shapes: Sequence[Shape]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    source = np.ones(2 * parameter_count(shapes), dtype=np.float32)
    return source, source.copy()


def _copy(target: Any, source: Any) -> None:
    for i in prange(source.shape[0]):
        target[i] = source[i]


def _sweep(target: Any, source: Any) -> None:
    for i in prange(source.shape[0]):
        target[i] = np.float32(0.999) * target[i] + source[i]


def _options(threads: int) -> dict[str, Any]:
    return {"weight_decay": DECAY, "num_threads": threads}


def _ours(optimizer: nl.Lamb | nl.Momentum, shapes: Sequence[Shape]) -> Subject:
    gradients = arrays(shapes, 1)
    return Subject(lambda: optimizer.step(gradients), nl.__version__, warm_steps=CALIBRATION_STEPS)
