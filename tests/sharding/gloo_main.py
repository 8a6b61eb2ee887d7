"""A rank of gloo: takes steps, and saves or loads. Arguments: folder, and "save" or "load"."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import numba_lamb.torch as nlt
from tests.sharding.test_torch import network, take

KINDS = {
    "lamb": (
        nlt.Lamb,
        nlt.ShardedLamb,
        {"lr": 0.01, "weight_decay": 0.1, "max_grad_norm": 1.0},
        torch.float32,
    ),
    "split": (nlt.Lamb, nlt.ShardedLamb, {"lr": 0.01, "nonfinite": "skip"}, torch.bfloat16),
    "lans": (nlt.Lans, nlt.ShardedLans, {"lr": 0.01, "moments": "int8"}, torch.float32),
    "lars": (nlt.Lars, nlt.ShardedLars, {"lr": 0.1}, torch.float32),
    "momentum": (nlt.Momentum, nlt.ShardedMomentum, {"lr": 0.1}, torch.float32),
}


def main(folder: Path, task: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet-{task}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    for name, (plain, sharded, options, dtype) in KINDS.items():
        single, model = network(dtype), network(dtype)
        alone = plain(single.named_parameters(), **options)
        opt = sharded(model.named_parameters(), bucket_mb=0.05, **options)
        take(single, alone, range(20))
        if task == "save":
            take(model, opt, range(4))
            state = {"model": model.state_dict(), "optimizer": opt.state_dict()}
            if name == "lamb":
                dcp.async_save(state, checkpoint_id=folder / name).result()
            else:
                dcp.save(state, checkpoint_id=folder / name)
        else:
            model[4].requires_grad_(True)
            state = {"model": model.state_dict(), "optimizer": opt.state_dict()}
            dcp.load(state, checkpoint_id=folder / name)
            opt.load_state_dict(state["optimizer"])
        take(model, opt, range(4, 20))
        assert all(map(torch.equal, model.parameters(), single.parameters())), name
        whole, expected = opt.full_state_dict()["state"], alone.state_dict()["state"]
        for key, entry in expected.items():
            for kind, value in entry.items():
                assert torch.equal(value, whole[key][kind]), (name, key, kind)
    assert np.isfinite(opt.stats()["trust_ratio/4.bias"])
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
