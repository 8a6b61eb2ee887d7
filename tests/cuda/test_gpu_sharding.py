"""Ranks on a real GPU give the CPU's bytes; skipped where there is none.

One GPU is enough: ranks are threads that share it, or one rank of NCCL, which takes no two ranks of one GPU.
"""

import copy
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.gpu_arrays import NO_GPU, DriverArray, cuda_torch
from tests.sharding.ranks import on_ranks
from tests.sharding.test_numpy import MAKES, arrays, left, take

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=NO_GPU or "")]


class OnGpu:
    """An optimizer of arrays on the GPU, given gradients of the host."""

    def __init__(self, make: Any, dtype: Any, **options: Any) -> None:
        self.arrays = {name: DriverArray(value) for name, value in arrays(1, dtype).items()}
        self.opt = make(self.arrays, **options)
        self.params = self.opt.params

    def step(self, gradients: Any) -> None:
        given = {name: None if g is None else DriverArray(g) for name, g in gradients.items()}
        self.opt.step(given)
        # They are freed without waiting for the step.
        self.opt.skipped_steps  # noqa: B018


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_bytes_of_arrays(make: Any, dtype: Any) -> None:
    params = arrays(1, dtype)
    opt = make(params)
    take(opt, range(4), dtype)
    expected = left(params, opt)

    def work(comm: Any) -> Any:
        own = OnGpu(make, dtype, comm=nl.Sharding(comm, bucket_mb=0.1))
        take(own, range(4), dtype)
        return left({name: array.get() for name, array in own.arrays.items()}, own.opt)

    for size in (1, 3):
        for found in on_ranks(size, work, turns=True):
            assert found == expected


@pytest.fixture(name="nccl")
def nccl_fixture() -> Iterator[Any]:
    torch = cuda_torch()
    dist = torch.distributed
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield torch
    dist.destroy_process_group()


def test_the_bytes_of_one_rank_of_nccl(nccl: Any) -> None:
    import numba_lamb.torch as nlt
    from numba_lamb.torch.comm import NcclComm

    nccl.manual_seed(0)
    single = nccl.nn.Sequential(nccl.nn.Linear(70, 300), nccl.nn.Linear(300, 5))
    model, pieces = copy.deepcopy(single).cuda(), copy.deepcopy(single).cuda()
    nccl.distributed.fsdp.fully_shard(pieces)
    options: dict[str, Any] = {"lr": 0.01, "max_grad_norm": 1.0, "nonfinite": "skip"}
    alone = nlt.Lamb(single.named_parameters(), **options)
    sharded = nlt.ShardedLamb(model.named_parameters(), bucket_mb=0.02, **options)
    of_pieces = nlt.Lamb(pieces.named_parameters(), **options)
    for factor in (1.0, float("inf"), 1.0, 1e-3):
        for w, twin, piece in zip(single.parameters(), model.parameters(), pieces.parameters(), strict=True):
            w.grad = factor * nccl.randn_like(w)
            twin.grad = w.grad.cuda()
            piece.grad = nccl.distributed.tensor.distribute_tensor(
                w.grad.cuda(), piece.device_mesh, piece.placements
            )
        for opt in (alone, sharded, of_pieces):
            opt.step()
    for w, twin, piece in zip(single.parameters(), model.parameters(), pieces.parameters(), strict=True):
        assert nccl.equal(w, twin.cpu())
        assert nccl.equal(w, piece.full_tensor().cpu())
    assert isinstance(sharded._backend._device_comm, NcclComm)
    assert dict(sharded.stats()) == dict(of_pieces.stats()) == alone.stats()
    assert sharded.skipped_steps == of_pieces.skipped_steps == 1
