"""Memory that parameters occupy together, and the order in which those that share it are updated."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from numba_lamb.groups import Parameter
from numba_lamb.memory.array_reader import Int64


def joined_spans(parameters: Sequence[Parameter]) -> tuple[Int64, Int64]:
    """Return sorted starts and ends of the memory that parameters occupy, those that overlap as one."""
    joined: list[list[int]] = []
    for start, end in sorted((p.storage.address, p.storage.address + p.storage.nbytes) for p in parameters):
        if joined and start < joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        elif start < end:
            joined.append([start, end])
    spans = np.array(joined, dtype=np.int64).reshape(-1, 2)
    return spans[:, 0].copy(), spans[:, 1].copy()


def levels(parameters: Sequence[Parameter]) -> list[list[int]]:
    """Return parameters by number, in runs within which none shares memory with another."""
    spans = [(p.storage.address, p.storage.address + p.storage.nbytes) for p in parameters]
    ordered = sorted(span for span in spans if span[0] < span[1])
    if all(end <= start for (_, end), (start, _) in pairwise(ordered)):
        return [list(range(len(parameters)))]
    # Each after the last one that it shares memory with, as if they were updated one by one.
    number: list[int] = []
    for k, (start, end) in enumerate(spans):
        before = [number[j] + 1 for j in range(k) if start < spans[j][1] and spans[j][0] < end]
        number.append(max(before, default=0))
    return [[k for k, level in enumerate(number) if level == w] for w in range(max(number) + 1)]
