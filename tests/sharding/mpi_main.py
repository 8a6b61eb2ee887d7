"""A rank of MPI: NumPy's optimizers beside those of one process."""

import os
import warnings

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.comm.mpi import MpiComm
from tests.sharding.test_numpy import MAKES, arrays, left, take


def come_late() -> None:
    """One rank takes a step when the others have given it up; then all go on with new optimizers."""
    from mpi4py import MPI

    late = MPI.COMM_WORLD.Get_rank() == 1
    opt = nl.Lamb(arrays(1, np.float32), 0.01, comm=nl.Sharding(MPI.COMM_WORLD, timeout=0.3))
    kept = MpiComm(MPI.COMM_WORLD, 5.0)._comm
    assert MpiComm(MPI.COMM_WORLD, 5.0)._comm is kept
    for _ in range(late):
        MPI.COMM_WORLD.Barrier()
    with pytest.raises(nl.CommError, match=r"the other ranks did not answer within 0\.3 seconds"):
        take(opt, range(1), np.float32)
    for _ in range(2 - late):
        MPI.COMM_WORLD.Barrier()
    # What is left of the step is not taken for the next optimizer's.
    assert MpiComm(MPI.COMM_WORLD, 5.0)._comm is not kept
    take(nl.Lamb(arrays(1, np.float32), 0.01, comm=MPI.COMM_WORLD), range(2), np.float32)


def main() -> None:
    from mpi4py import MPI

    for make in MAKES.values():
        params, own = arrays(1, np.float32), arrays(1, np.float32)
        alone, sharded = make(params), make(own, comm=nl.Sharding(MPI.COMM_WORLD, bucket_mb=0.1))
        take(alone, range(20), np.float32)
        take(sharded, range(20), np.float32)
        assert left(own, sharded) == left(params, alone)
    come_late()
    # As where srun starts ranks that do not find each other.
    os.environ["SLURM_STEP_NUM_TASKS"] = "3"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nl.Lamb(arrays(1, np.float32), 0.01, comm=MPI.COMM_SELF)
        nl.Lamb(arrays(1, np.float32), 0.01, comm=MPI.COMM_WORLD)
    (warning,) = caught
    assert "comm has 1 rank, but Slurm started 3: each trains alone" in str(warning.message)
    assert warning.filename == __file__, warning.filename


if __name__ == "__main__":
    main()
