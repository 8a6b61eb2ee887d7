"""What takes the steps of tensors where they are."""

from collections.abc import Sequence

import torch

from numba_lamb.engine.agreement import digest
from numba_lamb.engine.choose import backend_on, parts_on
from numba_lamb.engine.interface import Backend
from numba_lamb.engine.ranks import Ranks
from numba_lamb.torch.comm import TorchComm
from numba_lamb.torch.dtensors import check_cuts, comm_of, nears_of, runs_of
from numba_lamb.torch.members import Member


def index_of(device: torch.device | None) -> int | None:
    """Return the index of a GPU, None for the CPU's memory."""
    return None if device is None or device.type == "cpu" else device.index


def backend_of(device: torch.device | None, pieces: Sequence[Member]) -> Backend:
    """Return a backend for parameters on a device, of which these are DTensors."""
    if pieces:
        return parts_on(index_of(device), "torch", comm_of([member.tensor for member in pieces]))
    return backend_on(index_of(device), "torch")


def find_pieces(backend: Backend, pieces: Sequence[Member]) -> None:
    """Tell a backend which pieces of DTensors ranks have; every rank must call it."""
    if pieces and isinstance(backend, Ranks):
        # Messages are as long as there are pieces.
        known = digest([(member.name, member.tensor.shape) for member in pieces])
        backend.agree("step", {"which parameters have gradients": known})
        tensors, comm = [member.tensor for member in pieces], backend.comm
        assert isinstance(comm, TorchComm)
        for member, (starts, stops), near in zip(
            pieces, runs_of(tensors, comm), nears_of(tensors, comm), strict=True
        ):
            check_cuts(member.name, starts, stops, near)
            backend.cut_as(member.name, starts, stops, near)
