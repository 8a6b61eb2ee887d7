"""What a parameter's state consists of, and how it becomes another precision's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from numba_lamb.engine.precision import Piece, Precision
from numba_lamb.layout import LANES
from numba_lamb.numerics.storage import FLOAT16_END
from numba_lamb.torch.dtensors import local_of
from numba_lamb.torch.scales import scale_shape
from numba_lamb.torch.tensors import NUMPY_DTYPES

STATE_DTYPES: dict[np.dtype[Any], torch.dtype] = {
    # Patterns of 16 bits.
    np.dtype(np.uint16): torch.bfloat16,
    np.dtype(np.int16): torch.int16,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}
Pieces = dict[str, Piece]


def precision_in(tensor: torch.Tensor, group: Mapping[str, Any]) -> Precision:
    """Return how a parameter of a group is stored."""
    return Precision(NUMPY_DTYPES[tensor.dtype], group["master"], group["moments"])


def pieces_of(tensor: torch.Tensor, group: Mapping[str, Any], names: Sequence[str]) -> Pieces:
    """Return what the state of a parameter of a group consists of but its step count, moments first."""
    return precision_in(tensor, group).state(names, tensor.numel())


def shape_of(piece: Piece, tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a piece of a parameter's state."""
    return tuple(tensor.shape) if piece.shaped else scale_shape(tensor)


def fitted(
    given: Mapping[str, torch.Tensor], pieces: Mapping[str, Piece], tensor: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return a parameter's state as its pieces are stored, given in any precision; what is missing stays so.

    Moments of 8 bits are read and made in the order of the parameter's memory, to the nearest code.
    """
    found = {}
    for number, (name, piece) in enumerate(pieces.items()):
        value, scale = given.get(name), given.get(f"{name}_scale")
        if value is None:
            continue
        wanted = STATE_DTYPES[piece.dtype]
        if value.dtype == wanted:
            found[name] = value
        elif f"{name}_scale" in pieces:
            found |= _coded(name, number, value, tensor)
        elif value.is_floating_point() or value.dtype == torch.int32:
            found[name] = value.to(wanted)
        elif scale is not None and value.dtype in (torch.int8, torch.uint8):
            found[name] = _decoded(value, scale, tensor).to(wanted)
    return found


def rest_of(tensor: torch.Tensor, master: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a parameter's state has beside it for a float32 master.

    Of two bfloat16 numbers that are as near to a master, ours is the one away from zero. Where it is the
    other, the master becomes its neighbour in float32.
    """
    if tensor.dtype == torch.float16:
        return {"master": master.to(torch.float32).clone()}
    if tensor.dtype != torch.bfloat16:
        return {}
    high = (tensor.contiguous().view(torch.int16).to(torch.int64) & 0xFFFF) << 16
    rest = (master.to(torch.float32).contiguous().view(torch.int32).to(torch.int64) & 0xFFFF_FFFF) - high
    # What is further away belongs to a parameter that was written since.
    rest = torch.where(rest.abs() <= 0x8000, rest.clamp_max(0x7FFF), 0)
    return {"remainder": rest.to(torch.int16).view_as(tensor)}


def with_beyond_float16(
    stats: Mapping[str, float], members: Sequence[Any], state: Mapping[Any, Any]
) -> Mapping[str, float]:
    """Return statistics with how many elements of each float32 master here its float16 parameter cannot hold.

    Without such masters they are left as they are: to read any waits for a GPU.
    """
    masters = {member.name: state.get(member.tensor, {}).get("master") for member in members}
    found = {
        f"beyond_float16/{name}": float((local_of(master).abs() >= FLOAT16_END).sum())
        for name, master in masters.items()
        if master is not None
    }
    return {**stats, **found} if found else stats


def in_memory_order(value: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a flat copy of a value of a parameter's shape, in the order in which the parameter lies in memory."""
    ordered = torch.empty_like(tensor, dtype=value.dtype, device=value.device).copy_(value)
    return ordered.as_strided((ordered.numel(),), (1,))


def _like(flat: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return flat.as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride())


def _rows(scale: torch.Tensor, count: int) -> torch.Tensor:
    return scale.reshape(-1).to(torch.float32).repeat_interleave(LANES)[:count]


def _decoded(codes: torch.Tensor, scale: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    flat, signed = in_memory_order(codes, tensor).to(torch.float32), codes.dtype == torch.int8
    scales = _rows(scale, flat.numel())
    root = flat * (1.0 / (127.0 if signed else 255.0))
    values = root * root.abs() * scales if signed else (root * root) * (root * root) * scales
    return _like(values, tensor)


def _coded(name: str, number: int, value: torch.Tensor, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    flat = in_memory_order(value.to(torch.float32), tensor)
    rows = -(-flat.numel() // LANES)
    padded = torch.zeros(rows * LANES, dtype=torch.float32, device=flat.device)
    padded[: flat.numel()] = flat
    scale = padded.reshape(rows, LANES).abs().amax(1) if rows else padded
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    share = (flat.abs() / _rows(scale, flat.numel())).sqrt()
    if number == 0:
        codes = (share * 127.0).round().to(torch.int8) * flat.sign().to(torch.int8)
    else:
        near = (share.sqrt() * 255.0).round()
        codes = torch.where(flat > 0, near.clamp_min(1.0), near).to(torch.uint8)
    return {name: _like(codes, tensor), f"{name}_scale": scale.reshape(scale_shape(tensor))}
