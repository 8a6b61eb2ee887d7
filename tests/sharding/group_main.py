"""A rank of three whose process group cannot be used from the CPU's memory, as NCCL's. Argument: folder."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import numba_lamb as nl
from numba_lamb.torch import ShardedLamb
from tests.sharding.test_torch import network, take


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("cuda:gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    # In the other order, and of some processes alone.
    some = dist.new_group([2, 0], sort_ranks=False)
    groups = [None, None] if rank == 1 else [None, some, some, None]
    digests = []
    for group in groups:
        model = network()
        take(model, ShardedLamb(model.named_parameters(), lr=0.01, process_group=group), range(3))
        digests.append([parameter.detach().clone() for parameter in model.parameters()])
    for others in digests[1:]:
        assert all(torch.equal(one, other) for one, other in zip(digests[0], others, strict=True))

    # Twice the limit: a rank that failed may come when others have yet to find that it does not answer.
    if rank != 1:
        told = f"rank {rank}: another rank makes no optimizer, or cannot be reached by gloo within 6 seconds"
        with pytest.raises(nl.CommError, match=told):
            ShardedLamb(network().named_parameters(), lr=0.01, timeout=3.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
