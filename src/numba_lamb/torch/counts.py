"""Step counts in ``state``: which are allowed."""

from typing import Any

import torch

from numba_lamb.optimizers.state import LARGEST_COUNT


def check_count(name: str, step: Any) -> float:
    """Return a parameter's step count as a float if steps can be added to it, else raise."""
    count = step.item() if isinstance(step, torch.Tensor) and step.numel() == 1 else step
    if not isinstance(count, int | float) or not 0 <= count <= LARGEST_COUNT or count % 1:
        raise ValueError(
            f"state 'step' of parameter {name!r} must be a number >= 0, whole and at most 2**62, not {step!r}"
        )
    return float(count)
