"""What the CPU kernels do with one chunk, one row or one layer: loads, rule calls, fixed-order sums, stores.

Every function owns what it writes, so the order in which chunks are taken cannot change a bit.
"""

import math
from typing import Any

import numpy as np

from numba_lamb._compile import bind, cpu_function
from numba_lamb.kernels.intrinsics import fma, pointer_to, prefetch, stack_values
from numba_lamb.kernels.rows import (
    ADAPT,
    ADVANCE,
    BETA1,
    BETA2,
    CLIP,
    COEFFICIENT,
    COMPLEMENT1,
    COMPLEMENT2,
    CORRECTION1,
    CORRECTION2,
    DECAY,
    DESCEND,
    EPS,
    EPSILON,
    FIRST,
    GRADIENT,
    GUARDED,
    LOOKAHEAD,
    RATE_INSIDE,
    RATIO,
    RESCALE,
    SECOND,
    UPDATE_NORM,
    VELOCITY,
    WEIGHT_NORM,
    WEIGHTS,
)
from numba_lamb.layout import CHUNK, LANES
from numba_lamb.numerics import rules as rule_text

AHEAD = 4096
"""Bytes to fetch ahead in each stream: one page, beyond which hardware prefetchers do not look."""
LINE = 64

rules = bind(rule_text, cpu_function, fma=fma)


@cpu_function
def fetch_ahead(values: Any, first: Any, itemsize: Any) -> None:
    """Prefetch as many values as there are lanes, one page after ``values[first]``."""
    ahead = first + AHEAD // itemsize
    for i in range(ahead, ahead + LANES, LINE // itemsize):
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
def count_nonfinite(values: Any, count: Any, itemsize: Any) -> Any:
    """Return how many of `count` values are infinite or NaN."""
    found = np.int32(0)
    for first in range(0, count, LANES):
        fetch_ahead(values, first, itemsize)
        for i in range(first, min(first + LANES, count)):
            found += np.int32(not math.isfinite(values[i]))
    return found


@cpu_function
def square_sum(values: Any, count: Any, itemsize: Any) -> Any:
    """Return the sum of the squares of `count` values."""
    lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    for first in range(0, count, LANES):
        fetch_ahead(values, first, itemsize)
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
    return add_lanes(lanes) / np.float64(length)


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
            out[k] = rules.decayed_gradient(g[k], w[k], rescale, decay) - mean
        i = end
        row += 1


# -- LAMB ----------------------------------------------------------------------------------------------------


@cpu_function
def lamb_moments(w: Any, g: Any, m: Any, v: Any, count: Any, row: Any, rescale: Any, sums: Any) -> None:
    """Advance m and v over one chunk and put the sums of w^2 and u^2 into `sums`."""
    beta1, complement1, correction1 = row[BETA1], row[COMPLEMENT1], row[CORRECTION1]
    beta2, complement2, correction2 = row[BETA2], row[COMPLEMENT2], row[CORRECTION2]
    eps, decay = row[EPS], row[DECAY]
    weight_lanes = stack_values(LANES, 0.0)
    update_lanes = stack_values(LANES, 0.0)
    clear_lanes(weight_lanes)
    clear_lanes(update_lanes)
    u = stack_values(LANES, eps)
    for first in range(0, count, LANES):
        width = min(count - first, LANES)
        fetch_ahead(w, first, row.itemsize)
        fetch_ahead(g, first, row.itemsize)
        fetch_ahead(m, first, row.itemsize)
        fetch_ahead(v, first, row.itemsize)
        # Two loops, so that the float64 sums do not halve the width of the arithmetic.
        for lane in range(width):
            i = first + lane
            g_i = rescale * g[i]
            m_i = rules.first_moment(m[i], g_i, beta1, complement1)
            v_i = rules.second_moment(v[i], g_i, beta2, complement2)
            u[lane] = rules.lamb_direction(w[i], m_i, v_i, correction1, correction2, eps, decay)
            m[i] = m_i
            v[i] = v_i
        for lane in range(width):
            weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[first + lane])
            update_lanes[lane] = rules.add_square(update_lanes[lane], u[lane])
    sums[0] = add_lanes(weight_lanes)
    sums[1] = add_lanes(update_lanes)


