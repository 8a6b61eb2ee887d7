"""Collectives of mpi4py."""

import os
import time
import warnings
from functools import cache
from typing import Any

from numba_lamb.comm.cpus import ranks_sharing
from numba_lamb.comm.interface import Array, CommError, Wait

_CALLER = 7
"""How far up the stack the optimizer is made."""
_SPIN = 2e-3
"""Seconds in which a collective is looked at without a pause; sleeping costs a time slice."""


class MpiComm:
    """The collectives of a communicator of mpi4py.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        It is duplicated, so that other messages cannot be taken for these: once, because there are few of them.
    timeout : float
        Seconds that a collective may take.
    """

    def __init__(self, comm: Any, timeout: float) -> None:
        from mpi4py import MPI

        self._mpi, self._timeout = MPI, timeout
        self.rank, self.size = int(comm.Get_rank()), int(comm.Get_size())
        self._warn_if_alone()
        self._kept = _kept_with(comm)
        if not self._kept:
            own, request = comm.Idup()
            self._wait(request, own)
            self._kept.append(own)
        self._comm = self._kept[0]
        self.sharing = ranks_sharing(self)

    def _warn_if_alone(self) -> None:
        """Warn where Slurm started several ranks that MPI takes for one each."""
        started = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if self.size == 1 and started.isdecimal() and int(started) > 1:
            warnings.warn(
                f"comm has 1 rank, but Slurm started {started}: each trains alone; srun --mpi=pmi2 (MPICH) or "
                "--mpi=pmix (Open MPI) has them find each other",
                stacklevel=_CALLER,
            )

    def all_gather(self, out: Array, values: Array) -> Wait:
        """Begin to write every rank's `values`, which are bytes, into `out`, one rank after the other."""
        return self._begun(self._comm.Iallgather, values, out)

    def all_to_all(self, out: Array, values: Array) -> Wait:
        """Begin to write into `out` this rank's part of every rank's `values`, one rank after the other."""
        return self._begun(self._comm.Ialltoall, values, out)

    def _begun(self, collective: Any, values: Array, out: Array) -> Wait:
        try:
            request = collective(values, out)
        except self._mpi.Exception as error:
            raise self._failed(str(error)) from error
        return lambda: self._wait(request, (values, out))

    def _wait(self, request: Any, kept: Any) -> None:
        """Return when a request is done; `kept` is what it may write to."""
        began = time.monotonic()
        try:
            while not request.Test():
                waited = time.monotonic() - began
                if waited > self._timeout:
                    # What is still under way may write to it as long as the process lives.
                    _abandoned.append((request, kept))
                    raise self._failed(
                        f"the other ranks did not answer within {self._timeout:g} seconds; "
                        "timeout= allows for more"
                    )
                time.sleep(0.0 if waited < _SPIN else 1e-4)
        except self._mpi.Exception as error:
            raise self._failed(str(error)) from error

    def _failed(self, reason: str) -> CommError:
        """Return the error of a collective, of which the next optimizer must not see the rest."""
        self._kept.clear()
        return CommError(f"rank {self.rank}: {reason}")


@cache
def _key() -> int:
    """Return the key of what is kept with a communicator, which is freed with it."""
    from mpi4py import MPI

    def free(comm: Any, key: int, kept: list[Any]) -> None:
        for own in kept:
            own.Free()

    return int(MPI.Comm.Create_keyval(delete_fn=free))


def _kept_with(comm: Any) -> list[Any]:
    """Return a list, kept with a communicator, of its duplicate."""
    if comm.Get_attr(_key()) is None:
        comm.Set_attr(_key(), [])
    found: list[Any] = comm.Get_attr(_key())
    return found


_abandoned: list[Any] = []
