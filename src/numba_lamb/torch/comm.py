"""Collectives of torch.distributed."""

import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from numba_lamb.comm.cpus import own_cpus, sharing
from numba_lamb.comm.interface import Array, CommError, Wait

# Renamed in PyTorch 2.13, where the older name warns.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def is_group(group: object) -> bool:
    """Return whether something is a process group."""
    return dist.is_available() and isinstance(group, dist.ProcessGroup)


class TorchComm:
    """The collectives of a process group, on tensors in the CPU's memory.

    Parameters
    ----------
    group : ProcessGroup or None
        None for that of all processes.
    timeout : float
        Seconds that a collective may take.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        backend = dist.get_backend_config(group)
        if "cpu" not in backend:
            raise ValueError(
                f"process_group must have a backend for the CPU's memory, got {backend!r}; "
                'init_process_group("cpu:gloo,cuda:nccl") has both'
            )
        self._group, self._timeout = group, timedelta(seconds=timeout)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, (socket.gethostname(), own_cpus()), group=group)
        self.sharing = sharing([cpus for host, cpus in told if host == socket.gethostname()])

    def all_gather(self, out: Array, values: Array) -> Wait:
        """Begin to write every rank's `values`, which are bytes, into `out`, one rank after the other."""
        return self._begun(_all_gather, out.reshape(-1), values)

    def all_to_all(self, out: Array, values: Array) -> Wait:
        """Begin to write into `out` this rank's part of every rank's `values`, one rank after the other."""
        return self._begun(dist.all_to_all_single, out, values)

    def _begun(self, collective: Any, out: Array, values: Array) -> Wait:
        # Not every part of a rank has values.
        if not out.size:
            return lambda: None
        tensors = torch.from_numpy(out), torch.from_numpy(values)
        try:
            work = collective(*tensors, group=self._group, async_op=True)
        except RuntimeError as error:
            raise CommError(f"rank {self.rank}: {error}") from error

        def wait() -> None:
            try:
                done = work.wait(self._timeout)
            except RuntimeError as error:
                _abandoned.append((work, tensors))
                raise CommError(
                    f"rank {self.rank}: another rank is gone, or did not answer within "
                    f"{self._timeout.total_seconds():g} seconds: {error}"
                ) from error
            if done is False:
                raise CommError(f"rank {self.rank}: a collective of torch.distributed failed")

        return wait


_abandoned: list[Any] = []
"""What is still under way may write to its tensors as long as the process lives."""
