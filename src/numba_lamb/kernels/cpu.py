"""The CPU kernels: loops over chunks and elements, rule calls, fixed-order sums; nothing else.

A chunk function works on one chunk of one layer. A kernel runs it over all chunks with ``prange``: chunks
write only what they own, so the number of threads cannot change a bit.
"""

import math
from typing import Any

import numpy as np
from numba import prange

from numba_lamb._compile import bind, cpu_function, cpu_kernel
from numba_lamb.kernels.intrinsics import fma, pointer_to, stack_values
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

rules = bind(rule_text, cpu_function, fma=fma)


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
def add_chunks(sums: Any, column: Any, first: Any, last: Any) -> Any:
    """Add up one layer's chunk sums in the pinned tree."""
    if last - first == 1:
        # The tree would only add zeros.
        return sums[first, column]
    lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    for chunk in range(first, last):
        lanes[(chunk - first) % LANES] += sums[chunk, column]
    return add_lanes(lanes)


# -- gradients: finite check and centralization --------------------------------------------------------------


@cpu_function
def count_nonfinite(values: Any, count: Any) -> Any:
    """Return how many of `count` values are infinite or NaN."""
    found = np.int32(0)
    for i in range(count):
        found += np.int32(not math.isfinite(values[i]))
    return found


@cpu_kernel
def check_gradients(addresses: Any, scalars: Any, sizes: Any, chunks: Any, found: Any) -> None:
    """Write into `found` how many gradient values of each chunk are not finite: 4 bytes per parameter."""
    for chunk in prange(chunks.shape[0]):
        layer, start = chunks[chunk, 0], chunks[chunk, 1]
        found[chunk] = 0
        if addresses[layer, GRADIENT] != 0:
            position = addresses[layer, GRADIENT] + start * scalars.itemsize
            values = pointer_to(position, scalars[layer, ADAPT])
            found[chunk] = count_nonfinite(values, min(sizes[layer] - start, CHUNK))


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


@cpu_kernel
def row_means(addresses: Any, prepared: Any, row_table: Any, row_lengths: Any, means: Any) -> None:
    """Write the mean of each row (all axes but the first) of the layers that are centralized.

    `prepared` holds for each layer the factor of its gradient and of its weights.
    """
    for row in prange(row_table.shape[0]):
        layer = row_table[row, 0]
        if addresses[layer, GRADIENT] != 0:
            rescale, decay = prepared[layer, 0], prepared[layer, 1]
            length = row_lengths[layer]
            skipped = row_table[row, 1] * length * prepared.itemsize
            g = pointer_to(addresses[layer, GRADIENT] + skipped, decay)
            w = pointer_to(addresses[layer, WEIGHTS] + skipped, decay)
            means[row] = row_mean(g, w, length, rescale, decay)


@cpu_function
def centralize_chunk(
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
def lamb_advance_chunk(w: Any, g: Any, m: Any, v: Any, count: Any, row: Any, sums: Any) -> None:
    """Advance m and v over one chunk and put the sums of w^2 and u^2 into `sums`."""
    beta1, complement1, correction1 = row[BETA1], row[COMPLEMENT1], row[CORRECTION1]
    beta2, complement2, correction2 = row[BETA2], row[COMPLEMENT2], row[CORRECTION2]
    eps, decay = row[EPS], row[DECAY]
    weight_lanes = stack_values(LANES, 0.0)
    update_lanes = stack_values(LANES, 0.0)
    clear_lanes(weight_lanes)
    clear_lanes(update_lanes)
    for first in range(0, count, LANES):
        for lane in range(min(count - first, LANES)):
            i = first + lane
            m_i = rules.first_moment(m[i], g[i], beta1, complement1)
            v_i = rules.second_moment(v[i], g[i], beta2, complement2)
            u_i = rules.lamb_direction(w[i], m_i, v_i, correction1, correction2, eps, decay)
            m[i] = m_i
            v[i] = v_i
            weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[i])
            update_lanes[lane] = rules.add_square(update_lanes[lane], u_i)
    sums[0] = add_lanes(weight_lanes)
    sums[1] = add_lanes(update_lanes)


