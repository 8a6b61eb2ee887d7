"""What a worker measures of this package's optimizers for PyTorch."""

from collections.abc import Sequence

import numba_lamb as nl
from numba_lamb.cli.bench.peers import torch_params
from numba_lamb.cli.bench.profiles import Shape
from numba_lamb.cli.bench.subjects import DECAY, RATE, Subject
from numba_lamb.engine.cpu.calibration import STEPS as CALIBRATION_STEPS

__all__ = ["lamb", "lamb_fresh"]


def lamb(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb as it is by default, gradients reused."""
    from numba_lamb.torch import Lamb

    _, params = torch_params(shapes, threads)
    step = Lamb(params, lr=RATE, weight_decay=DECAY).step
    return Subject(step, nl.__version__, warm_steps=CALIBRATION_STEPS)


def lamb_fresh(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb as it is by default, given new gradients at each step, as after ``zero_grad``."""
    from numba_lamb.torch import Lamb

    _, params = torch_params(shapes, threads)
    source = [param.grad for param in params]

    def renew() -> None:
        for param, gradient in zip(params, source, strict=True):
            param.grad = gradient.clone()

    step = Lamb(params, lr=RATE, weight_decay=DECAY).step
    return Subject(step, nl.__version__, renew, CALIBRATION_STEPS)
