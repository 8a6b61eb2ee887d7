"""The CPU's sums over lanes, in their fixed order, and what is looked up in a gradient before a step.

A sum's order is pinned by the lanes and the tree, never by threads.
"""

import math
from typing import Any

import numpy as np

from numba_lamb._compile import bind, cpu_function
from numba_lamb.kernels.columns import GRADIENT, RESCALE, WEIGHTS
from numba_lamb.kernels.cpu.intrinsics import fma, pointer_to, stack_values
from numba_lamb.kernels.cpu.rows import fetch_ahead, in_place_of, load, stored
from numba_lamb.layout import CHUNK, LANES
from numba_lamb.numerics import rules as rule_text

rules = bind(rule_text, cpu_function, fma=fma)


@cpu_function
def chunk_count(end: Any, start: Any) -> Any:
    """Return the elements of the chunk that begins at `start`, which may be the rest of one."""
    return min(end - start, CHUNK - start % CHUNK)


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
def count_unusable(gradient: Any, at: Any, count: Any, itemsize: Any, bound: Any, ahead: Any) -> Any:
    """Return how many of `count` gradient values from `at` on are infinite, NaN or beyond `bound`."""
    found = np.int32(0)
    buffer = stack_values(LANES, bound)
    for first in range(0, count, LANES):
        width = min(count - first, LANES)
        fetch_ahead(gradient, at + first, itemsize, ahead)
        g = load(gradient, at + first, width, itemsize, buffer)
        for i in range(width):
            found += np.int32(not rules.is_usable(g[i], bound))
    return found


@cpu_function
def largest_pattern(gradient: Any, at: Any, count: Any, itemsize: Any, signless: Any, ahead: Any) -> Any:
    """Return the largest of `count` bit patterns without their signs, of values stored as they are computed with.

    Those of floats are in the order of magnitude, a NaN's above all, and integers compare at twice the pace.
    """
    words = pointer_to(gradient[1] + at * itemsize, signless)
    largest = signless ^ signless
    # In one go where nothing is prefetched: at the end of each loop the lanes of a vector meet.
    stretch = 4 * LANES if ahead > 0 else CHUNK
    for first in range(0, count, stretch):
        for row in range(first, first + 4 * LANES, LANES):
            fetch_ahead(gradient, at + row, itemsize, ahead)
        for i in range(first, min(first + stretch, count)):
            largest = max(largest, words[i] & signless)
    return largest


@cpu_function
def square_sum(gradient: Any, at: Any, count: Any, itemsize: Any, rescale: Any, ahead: Any) -> Any:
    """Return the sum of the squares of `count` values from `at` on, each times `rescale`."""
    lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    buffer = stack_values(LANES, rescale)
    for first in range(0, count, LANES):
        width = min(count - first, LANES)
        fetch_ahead(gradient, at + first, itemsize, ahead)
        g = load(gradient, at + first, width, itemsize, buffer)
        for lane in range(width):
            lanes[lane] = rules.add_square(lanes[lane], rescale * g[lane])
    return add_lanes(lanes)


@cpu_function
def row_mean(
    gradient: Any, weights: Any, at: Any, length: Any, itemsize: Any, rescale: Any, decay: Any
) -> Any:
    """Return the mean of one row of the decayed gradient, `length` values from `at` on, in float64."""
    lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    g_buffer, w_buffer = stack_values(LANES, rescale), stack_values(LANES, rescale)
    for first in range(0, length, LANES):
        width = min(length - first, LANES)
        g = load(gradient, at + first, width, itemsize, g_buffer)
        w = load(weights, at + first, width, itemsize, w_buffer)
        for lane in range(width):
            lanes[lane] += np.float64(rules.decayed_gradient(g[lane], w[lane], rescale, decay))
    return rules.row_mean(add_lanes(lanes), length)


@cpu_function
def centralize(
    out: Any,
    gradient: Any,
    weights: Any,
    start: Any,
    count: Any,
    itemsize: Any,
    rescale: Any,
    decay: Any,
    means: Any,
    length: Any,
) -> None:
    """Write into `out` one chunk of the decayed gradient less its rows' `means`."""
    g_buffer, w_buffer = stack_values(LANES, rescale), stack_values(LANES, rescale)
    for first in range(0, count, LANES):
        width = min(count - first, LANES)
        g = load(gradient, start + first, width, itemsize, g_buffer)
        w = load(weights, start + first, width, itemsize, w_buffer)
        for lane in range(width):
            out[first + lane] = rules.decayed_gradient(g[lane], w[lane], rescale, decay)
    row = start // length
    i = 0
    while i < count:
        end = min(count, (row + 1) * length - start)
        mean = means[row]
        for k in range(i, end):
            out[k] = rules.centered(out[k], mean)
        i = end
        row += 1


@cpu_function
def chunk_gradient(
    addresses: Any,
    formats: Any,
    hyper: Any,
    layer: Any,
    start: Any,
    count: Any,
    decay: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    central: Any,
) -> Any:
    """Return the gradient of one chunk as rows are read of it, its factor, and the decay still to be added.

    That of a layer that is centralized is made in `central`, with both in it.
    """
    gradient, rescale = stored(addresses, formats, layer, GRADIENT), hyper[layer, RESCALE]
    if first_row[layer] < 0:
        return gradient, rescale, decay
    weights, layer_means = stored(addresses, formats, layer, WEIGHTS), means[first_row[layer] :]
    itemsize, length = hyper.itemsize, row_lengths[layer]
    centralize(central, gradient, weights, start, count, itemsize, rescale, decay, layer_means, length)
    return in_place_of(gradient, central, start, itemsize), means.dtype.type(1), means.dtype.type(0)
