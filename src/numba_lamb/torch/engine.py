"""Which engine takes steps where the parameters are."""

from typing import TYPE_CHECKING, TypeAlias, Union

import torch

from numba_lamb.torch.cpu import CpuEngine

if TYPE_CHECKING:
    from numba_lamb.torch.cuda import CudaEngine

Engine: TypeAlias = Union[CpuEngine, "CudaEngine"]


def make_engine(device: torch.device | None, has_two_moments: bool) -> Engine:
    """Return what takes steps on parameters that are on `device`."""
    if device is None or device.type == "cpu":
        return CpuEngine(has_two_moments)
    # Only GPU users pay for loading what drives one.
    from numba_lamb.torch.cuda import CudaEngine

    return CudaEngine(has_two_moments, device.index)
