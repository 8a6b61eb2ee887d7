"""Step counts in ``state``: which are allowed."""

from typing import Any

import torch

from numba_lamb.methods.checks import check_step_count


def check_count(name: str, step: Any) -> float:
    """Return a parameter's step count as a float if steps can be added to it, else raise."""
    count = step.item() if isinstance(step, torch.Tensor) and step.numel() == 1 else step
    return float(check_step_count(name, count))