@cpu_function
def lamb_advance(
    chunk: Any,
    addresses: Any,
    scalars: Any,
    sizes: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    sums: Any,
) -> None:
    """Take the first pass over one chunk: 24 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    count = min(sizes[layer] - start, CHUNK)
    skipped = start * scalars.itemsize
    rescale = scalars[layer, RESCALE]
    w = pointer_to(addresses[layer, WEIGHTS] + skipped, rescale)
    g = pointer_to(addresses[layer, GRADIENT] + skipped, rescale)
    m = pointer_to(addresses[layer, FIRST] + skipped, rescale)
    v = pointer_to(addresses[layer, SECOND] + skipped, rescale)
    if first_row[layer] >= 0:
        one, zero = scalars.dtype.type(1), scalars.dtype.type(0)
        central = stack_values(CHUNK, rescale)
        layer_means = means[first_row[layer] :]
        centralize(central, g, w, start, count, rescale, zero, layer_means, row_lengths[layer])
        # The factor is in the centralized gradient already.
        lamb_moments(w, central, m, v, count, scalars[layer], one, sums[chunk])
    else:
        lamb_moments(w, g, m, v, count, scalars[layer], rescale, sums[chunk])


@cpu_function
def lamb_ratio(
    layer: Any,
    addresses: Any,
    scalars: Any,
    rates: Any,
    first_chunk: Any,
    sums: Any,
    norms: Any,
    scales: Any,
) -> None:
    """Finish one layer's norms, trust ratio and step length."""
    if addresses[layer, GRADIENT] == 0:
        return
    first, last = first_chunk[layer], first_chunk[layer + 1]
    weight_norm = layer_norm(sums, 0, first, last)
    update_norm = layer_norm(sums, 1, first, last)
    ratio = rules.trust_ratio(weight_norm, update_norm) if scalars[layer, ADAPT] != 0 else 1.0
    norms[layer, WEIGHT_NORM] = weight_norm
    norms[layer, UPDATE_NORM] = update_norm
    norms[layer, RATIO] = ratio
    scales[layer, DESCEND] = rates[layer] * ratio


@cpu_function
def lamb_descend(chunk: Any, addresses: Any, scalars: Any, sizes: Any, chunks: Any, scales: Any) -> None:
    """Recompute u over one chunk and take ``w <- w - scale*u``: 16 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    count = min(sizes[layer] - start, CHUNK)
    skipped = start * scalars.itemsize
    correction1, correction2 = scalars[layer, CORRECTION1], scalars[layer, CORRECTION2]
    eps, decay, scale = scalars[layer, EPS], scalars[layer, DECAY], scales[layer, DESCEND]
    w = pointer_to(addresses[layer, WEIGHTS] + skipped, eps)
    m = pointer_to(addresses[layer, FIRST] + skipped, eps)
    v = pointer_to(addresses[layer, SECOND] + skipped, eps)
    for first in range(0, count, LANES):
        fetch_ahead(w, first, scalars.itemsize)
        fetch_ahead(m, first, scalars.itemsize)
        fetch_ahead(v, first, scalars.itemsize)
        for i in range(first, min(first + LANES, count)):
            u_i = rules.lamb_direction(w[i], m[i], v[i], correction1, correction2, eps, decay)
            w[i] = rules.descend(w[i], u_i, scale)


# -- LARS and Momentum, which is LARS with ratio 1 -----------------------------------------------------------


@cpu_function
def lars_sums(chunk: Any, addresses: Any, scalars: Any, sizes: Any, chunks: Any, sums: Any) -> None:
    """Put the sums of w^2 and of the rescaled g^2 over one chunk into `sums`: 8 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0 or scalars[layer, ADAPT] == 0:
        return
    count = min(sizes[layer] - start, CHUNK)
    skipped = start * scalars.itemsize
    rescale = scalars[layer, RESCALE]
    w = pointer_to(addresses[layer, WEIGHTS] + skipped, rescale)
    g = pointer_to(addresses[layer, GRADIENT] + skipped, rescale)
    weight_lanes = stack_values(LANES, 0.0)
    gradient_lanes = stack_values(LANES, 0.0)
    clear_lanes(weight_lanes)
    clear_lanes(gradient_lanes)
    for first in range(0, count, LANES):
        fetch_ahead(w, first, scalars.itemsize)
        fetch_ahead(g, first, scalars.itemsize)
        for lane in range(min(count - first, LANES)):
            i = first + lane
            weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[i])
            gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], rescale * g[i])
    sums[chunk, 0] = add_lanes(weight_lanes)
    sums[chunk, 1] = add_lanes(gradient_lanes)


