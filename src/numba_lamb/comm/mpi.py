"""Collectives of mpi4py."""

import os
import time
import warnings
from typing import Any

from numba_lamb.comm.cpus import own_cpus, sharing
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
        It is duplicated, so that other messages cannot be taken for these.
    timeout : float
        Seconds that a collective may take.
    """

    def __init__(self, comm: Any, timeout: float) -> None:
        from mpi4py import MPI

        self._mpi, self._comm, self._timeout = MPI, comm.Dup(), timeout
        self.rank, self.size = int(self._comm.Get_rank()), int(self._comm.Get_size())
        self._warn_if_alone()
        near = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.sharing = sharing(near.allgather(own_cpus()))
        near.Free()

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
            raise CommError(f"rank {self.rank}: {error}") from error

        def wait() -> None:
            began = time.monotonic()
            try:
                while not request.Test():
                    waited = time.monotonic() - began
                    if waited > self._timeout:
                        # What is still under way may write to these arrays as long as the process lives.
                        _abandoned.append((request, values, out))
                        raise CommError(
                            f"rank {self.rank}: the other ranks did not answer within {self._timeout:g} seconds; "
                            "timeout= allows for more"
                        )
                    time.sleep(0.0 if waited < _SPIN else 1e-4)
            except self._mpi.Exception as error:
                raise CommError(f"rank {self.rank}: {error}") from error

        return wait


_abandoned: list[Any] = []
