"""What a worker measures of other packages, each imported only where it is asked for.

All run as their authors ship them for the CPU, in float32, with the same rate and decay, and without gradient
clipping where that is an option.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from numba_lamb.cli.bench.profiles import Shape
from numba_lamb.cli.bench.subjects import DECAY, RATE, Subject, arrays

__all__ = [
    "deepspeed_adam",
    "fused_adamw",
    "fused_sgd",
    "optax_lamb",
    "paddle_lamb",
    "pytorch_optimizer_lamb",
    "timm_lamb",
    "torch_optimizer_lamb",
    "torch_params",
]


def fused_adamw(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return PyTorch's AdamW in its fused form."""
    torch, params = torch_params(shapes, threads)
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY, fused=True)
    return Subject(optimizer.step, torch.__version__)


def fused_sgd(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return PyTorch's SGD with momentum in its fused form."""
    torch, params = torch_params(shapes, threads)
    optimizer = torch.optim.SGD(params, lr=RATE, momentum=0.9, weight_decay=DECAY, fused=True)
    return Subject(optimizer.step, torch.__version__)


def deepspeed_adam(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return DeepSpeed's AdamW for the CPU, which compiles at its first use."""
    _, params = torch_params(shapes, threads)
    adam = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    return Subject(adam(params, lr=RATE, weight_decay=DECAY, adamw_mode=True).step, version("deepspeed"))


def timm_lamb(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return timm's Lamb, imported without timm's models: those need a torchvision that fits this torch."""
    _, params = torch_params(shapes, threads)
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'timm'")
    for name, folder in (("timm", ""), ("timm.optim", "optim")):
        bare = ModuleType(name)
        bare.__path__ = [str(Path(root) / folder) for root in spec.submodule_search_locations]
        sys.modules[name] = bare
    lamb = importlib.import_module("timm.optim.lamb").Lamb
    optimizer = lamb(params, lr=RATE, weight_decay=DECAY, max_grad_norm=None)
    return Subject(optimizer.step, version("timm"))


def torch_optimizer_lamb(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return torch_optimizer's Lamb."""
    _, params = torch_params(shapes, threads)
    lamb = importlib.import_module("torch_optimizer").Lamb
    return Subject(lamb(params, lr=RATE, weight_decay=DECAY).step, version("torch-optimizer"))


def pytorch_optimizer_lamb(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return pytorch_optimizer's Lamb."""
    _, params = torch_params(shapes, threads)
    lamb = importlib.import_module("pytorch_optimizer").Lamb
    return Subject(lamb(params, lr=RATE, weight_decay=DECAY).step, version("pytorch-optimizer"))


def paddle_lamb(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return Paddle's Lamb, on the CPU whatever else Paddle was built for.

    Its threads are those of OpenMP and of its linear algebra, which the worker's environment sets.
    """
    paddle = importlib.import_module("paddle")
    paddle.set_device("cpu")
    params = []
    for value, gradient in zip(arrays(shapes, 0), arrays(shapes, 1), strict=True):
        param = paddle.create_parameter(value.shape, "float32")
        param.set_value(value)
        param.grad = paddle.to_tensor(gradient)
        params.append(param)
    optimizer = paddle.optimizer.Lamb(RATE, DECAY, parameters=params)
    return Subject(optimizer.step, paddle.__version__)


def optax_lamb(shapes: Sequence[Shape], threads: int) -> Subject:
    """Return optax's lamb, compiled as one program that reuses its inputs' memory.

    The number of threads is set by the worker's environment, which is all that XLA listens to.
    """
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    jax.config.update("jax_platforms", "cpu")
    transform = optax.lamb(RATE, weight_decay=DECAY)

    def advance(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(advance, donate_argnums=(0, 1))
    params = [jax.numpy.array(array) for array in arrays(shapes, 0)]
    gradients = [jax.numpy.array(array) for array in arrays(shapes, 1)]
    held = [params, jax.jit(transform.init)(params)]

    def step() -> None:
        held[:] = jax.block_until_ready(compiled(*held, gradients))

    return Subject(step, optax.__version__)


def torch_params(shapes: Sequence[Shape], threads: int) -> tuple[Any, list[Any]]:
    """Return PyTorch and parameters with gradients."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    params = []
    for value, gradient in zip(arrays(shapes, 0), arrays(shapes, 1), strict=True):
        # Cloned, so that PyTorch's own allocator has placed what PyTorch's optimizers work on.
        param = torch.nn.Parameter(torch.from_numpy(value).clone())
        param.grad = torch.from_numpy(gradient).clone()
        params.append(param)
    return torch, params
