"""Collectives of torch.distributed."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from numba_lamb.comm.cpus import ranks_sharing
from numba_lamb.comm.interface import Array, CommError, DeviceComm, Span, Wait
from numba_lamb.torch.gloo import gloo_of, group_ranks

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
    ranks : sequence of int or None
        Which of all processes are meant, where `group` is None; None for all of them.
    own : bool
        Whether to make a group of gloo where `group` has gloo too, so that what is left of a step that failed
        meets no other message. It is made for `ranks`, and where `group` has nothing for the CPU's memory.
    """

    def __init__(
        self, group: Any, timeout: float, ranks: Sequence[int] | None = None, own: bool = False
    ) -> None:
        self._given, self._timeout = group, timedelta(seconds=timeout)
        self._group, backends = group, dist.get_backend_config(group)
        self._some = ranks is not None and len(ranks) < dist.get_world_size()
        self.members = list(ranks) if self._some and ranks else group_ranks(group)
        """Which of all processes the ranks are."""
        if self._some or "cpu" not in backends or (own and "cpu:gloo" in backends):
            # A rank that failed may be here when others have yet to find that it does not answer.
            patience = 2 * self._timeout
            self._group = gloo_of(self.members, patience)
        found: Any = self._group or dist.group.WORLD
        self.rank, self.size = found.rank(), found.size()
        self.sharing = ranks_sharing(self)

    def on_device(self, index: int) -> DeviceComm | None:
        """Return NCCL's collectives on a GPU's memory, None where the ranks have no group with NCCL."""
        if self._some or "cuda:nccl" not in dist.get_backend_config(self._given):
            return None
        return NcclComm(self._given, self.rank, index)

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


class NcclComm:
    """NCCL's collectives, in the order of a stream.

    Parameters
    ----------
    group : ProcessGroup or None
        As for `TorchComm`.
    rank : int
        This process, for errors.
    index : int
        The GPU.
    """

    def __init__(self, group: Any, rank: int, index: int) -> None:
        self._group, self._rank, self._index = group, rank, index
        self._known: dict[Span, torch.Tensor] = {}

    def all_gather(self, out: Span, values: Span, stream: int) -> Wait:
        """Begin to write every rank's `values` into `out`, one rank after the other."""
        return self._begun(_all_gather, out, values, stream)

    def all_to_all(self, out: Span, values: Span, stream: int) -> Wait:
        """Begin to write into `out` this rank's part of every rank's `values`, one rank after the other."""
        return self._begun(dist.all_to_all_single, out, values, stream)

    def _begun(self, collective: Any, out: Span, values: Span, stream: int) -> Wait:
        # Not every part of a rank has values.
        if not out.nbytes:
            return lambda: None
        with self._on(stream):
            try:
                work = collective(self._tensor(out), self._tensor(values), group=self._group, async_op=True)
            except RuntimeError as error:
                raise CommError(f"rank {self._rank}: {error}") from error

        def wait() -> None:
            # The stream waits; the host goes on.
            with self._on(stream):
                work.wait()

        return wait

    def _on(self, stream: int) -> Any:
        """Return what has PyTorch order collectives after the work of `stream`, and its work after them."""
        return torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self._index))  # type: ignore[no-untyped-call]

    def _tensor(self, span: Span) -> torch.Tensor:
        """Return a run of memory as a tensor."""
        if span not in self._known:
            self._known[span] = torch.as_tensor(span, device=f"cuda:{self._index}")
        return self._known[span]


_abandoned: list[Any] = []
"""What is still under way may write to its tensors as long as the process lives."""
