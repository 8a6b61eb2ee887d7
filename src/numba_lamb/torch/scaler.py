"""What PyTorch's GradScaler says of a step, as backends take it."""

from typing import Any

import torch

from numba_lamb.methods.checks import plain
from numba_lamb.torch.tensors import address_of


def scaler_values(scale: Any, found_inf: Any, device: torch.device | None) -> tuple[Any, Any, Any]:
    """Return a loss scale and whether infinities were found, 0 for what is not said, and what to keep alive.

    On the CPU they are numbers, on a GPU addresses of float32 values there.
    """
    if device is None or device.type == "cpu":
        told = [0.0 if value is None else float(plain(value)) for value in (scale, found_inf)]
        return told[0], told[1], None
    held = [None if value is None else _beside(value, device) for value in (scale, found_inf)]
    addresses = [0 if value is None else address_of(value) for value in held]
    return addresses[0], addresses[1], held


def _beside(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    return value.detach().to(device=device, dtype=torch.float32).reshape(())