@cpu_function
def lars_ratio(
    layer: Any,
    addresses: Any,
    scalars: Any,
    rates: Any,
    trust: Any,
    first_chunk: Any,
    sums: Any,
    norms: Any,
    scales: Any,
) -> None:
    """Finish one layer's norms and ratio, and what enters the momentum and is taken from the weights."""
    if addresses[layer, GRADIENT] == 0:
        return
    ratio = 1.0
    if scalars[layer, ADAPT] != 0:
        first, last = first_chunk[layer], first_chunk[layer + 1]
        weight_norm = layer_norm(sums, 0, first, last)
        gradient_norm = layer_norm(sums, 1, first, last)
        decay = np.float64(scalars[layer, DECAY])
        if trust[GUARDED] == 0 or (decay > 0 and weight_norm > 0 and gradient_norm > 0):
            ratio = rules.lars_ratio(weight_norm, gradient_norm, decay, trust[COEFFICIENT], trust[EPSILON])
        if trust[CLIP] != 0:
            ratio = rules.clipped_ratio(ratio, rates[layer])
        norms[layer, WEIGHT_NORM] = weight_norm
        norms[layer, UPDATE_NORM] = gradient_norm
    norms[layer, RATIO] = ratio
    inside = trust[RATE_INSIDE] != 0
    scales[layer, ADVANCE] = rates[layer] * ratio if inside else ratio
    scales[layer, DESCEND] = 1.0 if inside else rates[layer]


@cpu_function
def momentum_update(
    w: Any, g: Any, v: Any, count: Any, row: Any, rescale: Any, decay: Any, advance: Any, descend: Any
) -> None:
    """Advance v and update w over one chunk."""
    momentum, velocity, lookahead = row[BETA1], row[VELOCITY], row[LOOKAHEAD]
    for first in range(0, count, LANES):
        fetch_ahead(w, first, row.itemsize)
        fetch_ahead(g, first, row.itemsize)
        fetch_ahead(v, first, row.itemsize)
        for i in range(first, min(first + LANES, count)):
            d_i = rules.decayed_gradient(g[i], w[i], rescale, decay)
            v_i = rules.momentum_advance(v[i], d_i, momentum, advance)
            u_i = rules.momentum_direction(v_i, d_i, advance, velocity, lookahead)
            v[i] = v_i
            w[i] = rules.descend(w[i], u_i, descend)


@cpu_function
def lars_update(
    chunk: Any,
    addresses: Any,
    scalars: Any,
    sizes: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    scales: Any,
) -> None:
    """Take the momentum step over one chunk: 20 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    count = min(sizes[layer] - start, CHUNK)
    skipped = start * scalars.itemsize
    rescale, decay = scalars[layer, RESCALE], scalars[layer, DECAY]
    advance, descend = scales[layer, ADVANCE], scales[layer, DESCEND]
    w = pointer_to(addresses[layer, WEIGHTS] + skipped, decay)
    g = pointer_to(addresses[layer, GRADIENT] + skipped, decay)
    v = pointer_to(addresses[layer, FIRST] + skipped, decay)
    if first_row[layer] >= 0:
        one, zero = scalars.dtype.type(1), scalars.dtype.type(0)
        central = stack_values(CHUNK, decay)
        layer_means = means[first_row[layer] :]
        centralize(central, g, w, start, count, rescale, decay, layer_means, row_lengths[layer])
        # The decay is in the centralized gradient already.
        momentum_update(w, central, v, count, scalars[layer], one, zero, advance, descend)
    else:
        momentum_update(w, g, v, count, scalars[layer], rescale, decay, advance, descend)