@cpu_function
def lamb_descend_chunk(w: Any, m: Any, v: Any, count: Any, row: Any, scale: Any) -> None:
    """Recompute u over one chunk and take ``w <- w - scale*u``."""
    correction1, correction2 = row[CORRECTION1], row[CORRECTION2]
    eps, decay = row[EPS], row[DECAY]
    for i in range(count):
        u_i = rules.lamb_direction(w[i], m[i], v[i], correction1, correction2, eps, decay)
        w[i] = rules.descend(w[i], u_i, scale)


@cpu_kernel
def lamb_step(
    addresses: Any,
    scalars: Any,
    rates: Any,
    sizes: Any,
    first_chunk: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    sums: Any,
    norms: Any,
    scales: Any,
) -> None:
    """Take one LAMB step on every layer that has a gradient: 40 bytes per float32 parameter."""
    for chunk in prange(chunks.shape[0]):
        layer, start = chunks[chunk, 0], chunks[chunk, 1]
        if addresses[layer, GRADIENT] != 0:
            count = min(sizes[layer] - start, CHUNK)
            skipped = start * scalars.itemsize
            like = scalars[layer, EPS]
            w = pointer_to(addresses[layer, WEIGHTS] + skipped, like)
            g = pointer_to(addresses[layer, GRADIENT] + skipped, like)
            m = pointer_to(addresses[layer, FIRST] + skipped, like)
            v = pointer_to(addresses[layer, SECOND] + skipped, like)
            if first_row[layer] >= 0:
                one, zero = scalars.dtype.type(1), scalars.dtype.type(0)
                centralized = stack_values(CHUNK, like)
                layer_means = means[first_row[layer] :]
                centralize_chunk(centralized, g, w, start, count, one, zero, layer_means, row_lengths[layer])
                g = centralized
            lamb_advance_chunk(w, g, m, v, count, scalars[layer], sums[chunk])

    for layer in range(sizes.shape[0]):
        if addresses[layer, GRADIENT] != 0:
            first, last = first_chunk[layer], first_chunk[layer + 1]
            weight_norm = math.sqrt(add_chunks(sums, 0, first, last))
            update_norm = math.sqrt(add_chunks(sums, 1, first, last))
            ratio = rules.trust_ratio(weight_norm, update_norm) if scalars[layer, ADAPT] != 0 else 1.0
            norms[layer, WEIGHT_NORM] = weight_norm
            norms[layer, UPDATE_NORM] = update_norm
            norms[layer, RATIO] = ratio
            scales[layer, DESCEND] = rates[layer] * ratio

    for chunk in prange(chunks.shape[0]):
        layer, start = chunks[chunk, 0], chunks[chunk, 1]
        if addresses[layer, GRADIENT] != 0:
            count = min(sizes[layer] - start, CHUNK)
            skipped = start * scalars.itemsize
            like = scalars[layer, EPS]
            w = pointer_to(addresses[layer, WEIGHTS] + skipped, like)
            m = pointer_to(addresses[layer, FIRST] + skipped, like)
            v = pointer_to(addresses[layer, SECOND] + skipped, like)
            lamb_descend_chunk(w, m, v, count, scalars[layer], scales[layer, DESCEND])


# -- LARS and Momentum, which is LARS with ratio 1 -----------------------------------------------------------


@cpu_function
def square_sums_chunk(w: Any, g: Any, count: Any, rescale: Any, sums: Any) -> None:
    """Put the sums of w^2 and (rescale*g)^2 over one chunk into `sums`."""
    weight_lanes = stack_values(LANES, 0.0)
    gradient_lanes = stack_values(LANES, 0.0)
    clear_lanes(weight_lanes)
    clear_lanes(gradient_lanes)
    for first in range(0, count, LANES):
        for lane in range(min(count - first, LANES)):
            i = first + lane
            weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[i])
            gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], rescale * g[i])
    sums[0] = add_lanes(weight_lanes)
    sums[1] = add_lanes(gradient_lanes)


