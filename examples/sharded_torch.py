"""Train the handwritten digits on several processes that share the optimizer's state; resume on any number."""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from numba_lamb.cli.train.data import load
from numba_lamb.torch import ShardedLamb

BATCH = 480


def main() -> None:
    """Train, save, and tell the accuracy on held-out digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="steps of this run")
    parser.add_argument("--checkpoint", type=Path, default=Path("sharded-torch"), help="a folder of them")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    digits = load().test
    inputs, labels = torch.from_numpy(digits.inputs), torch.from_numpy(digits.targets.argmax(axis=1))

    torch.manual_seed(0)  # the same weights on all ranks
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = ShardedLamb(model.named_parameters(), lr=0.02, weight_decay=0.01)
    start = 0
    if options.resume:
        state = {"step": 0, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        last = max(options.checkpoint.iterdir(), key=lambda folder: int(folder.name))
        dcp.load(state, checkpoint_id=last)
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    for step in range(start, start + options.steps):
        batch = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(step))[:BATCH]
        own = batch.chunk(size)[rank]
        loss = nn.functional.cross_entropy(model(inputs[own]), labels[own])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step = start + options.steps
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save(state, checkpoint_id=options.checkpoint / str(step))
    found = model(torch.from_numpy(digits.held_out_inputs)).argmax(dim=1).numpy()
    kept = sum(value.nbytes for entry in optimizer.state.values() for value in entry.values())
    if rank == 0:
        accuracy = (found == digits.held_out_labels).mean()
        print(
            f"{size} ranks, step {step}: {accuracy:.1%} of held-out digits, {kept:,} bytes of state on rank 0"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
