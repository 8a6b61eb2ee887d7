"""What the processes of the tests with `torch.distributed` do; in a module of its own, so that they find it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.integrations.trainer_toys import DECAY, RATE, Batch, batches, network, train, weights

WORLD = 2
STEPS = 8
HALF = 5
"""The step after which a checkpoint is written."""

Case = tuple[str, dict[str, Any]]


def half_of(batch: Batch, rank: int) -> Batch:
    inputs, classes = batch
    return inputs.chunk(WORLD)[rank], classes.chunk(WORLD)[rank]


def matrices(layer: Any) -> bool:
    return bool(layer.ndim > 1)


def lamb(parameters: Any, **options: Any) -> Any:
    from numba_lamb.torch import Lamb

    return Lamb(parameters, lr=RATE, weight_decay=DECAY, **options)


def in_groups(model: Any) -> list[dict[str, Any]]:
    """Group matrices and vectors; a third group is one layer, so that one process has nothing of it."""
    *others, last = model.parameters()
    return [
        {"params": [p for p in others if p.ndim > 1]},
        {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
        {"params": [last], "weight_decay": 0.0, "lr": 0.5 * RATE, "betas": (0.8, 0.99)},
    ]


def one_layer_first(model: Any) -> list[dict[str, Any]]:
    """Make a group of one layer the first, so that one process begins with a group of nothing."""
    return in_groups(model)[::-1]


def clipping(model: Any) -> Callable[[], object]:
    """Clip as is right with sharded optimizers: outside, where all gradients are seen."""
    return lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def plain_parameters(model: Any) -> Any:
    return list(model.parameters())


PARAMETERS: dict[str, Callable[[Any], Any]] = {
    "flat": plain_parameters,
    "groups": in_groups,
    "empty first group": one_layer_first,
}


def distributed_data_parallel(rank: int, folder: Path, options: dict[str, Any]) -> Any:
    """Train on this rank's half of every batch."""
    model = network()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=options["view"])
    optimizer = lamb(wrapped.parameters(), max_grad_norm=options["max_grad_norm"])
    train(wrapped, optimizer, [half_of(batch, rank) for batch in batches(STEPS)])
    return {"weights": weights(model), "state": optimizer.state_dict()["state"]}


def zero_redundancy(rank: int, folder: Path, options: dict[str, Any]) -> Any:
    """Train on whole batches, write a checkpoint on the way, and take up training from it a second time."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    from numba_lamb.torch import Lamb

    def sharded() -> tuple[Any, Any, Any]:
        model = network()
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = ZeroRedundancyOptimizer(
            PARAMETERS[options["parameters"]](model),
            optimizer_class=Lamb,
            parameters_as_bucket_view=options["view"],
            lr=RATE,
            weight_decay=DECAY,
            decay_filter=matrices,
        )
        return model, wrapped, optimizer

    model, wrapped, optimizer = sharded()
    data = batches(STEPS)
    train(wrapped, optimizer, data[:HALF], before_step=clipping(model))
    optimizer.consolidate_state_dict(to=0)
    path = folder / f"{options['name']}.checkpoint.pt"
    if rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    torch.distributed.barrier()
    train(wrapped, optimizer, data[HALF:], before_step=clipping(model))

    resumed, wrapped, optimizer = sharded()
    saved = torch.load(path, weights_only=False)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(wrapped, optimizer, data[HALF:], before_step=clipping(resumed))
    return {
        "weights": weights(model),
        "resumed": weights(resumed),
        "sizes": [len(group["params"]) for group in optimizer.optim.param_groups],
        "owned": [list(p.shape) for group in optimizer.optim.param_groups for p in group["params"]],
    }


WORK: dict[str, Callable[[int, Path, dict[str, Any]], Any]] = {
    "ddp": distributed_data_parallel,
    "zero": zero_redundancy,
}


def process(rank: int, folder: Path, cases: list[Case]) -> None:
    """Do the work of one process, and leave its results in the folder."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    try:
        results = {options["name"]: WORK[work](rank, folder, options) for work, options in cases}
        torch.save(results, folder / f"rank{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def in_processes(folder: Path, cases: list[Case]) -> list[dict[str, Any]]:
    """Run the cases in two new processes; return the results of each."""
    torch.multiprocessing.spawn(process, (folder, cases), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]
