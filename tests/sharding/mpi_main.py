"""A rank of MPI: NumPy's optimizers beside those of one process."""

import os
import warnings

import numpy as np

import numba_lamb as nl
from tests.sharding.test_numpy import MAKES, arrays, left, take


def main() -> None:
    from mpi4py import MPI

    for make in MAKES.values():
        params, own = arrays(1, np.float32), arrays(1, np.float32)
        alone, sharded = make(params), make(own, comm=nl.Sharding(MPI.COMM_WORLD, bucket_mb=0.1))
        take(alone, range(20), np.float32)
        take(sharded, range(20), np.float32)
        assert left(own, sharded) == left(params, alone)
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
