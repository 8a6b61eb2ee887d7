"""A rank of MPI: NumPy's optimizers beside those of one process."""

import numpy as np
from mpi4py import MPI

import numba_lamb as nl
from tests.sharding.test_numpy import MAKES, arrays, left, take

for make in MAKES.values():
    for average in ("library", "ordered"):
        params, own = arrays(1, np.float32), arrays(1, np.float32)
        alone = make(params)
        sharded = make(own, comm=nl.Sharding(MPI.COMM_WORLD, average=average, bucket_mb=0.1))
        take(alone, range(20), np.float32)
        take(sharded, range(20), np.float32)
        found, expected = left(own, sharded), left(params, alone)
        # In float64 the library's sums are exact only where they are few.
        assert all(
            found[name] == expected[name] for name in expected if average == "ordered" or "d" not in name
        )
