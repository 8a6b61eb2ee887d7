"""What the kernels of LARS do on the CPU with one chunk or one layer, and of Momentum, which is LARS with ratio 1.

Every function owns what it writes, so the order in which chunks are taken cannot change a bit.
"""

from typing import Any

import numpy as np

from numba_lamb._compile import cpu_function
from numba_lamb.kernels.columns import (
    ADAPT,
    ADVANCE,
    BETA1,
    COEFFICIENT,
    DECAY,
    DECAYED_NORM,
    DESCEND,
    EXP_AVG,
    GRADIENT,
    GUARD,
    LOOKAHEAD,
    MAX_RATIO,
    MAX_WEIGHT_NORM,
    MIN_RATIO,
    MIN_WEIGHT_NORM,
    RATE_INSIDE,
    RATIO,
    RATIO_EPS,
    RATIO_OUTSIDE,
    RESCALE,
    TRUST_CLIP,
    UPDATE_NORM,
    UPDATE_SQUARES,
    VELOCITY,
    WEIGHT_NORM,
    WEIGHT_SQUARES,
    WEIGHTS,
)
from numba_lamb.kernels.cpu.intrinsics import stack_values
from numba_lamb.kernels.cpu.rows import draw, fetch_ahead, key_of, load, storage, store, stored
from numba_lamb.kernels.cpu.sums import (
    add_lanes,
    chunk_count,
    chunk_gradient,
    clear_lanes,
    layer_norm,
    rules,
)
from numba_lamb.layout import CHUNK, LANES


@cpu_function
def sum_chunk(
    chunk: Any,
    addresses: Any,
    formats: Any,
    hyper: Any,
    hyper64: Any,
    sizes: Any,
    chunks: Any,
    ahead: Any,
    sums: Any,
) -> None:
    """Put the sums of w^2 and of the rescaled g^2 over one chunk into `sums`: 8 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0 or hyper[layer, ADAPT] == 0:
        return
    count, itemsize = chunk_count(sizes[layer], start), hyper.itemsize
    rescale, decay = hyper[layer, RESCALE], hyper[layer, DECAY]
    decayed = hyper64[layer, DECAYED_NORM] != 0
    weights = stored(addresses, formats, layer, WEIGHTS)
    gradient = stored(addresses, formats, layer, GRADIENT)
    weight_lanes, gradient_lanes = stack_values(LANES, 0.0), stack_values(LANES, 0.0)
    clear_lanes(weight_lanes)
    clear_lanes(gradient_lanes)
    w_buffer, g_buffer = stack_values(LANES, rescale), stack_values(LANES, rescale)
    for first in range(0, count, LANES):
        width, at = min(count - first, LANES), start + first
        fetch_ahead(weights, at, itemsize, ahead)
        fetch_ahead(gradient, at, itemsize, ahead)
        w, g = load(weights, at, width, itemsize, w_buffer), load(gradient, at, width, itemsize, g_buffer)
        if decayed:
            for lane in range(width):
                d_i = rules.decayed_gradient(g[lane], w[lane], rescale, decay)
                weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[lane])
                gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], d_i)
        else:
            for lane in range(width):
                weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[lane])
                gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], rescale * g[lane])
    sums[chunk, WEIGHT_SQUARES] = add_lanes(weight_lanes)
    sums[chunk, UPDATE_SQUARES] = add_lanes(gradient_lanes)


@cpu_function
def lars_layer(
    layer: Any,
    addresses: Any,
    hyper: Any,
    hyper64: Any,
    rates: Any,
    first_chunk: Any,
    sums: Any,
    norms: Any,
    scales: Any,
) -> None:
    """Finish one layer's norms and ratio, and what enters the momentum and is taken from the weights."""
    if addresses[layer, GRADIENT] == 0:
        return
    ratio = 1.0
    row = hyper64[layer]
    if hyper[layer, ADAPT] != 0:
        first, last = first_chunk[layer], first_chunk[layer + 1]
        weight_norm = layer_norm(sums, WEIGHT_SQUARES, first, last)
        gradient_norm = layer_norm(sums, UPDATE_SQUARES, first, last)
        # A norm that has the decay in it stands alone below the ratio.
        decay = np.float64(hyper[layer, DECAY]) if row[DECAYED_NORM] == 0 else 0.0
        coefficient, epsilon, guard = row[COEFFICIENT], row[RATIO_EPS], row[GUARD]
        lightest, heaviest = row[MIN_WEIGHT_NORM], row[MAX_WEIGHT_NORM]
        ratio = rules.lars_ratio(
            weight_norm,
            gradient_norm,
            decay,
            coefficient,
            epsilon,
            guard,
            lightest,
            heaviest,
            row[MIN_RATIO],
            row[MAX_RATIO],
        )
        if row[TRUST_CLIP] != 0:
            phi = rules.within(weight_norm, lightest, heaviest)
            ratio = rules.clipped_ratio(ratio, rates[layer], phi, guard)
        norms[layer, WEIGHT_NORM] = weight_norm
        norms[layer, UPDATE_NORM] = gradient_norm
    norms[layer, RATIO] = ratio
    inside, outside = row[RATE_INSIDE] != 0, row[RATIO_OUTSIDE] != 0
    scales[layer, ADVANCE] = rules.lars_advance(rates[layer], ratio, inside, outside)
    scales[layer, DESCEND] = rules.lars_descend(rates[layer], ratio, inside, outside)


