"""How a `numba_lamb.History` gets at what a step of the NumPy API's optimizers left."""

from collections.abc import Callable

from numba_lamb.engine.records import Record
from numba_lamb.history import recorder
from numba_lamb.optimizers.base import Optimizer


@recorder.register
def _(optimizer: Optimizer) -> Callable[[], Record]:
    return optimizer._backend.record
