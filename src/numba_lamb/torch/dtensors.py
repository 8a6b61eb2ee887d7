"""Parameters that lie in pieces on several ranks: DTensor, as FSDP2 and tensor parallelism make them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from numba_lamb.comm import Comm
from numba_lamb.memory.array_reader import Int64
from numba_lamb.torch.comm import TorchComm
from numba_lamb.torch.scales import scale_shape

_AXES = 8
"""The most axes that a DTensor may have here."""
TIMEOUT = 1800.0
"""Seconds that other ranks may take to answer, as by default in torch.distributed."""


def is_dtensor(tensor: object) -> bool:
    """Return whether a tensor is a DTensor; its module is not imported for that."""
    kind = type(tensor)
    return kind.__name__ == "DTensor" and kind.__module__.startswith("torch.distributed")


def local_of(tensor: Any) -> Any:
    """Return what there is of a tensor on this rank: itself where it is no DTensor."""
    return tensor._local_tensor if is_dtensor(tensor) else tensor


def alike(gradient: Any, parameter: Any) -> Any:
    """Return a gradient, if there is one, whose pieces are its parameter's, which may take a collective."""
    if not (is_dtensor(gradient) and is_dtensor(parameter)) or gradient.placements == parameter.placements:
        return gradient
    with torch.no_grad():
        return gradient.redistribute(parameter.device_mesh, parameter.placements)


def like(local: Tensor, parameter: Any, shaped: bool) -> Any:
    """Return a piece of state as a DTensor that lies as its parameter does.

    Parameters
    ----------
    local : Tensor
        What there is of it here.
    parameter : Tensor
        Whose state it is; nothing is done where that is no DTensor.
    shaped : bool
        Whether the state has the parameter's shape, and not that of its scales.
    """
    if not is_dtensor(parameter):
        return local
    mesh, placements = parameter.device_mesh, parameter.placements
    shape, stride = parameter.shape, parameter.stride()
    if not shaped:
        shape = torch.Size(scale_shape(parameter))
        stride = torch.empty(shape, device="meta").stride()
        # Scales may lack an axis along which there is one piece.
        from torch.distributed.tensor import Replicate

        placements = [p if n > 1 else Replicate() for p, n in zip(placements, mesh.shape, strict=True)]
    kind: Any = type(parameter)
    return kind.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def gatherable(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's state with DTensors of int16, which gloo and NCCL do not gather, as int32."""
    return {
        name: value.to(torch.int32) if is_dtensor(value) and value.dtype == torch.int16 else value
        for name, value in entry.items()
    }


def check_pieces(what: str, tensor: Any) -> None:
    """Raise unless the pieces of a DTensor are known here."""
    for placement in tensor.placements:
        if not (placement.is_shard() or placement.is_replicate() or hasattr(placement, "split_factor")):
            raise TypeError(f"{what} must be placed by Shard or Replicate, got {placement}")
    if tensor.ndim > _AXES:
        raise TypeError(f"{what} must have at most {_AXES} axes as a DTensor, got {tensor.ndim}")


def check_state(name: str, parameter: Any, held: Any) -> None:
    """Raise if state that somebody put there for a DTensor has another piece of it here."""
    if not is_dtensor(parameter) or not isinstance(held, Mapping):
        return
    for key, value in held.items():
        if is_dtensor(value) and value.shape == parameter.shape:
            own, given = (_chunk(tensor) for tensor in (parameter, value))
            if own != given:
                raise ValueError(
                    f"state {key!r} of parameter {name!r} must be placed as that, {parameter.placements}, got "
                    f"{value.placements}; load it by torch.distributed.checkpoint"
                )


def _chunk(tensor: Any) -> list[Any]:
    """Return where this rank's piece of a DTensor lies in it."""
    return [
        (tuple(c.offsets), tuple(c.sizes)) for c in tensor.__create_chunk_list__() if local_of(tensor).numel()
    ]


def comm_of(tensors: Sequence[Any]) -> TorchComm:
    """Return the ranks that have pieces of these DTensors: those of the mesh that has those of all others."""
    meshes = {tensor.device_mesh for tensor in tensors}
    widest = max(meshes, key=lambda mesh: int(mesh.size()))
    ranks = _ranks_of(widest)
    for mesh in meshes:
        if not ranks.issuperset(_ranks_of(mesh)):
            raise TypeError(
                "DTensors of one optimizer must lie on ranks of one mesh, got some on ranks "
                f"{sorted(ranks)} and some on {sorted(_ranks_of(mesh))}; make an optimizer for each"
            )
    group = next((mesh.get_group() for mesh in meshes if mesh.ndim == 1 and _ranks_of(mesh) == ranks), None)
    return TorchComm(group, TIMEOUT, sorted(ranks) if group is None else None)


def nears_of(tensors: Sequence[Any], comm: TorchComm) -> list[NDArray[np.bool_]]:
    """Return for each DTensor which ranks are of its mesh; others may have another tensor of its name."""
    return [np.isin(comm.members, sorted(_ranks_of(tensor.device_mesh))) for tensor in tensors]


def check_cuts(name: str, starts: Int64, stops: Int64, near: NDArray[np.bool_]) -> None:
    """Raise if the ranks of another mesh cut their DTensor of this name in another way."""
    runs = np.stack([starts, stops], axis=1)
    own, others = (set(map(tuple, runs[which].tolist())) for which in (near, ~near))
    if not {run for run in others if run[0] < run[1]} <= own:
        raise TypeError(
            f"DTensors named {name!r} must be cut alike on all meshes, got other pieces on another; make an "
            "optimizer for each mesh"
        )


def _ranks_of(mesh: Any) -> set[int]:
    return set(mesh.mesh.flatten().tolist())


def runs_of(tensors: Sequence[Any], comm: Comm) -> list[tuple[Int64, Int64]]:
    """Return for each DTensor first element and end of every rank's piece; every rank must call it.

    Pieces are counted one after the other in the order of their offsets, so that pieces along the first axis alone
    are those of the flat tensor.
    """
    own = np.zeros((len(tensors), 1 + _AXES), dtype=np.int64)
    for row, tensor in zip(own, tensors, strict=True):
        row[0] = local_of(tensor).numel()
        if row[0]:
            (chunk,) = tensor.__create_chunk_list__()
            row[1 : 1 + tensor.ndim] = list(chunk.offsets)
    told = np.zeros((comm.size, *own.shape), dtype=np.int64)
    comm.all_gather(told.view(np.uint8), own.reshape(-1).view(np.uint8))()
    found = []
    for number in range(len(tensors)):
        rows = told[:, number]
        pieces = sorted({(*row[1:], row[0]) for row in rows.tolist() if row[0]})
        ends = np.cumsum([0, *(piece[-1] for piece in pieces)]).tolist()
        first = dict(zip(pieces, ends, strict=False))
        starts = [first[(*row[1:], row[0])] if row[0] else 0 for row in rows.tolist()]
        begin = np.array(starts, dtype=np.int64)
        found.append((begin, begin + rows[:, 0]))
    return found