@cpu_function
def update_chunk(
    chunk: Any,
    addresses: Any,
    formats: Any,
    keys: Any,
    counts: Any,
    hyper: Any,
    sizes: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    scales: Any,
    ahead: Any,
) -> None:
    """Advance v and update w over one chunk: 20 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    row, count, itemsize = hyper[layer], chunk_count(sizes[layer], start), hyper.itemsize
    momentum, velocity, lookahead = row[BETA1], row[VELOCITY], row[LOOKAHEAD]
    advance, descend = scales[layer, ADVANCE], scales[layer, DESCEND]
    central = stack_values(CHUNK, momentum)
    own_decay = row[DECAY]
    gradient, rescale, decay = chunk_gradient(
        addresses, formats, hyper, layer, start, count, own_decay, first_row, row_lengths, means, central
    )
    weights = stored(addresses, formats, layer, WEIGHTS)
    buffers = stored(addresses, formats, layer, EXP_AVG)
    w_buffer, g_buffer = stack_values(LANES, momentum), stack_values(LANES, momentum)
    v_buffer = stack_values(LANES, momentum)
    key = key_of(formats, keys, counts, layer, start, storage.MOMENTS)
    weights_key = key_of(formats, keys, counts, layer, start, storage.WEIGHTS)
    bits = stack_values(LANES, np.uint32(0))
    for first in range(0, count, LANES):
        width, at = min(count - first, LANES), start + first
        fetch_ahead(weights, at, itemsize, ahead)
        fetch_ahead(gradient, at, itemsize, ahead)
        fetch_ahead(buffers, at, itemsize, ahead)
        w, g = load(weights, at, width, itemsize, w_buffer), load(gradient, at, width, itemsize, g_buffer)
        v = load(buffers, at, width, itemsize, v_buffer)
        if formats is None:
            for lane in range(width):
                d_i = rules.decayed_gradient(g[lane], w[lane], rescale, decay)
                v_i = rules.momentum_advance(v[lane], d_i, momentum, advance)
                u_i = rules.momentum_direction(v_i, d_i, advance, velocity, lookahead)
                v[lane] = v_i
                w[lane] = rules.descend(w[lane], u_i, descend)
        else:
            for lane in range(width):
                d_i = rules.decayed_gradient(g[lane], w[lane], rescale, decay)
                v[lane] = rules.momentum_advance(v[lane], d_i, momentum, advance)
            draw(buffers, at, width, key, bits)
            store(buffers, at, width, v, False, bits)
            for lane in range(width):
                d_i = rules.decayed_gradient(g[lane], w[lane], rescale, decay)
                u_i = rules.momentum_direction(v[lane], d_i, advance, velocity, lookahead)
                w[lane] = rules.descend(w[lane], u_i, descend)
            draw(weights, at, width, weights_key, bits)
            store(weights, at, width, w, False, bits)
