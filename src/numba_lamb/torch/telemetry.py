"""How a `numba_lamb.History` gets at what a step of PyTorch's optimizers left."""

from collections.abc import Callable
from functools import partial

from numba_lamb.engine.records import EmptyRecord, Record
from numba_lamb.history import recorder
from numba_lamb.torch.optimizer import LayerwiseOptimizer


@recorder.register
def _(optimizer: LayerwiseOptimizer) -> Callable[[], Record]:
    return partial(_record, optimizer)


def _record(optimizer: LayerwiseOptimizer) -> Record:
    backend = optimizer._backend
    # Model and backend are made at the first step, and anew after a state is loaded.
    return EmptyRecord() if backend is None or optimizer._model is None else backend.record()
