"""A rank of gloo that meets with another's fault. Arguments: folder, and "dies", "hangs" or "goes on"."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import numba_lamb as nl
from numba_lamb.torch import ShardedLamb

TIMEOUT = 5.0


def go_on(rank: int, opt: ShardedLamb) -> None:
    """One rank leaves a step out, which the other waits for; then both go on with new optimizers."""
    if rank == 0:
        with pytest.raises(nl.CommError, match="did not answer within 5 seconds"):
            opt.step()
    weight = torch.nn.Parameter(torch.ones(50_000))
    weight.grad = torch.ones_like(weight)
    again = ShardedLamb([weight], lr=0.1, timeout=TIMEOUT)
    again.step()
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert weight.detach().unique().numel() == 1


def main(folder: Path, fault: str) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    weight = torch.nn.Parameter(torch.ones(50_000))
    opt = ShardedLamb([weight], lr=0.1, timeout=TIMEOUT)
    weight.grad = torch.ones_like(weight)
    opt.step()
    if fault == "goes on":
        go_on(rank, opt)
        return
    if rank == 1:
        if fault == "hangs":
            time.sleep(60)
        os._exit(0)
    before, began = weight.detach().clone(), time.monotonic()
    try:
        opt.step()
    except nl.CommError as error:
        # A rank that is gone is seen at once, or when it does not answer.
        assert time.monotonic() - began < 4 * TIMEOUT
        print(error)
    else:
        raise AssertionError("no error")
    assert torch.equal(weight.detach(), before)
    try:
        opt.state_dict()
    except nl.CommError as error:
        print(error)
    # What is under way would be waited for.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
