"""What a worker measures in bfloat16: this package's Lamb for PyTorch, PyTorch's AdamW, and DeepSpeed's."""

import importlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numba_lamb as nl
from numba_lamb.cli.bench.peers import torch_params
from numba_lamb.cli.bench.profiles import Shape
from numba_lamb.cli.bench.subjects import DECAY, RATE, Subject
from numba_lamb.engine.cpu.calibration import STEPS as CALIBRATION_STEPS

__all__ = ["deepspeed_adam", "foreach_adamw", "fused_adamw", "lamb", "lamb_16", "lamb_8", "lamb_random"]


def lamb(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb with split masters and moments in float32."""
    return _ours(shapes, threads)


def lamb_16(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb with split masters and moments in bfloat16."""
    return _ours(shapes, threads, moments="bfloat16")


def lamb_8(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb with split masters and moments in 8 bits."""
    return _ours(shapes, threads, moments="int8")


def lamb_random(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Lamb without masters, moments in bfloat16."""
    return _ours(shapes, threads, moments="bfloat16", master=None)


def fused_adamw(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return PyTorch's AdamW in its fused form, moments in bfloat16 and no master."""
    return _adamw(shapes, threads, fused=True)


def foreach_adamw(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return PyTorch's AdamW in its form for lists of tensors, moments in bfloat16 and no master."""
    return _adamw(shapes, threads, foreach=True)


def deepspeed_adam(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return DeepSpeed's AdamW for the CPU, moments in float32 and no master; it compiles at its first use."""
    _, params = _params(shapes, threads)
    adam = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    return Subject(adam(params, lr=RATE, weight_decay=DECAY, adamw_mode=True).step, version("deepspeed"))


def _ours(shapes: Sequence[Shape], threads: int, **stored: Any) -> Subject:
    from numba_lamb.torch import Lamb

    _, params = _params(shapes, threads)
    step = Lamb(params, lr=RATE, weight_decay=DECAY, **stored).step
    return Subject(step, nl.__version__, warm_steps=CALIBRATION_STEPS)


def _adamw(shapes: Sequence[Shape], threads: int, **form: bool) -> Subject:
    torch, params = _params(shapes, threads)
    return Subject(torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY, **form).step, torch.__version__)


def _params(shapes: Sequence[Shape], threads: int) -> tuple[Any, list[Any]]:
    torch, params = torch_params(shapes, threads)
    for param in params:
        gradient, param.grad = param.grad.bfloat16(), None
        param.data = param.data.bfloat16()
        param.grad = gradient
    return torch, params