@cpu_function
def momentum_chunk(
    w: Any, g: Any, v: Any, count: Any, row: Any, rescale: Any, decay: Any, advance: Any, descend: Any
) -> None:
    """Advance v and update w over one chunk."""
    momentum, velocity, lookahead = row[BETA1], row[VELOCITY], row[LOOKAHEAD]
    for i in range(count):
        d_i = rules.decayed_gradient(g[i], w[i], rescale, decay)
        v_i = rules.momentum_advance(v[i], d_i, momentum, advance)
        u_i = rules.momentum_direction(v_i, d_i, advance, velocity, lookahead)
        v[i] = v_i
        w[i] = rules.descend(w[i], u_i, descend)


@cpu_kernel
def lars_step(
    addresses: Any,
    scalars: Any,
    rates: Any,
    trust: Any,
    sizes: Any,
    first_chunk: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    sums: Any,
    norms: Any,
    scales: Any,
) -> None:
    """Take one LARS step: 28 bytes per float32 parameter of a layer that adapts, 20 of one that does not."""
    adapted = 0
    for layer in range(sizes.shape[0]):
        if addresses[layer, GRADIENT] != 0 and scalars[layer, ADAPT] != 0:
            adapted += 1
    if adapted > 0:
        for chunk in prange(chunks.shape[0]):
            layer, start = chunks[chunk, 0], chunks[chunk, 1]
            if addresses[layer, GRADIENT] != 0 and scalars[layer, ADAPT] != 0:
                skipped = start * scalars.itemsize
                rescale = scalars[layer, RESCALE]
                w = pointer_to(addresses[layer, WEIGHTS] + skipped, rescale)
                g = pointer_to(addresses[layer, GRADIENT] + skipped, rescale)
                square_sums_chunk(w, g, min(sizes[layer] - start, CHUNK), rescale, sums[chunk])

    for layer in range(sizes.shape[0]):
        ratio = 1.0
        if addresses[layer, GRADIENT] != 0 and scalars[layer, ADAPT] != 0:
            first, last = first_chunk[layer], first_chunk[layer + 1]
            weight_norm = math.sqrt(add_chunks(sums, 0, first, last))
            gradient_norm = math.sqrt(add_chunks(sums, 1, first, last))
            decay = np.float64(scalars[layer, DECAY])
            guarded = trust[GUARDED] != 0 and (decay == 0 or weight_norm == 0 or gradient_norm == 0)
            if not guarded:
                ratio = rules.lars_ratio(
                    weight_norm, gradient_norm, decay, trust[COEFFICIENT], trust[EPSILON]
                )
            if trust[CLIP] != 0:
                ratio = rules.clipped_ratio(ratio, rates[layer])
            norms[layer, WEIGHT_NORM] = weight_norm
            norms[layer, UPDATE_NORM] = gradient_norm
        norms[layer, RATIO] = ratio
        inside = trust[RATE_INSIDE] != 0
        scales[layer, ADVANCE] = rates[layer] * ratio if inside else ratio
        scales[layer, DESCEND] = 1.0 if inside else rates[layer]

    for chunk in prange(chunks.shape[0]):
        layer, start = chunks[chunk, 0], chunks[chunk, 1]
        if addresses[layer, GRADIENT] != 0:
            count = min(sizes[layer] - start, CHUNK)
            skipped = start * scalars.itemsize
            rescale, decay = scalars[layer, RESCALE], scalars[layer, DECAY]
            w = pointer_to(addresses[layer, WEIGHTS] + skipped, decay)
            g = pointer_to(addresses[layer, GRADIENT] + skipped, decay)
            v = pointer_to(addresses[layer, FIRST] + skipped, decay)
            if first_row[layer] >= 0:
                centralized = stack_values(CHUNK, decay)
                layer_means = means[first_row[layer] :]
                centralize_chunk(
                    centralized, g, w, start, count, rescale, decay, layer_means, row_lengths[layer]
                )
                g = centralized
                rescale, decay = scalars.dtype.type(1), scalars.dtype.type(0)
            advance, descend = scales[layer, ADVANCE], scales[layer, DESCEND]
            momentum_chunk(w, g, v, count, scalars[layer], rescale, decay, advance, descend)
