"""Ranks that share an optimizer's state on GPUs: threads that take turns on the double of the driver."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import Gpu
from tests.sharding.ranks import on_ranks
from tests.sharding.test_numpy import MAKES, arrays, left, take


class OnGpu:
    """An optimizer of arrays on the double, given gradients of the host."""

    def __init__(self, gpu: Gpu, make: Any, dtype: Any, **options: Any) -> None:
        self.gpu, self.arrays = gpu, gpu.arrays(arrays(1, dtype))
        self.opt = make(self.arrays, **options)
        self.params = self.opt.params

    def step(self, gradients: Any) -> None:
        self.opt.step(self.gpu.arrays(gradients))

    def left(self) -> Any:
        return left({name: array.get() for name, array in self.arrays.items()}, self.opt)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_bytes_are_those_of_one_process_on_the_cpu(gpu: Gpu, make: Any, dtype: Any) -> None:
    params = arrays(1, dtype)
    opt = make(params)
    take(opt, range(3), dtype)
    expected = left(params, opt)

    def work(comm: Any) -> Any:
        own = OnGpu(gpu, make, dtype, comm=nl.Sharding(comm, bucket_mb=0.1))
        take(own, range(3), dtype)
        return own.left()

    for found in on_ranks(2, work, turns=True):
        assert found == expected
