"""A rank of MPI: NumPy's optimizers beside those of one process."""

import numpy as np
from mpi4py import MPI

import numba_lamb as nl
from tests.sharding.test_numpy import MAKES, arrays, left, take

for make in MAKES.values():
    params, own = arrays(1, np.float32), arrays(1, np.float32)
    alone, sharded = make(params), make(own, comm=nl.Sharding(MPI.COMM_WORLD, bucket_mb=0.1))
    take(alone, range(20), np.float32)
    take(sharded, range(20), np.float32)
    assert left(own, sharded) == left(params, alone)
