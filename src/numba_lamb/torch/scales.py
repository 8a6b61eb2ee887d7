"""Scales of 8-bit moments, one for each row of 128 elements: their shape, and whether ranks can have pieces."""

import math
from typing import Any

import torch

from numba_lamb.layout import LANES


def scale_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of the scales of a parameter.

    Where the last axes of a contiguous parameter make up rows of 128, the others are those of its scales, so that
    a piece of a DTensor has a piece of the scales. Else they are flat, in the order of memory.
    """
    axis = _row_axis(tensor)
    if axis is None:
        return (-(-tensor.numel() // LANES),)
    return (*tensor.shape[:axis], math.prod(tensor.shape[axis:]) // LANES)


def has_whole_rows(tensor: Any) -> bool:
    """Return whether no piece of a DTensor ends inside of a row, and its scales would be cut as it is."""
    cuts: dict[int, list[tuple[Any, int]]] = {}
    for placement, count in zip(tensor.placements, tensor.device_mesh.shape, strict=True):
        if not placement.is_replicate() and count > 1:
            cuts.setdefault(placement.dim, []).append((placement, count))
    if not cuts:
        return True
    last, axis = max(cuts), _row_axis(tensor)
    if axis is not None and last < axis:
        return True
    (placement, count), *others = cuts[last]
    if last != (axis or 0) or others or hasattr(placement, "split_factor") or not _is_row_major(tensor):
        return False
    inner = math.prod(tensor.shape[last + 1 :])
    # What Shard gives the first rank: elements, and rows.
    elements, rows = -(-tensor.shape[last] // count) * inner, -(-tensor.shape[last] * inner // LANES)
    return bool(elements % LANES == 0 and -(-rows // count) == elements // LANES)


def _row_axis(tensor: torch.Tensor) -> int | None:
    """Return the last axis from which on all together make up rows; None if there is none."""
    if not _is_row_major(tensor):
        return None
    axes = range(tensor.ndim - 1, -1, -1)
    return next((axis for axis in axes if math.prod(tensor.shape[axis:]) % LANES == 0), None)


def _is_row_major(tensor: torch.Tensor) -> bool:
    # Of a DTensor, all of it, and not this rank's piece.
    whole = torch.empty_strided(tensor.shape, tensor.stride(), device="meta")
    return bool(whole.is_contiguous())
