"""Steps of ranks that share state, beside replicated ones; prints ratios of medians.

    torchrun --nproc-per-node 2 asv_bench/sharding.py [--profile resnet-50] [--rounds 9]

Every rank holds all ways to take a step at once, and rounds go through them in turn, so that a machine that others
use slows all of them alike. What is timed is averaging gradients, the step, and handing out weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer

from numba_lamb.cli.bench.profiles import PROFILES
from numba_lamb.torch import Lamb, ShardedLamb

RATE = 1e-5


class Ranks:
    """Parameters with gradients, and what takes a step of them."""

    def __init__(self, shapes: Any, make: Callable[[list[Any]], Any], averages: bool) -> None:
        self._params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        for parameter in self._params:
            parameter.grad = torch.randn_like(parameter)
        self._optimizer, self._averages = make(self._params), averages

    def step(self) -> float:
        """Take a step and return the seconds that the slowest rank took."""
        dist.barrier()
        began = time.perf_counter()
        if not self._averages:
            # As DDP does, in buckets of 25 MiB that it would fill during the backward pass.
            flat = torch.cat([parameter.grad.reshape(-1) for parameter in self._params])
            waits = [dist.all_reduce(part, async_op=True) for part in flat.split(25 * 2**18)]
            for wait in waits:
                wait.wait()
            flat /= dist.get_world_size()
            at = 0
            for parameter in self._params:
                parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
                at += parameter.numel()
        self._optimizer.step()
        dist.barrier()
        return time.perf_counter() - began


def main() -> None:
    """Time all ways, and print what one takes of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="resnet-50")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    shapes = PROFILES[options.profile]
    ways = {
        "replicated: all-reduce, Lamb": Ranks(shapes, lambda ps: Lamb(ps, lr=RATE), averages=False),
        "ZeRO-1 by layers: all-reduce, ZeroRedundancyOptimizer(Lamb)": Ranks(
            shapes, lambda ps: ZeroRedundancyOptimizer(ps, Lamb, lr=RATE), averages=False
        ),
        "ShardedLamb": Ranks(shapes, lambda ps: ShardedLamb(ps, lr=RATE), averages=True),
        "ShardedLamb, nothing overlaps": Ranks(
            shapes, lambda ps: ShardedLamb(ps, lr=RATE, bucket_mb=1e6), averages=True
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 2):
        for name, way in ways.items():
            taken = way.step()
            if number >= 2:
                times[name].append(taken)
    if dist.get_rank() == 0:
        first = times[next(iter(times))]
        print(f"{options.profile}, {dist.get_world_size()} ranks, {options.rounds} rounds")
        for name, found in times.items():
            ratio = statistics.median(a / b for a, b in zip(found, first, strict=True))
            print(f"{ratio:6.2f}  {1000 * statistics.median(found):8.1f} ms  {name}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
