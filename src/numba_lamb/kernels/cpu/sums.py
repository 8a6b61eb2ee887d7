"""The CPU's sums over lanes, in their fixed order, and what is looked up in a gradient before a step.

A sum's order is pinned by the lanes and the tree, never by threads.
"""

import math
from typing import Any

import numpy as np

from numba_lamb._compile import bind, cpu_function
from numba_lamb._tuning import LINE
from numba_lamb.kernels.cpu.intrinsics import fma, prefetch, stack_values
from numba_lamb.layout import CHUNK, LANES
from numba_lamb.numerics import rules as rule_text

rules = bind(rule_text, cpu_function, fma=fma)


@cpu_function
def fetch_ahead(values: Any, first: Any, itemsize: Any, ahead: Any) -> None:
    """Prefetch as many values as there are lanes, `ahead` bytes after ``values[first]``; none where it is 0."""
    if ahead > 0:
        nearest = first + ahead // itemsize
        for i in range(nearest, nearest + LANES, LINE // itemsize):
            prefetch(values, i)


# -- sums ----------------------------------------------------------------------------------------------------


@cpu_function
def clear_lanes(lanes: Any) -> None:
    """Set all lanes to zero."""
    for lane in range(LANES):
        lanes[lane] = 0.0


@cpu_function
def add_lanes(lanes: Any) -> Any:
    """Add up the lanes in the pinned tree; they are overwritten."""
    half = LANES // 2
    while half > 0:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0]


@cpu_function
def layer_sum(sums: Any, column: Any, first: Any, last: Any) -> Any:
    """Return one layer's chunk sums, added up in the pinned tree."""
    if last - first == 1:
        # The tree would only add zeros.
        return sums[first, column]
    lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    for chunk in range(first, last):
        lanes[(chunk - first) % LANES] += sums[chunk, column]
    return add_lanes(lanes)


@cpu_function
def layer_norm(sums: Any, column: Any, first: Any, last: Any) -> Any:
    """Return the root of one layer's sum."""
    return math.sqrt(layer_sum(sums, column, first, last))


@cpu_function
def sum_of_layers(squares: Any) -> Any:
    """Return the sums of all layers, added up in the pinned tree."""
    lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    for layer in range(squares.shape[0]):
        lanes[layer % LANES] += squares[layer]
    return add_lanes(lanes)


# -- gradients: finite check, squares and centralization -----------------------------------------------------


@cpu_function
def count_unusable(values: Any, count: Any, bound: Any) -> Any:
    """Return how many of `count` gradient values are infinite, NaN or beyond `bound`."""
    found = np.int32(0)
    for i in range(count):
        found += np.int32(not rules.is_usable(values[i], bound))
    return found


@cpu_function
def largest_pattern(words: Any, count: Any, itemsize: Any, signless: Any, ahead: Any) -> Any:
    """Return the largest of `count` bit patterns without their signs.

    Those of floats are in the order of magnitude, a NaN's above all, and integers compare at twice the pace.
    """
    largest = signless ^ signless
    # In one go where nothing is prefetched: at the end of each loop the lanes of a vector meet.
    stretch = 4 * LANES if ahead > 0 else CHUNK
    for first in range(0, count, stretch):
        for row in range(first, first + 4 * LANES, LANES):
            fetch_ahead(words, row, itemsize, ahead)
        for i in range(first, min(first + stretch, count)):
            largest = max(largest, words[i] & signless)
    return largest


@cpu_function
def square_sum(values: Any, count: Any, itemsize: Any, ahead: Any) -> Any:
    """Return the sum of the squares of `count` values."""
    lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    for first in range(0, count, LANES):
        fetch_ahead(values, first, itemsize, ahead)
        for lane in range(min(count - first, LANES)):
            lanes[lane] = rules.add_square(lanes[lane], values[first + lane])
    return add_lanes(lanes)


@cpu_function
def row_mean(g: Any, w: Any, length: Any, rescale: Any, decay: Any) -> Any:
    """Return the mean of one row of the decayed gradient, in float64."""
    lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    for first in range(0, length, LANES):
        for lane in range(min(length - first, LANES)):
            i = first + lane
            lanes[lane] += np.float64(rules.decayed_gradient(g[i], w[i], rescale, decay))
    return rules.row_mean(add_lanes(lanes), length)


@cpu_function
def centralize(
    out: Any, g: Any, w: Any, start: Any, count: Any, rescale: Any, decay: Any, means: Any, length: Any
) -> None:
    """Write into `out` one chunk of the decayed gradient less its rows' `means`."""
    row = start // length
    i = 0
    while i < count:
        end = min(count, (row + 1) * length - start)
        mean = means[row]
        for k in range(i, end):
            out[k] = rules.centered(rules.decayed_gradient(g[k], w[k], rescale, decay), mean)
        i = end
        row += 1
