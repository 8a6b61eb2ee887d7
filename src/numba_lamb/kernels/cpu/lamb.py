"""What LAMB's kernels do on the CPU with one chunk or one layer: loads, rule calls, fixed-order sums, stores.

Every function owns what it writes, so the order in which chunks are taken cannot change a bit.
"""

from typing import Any

import numpy as np

from numba_lamb._compile import cpu_function
from numba_lamb.kernels.columns import (
    ADAPT,
    BETA1,
    BETA2,
    COMPLEMENT1,
    COMPLEMENT2,
    CORRECTION1,
    CORRECTION2,
    DECAY,
    DESCEND,
    EPS,
    EXP_AVG,
    EXP_AVG_SQ,
    GRADIENT,
    GRADIENT_SQUARES,
    MAX_RATIO,
    MAX_WEIGHT_NORM,
    MIN_RATIO,
    MIN_WEIGHT_NORM,
    NORM_OF,
    RATIO,
    RATIO_EPS,
    SHRINK,
    UPDATE_NORM,
    UPDATE_SQUARES,
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
    layer_sum,
    rules,
)
from numba_lamb.layout import CHUNK, LANES


@cpu_function
def shrink_weights(
    chunk: Any, addresses: Any, formats: Any, keys: Any, counts: Any, hyper: Any, sizes: Any, chunks: Any
) -> None:
    """Take ``w <- (1 - lr*decay)*w`` over one chunk: 8 bytes per float32 parameter of a layer decayed so."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    shrink = hyper[layer, SHRINK]
    if addresses[layer, GRADIENT] == 0 or shrink == 1:
        return
    count, itemsize = chunk_count(sizes[layer], start), hyper.itemsize
    weights = stored(addresses, formats, layer, WEIGHTS)
    buffer = stack_values(LANES, shrink)
    key = key_of(formats, keys, counts, layer, start, storage.SHRUNK)
    bits = stack_values(LANES, np.uint32(0))
    for first in range(0, count, LANES):
        width, at = min(count - first, LANES), start + first
        w = load(weights, at, width, itemsize, buffer)
        for lane in range(width):
            w[lane] = rules.multiply(shrink, w[lane])
        draw(weights, at, width, key, bits)
        store(weights, at, width, w, False, bits)


@cpu_function
def advance_chunk(
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
    rates: Any,
    ahead: Any,
    sums: Any,
) -> None:
    """Advance m and v over one chunk and add up w^2 and u^2: 24 bytes per float32 parameter.

    Where the layer does not adapt, its weights are updated in the same reading: 28 bytes.
    """
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    row, count, itemsize = hyper[layer], chunk_count(sizes[layer], start), hyper.itemsize
    waits, rate = row[ADAPT] != 0, hyper.dtype.type(rates[layer])
    beta1, complement1, correction1 = row[BETA1], row[COMPLEMENT1], row[CORRECTION1]
    beta2, complement2, correction2 = row[BETA2], row[COMPLEMENT2], row[CORRECTION2]
    eps, decay = row[EPS], row[DECAY]
    central = stack_values(CHUNK, eps)
    zero = hyper.dtype.type(0)
    gradient, rescale, _ = chunk_gradient(
        addresses, formats, hyper, layer, start, count, zero, first_row, row_lengths, means, central
    )
    weights = stored(addresses, formats, layer, WEIGHTS)
    firsts = stored(addresses, formats, layer, EXP_AVG)
    seconds = stored(addresses, formats, layer, EXP_AVG_SQ)
    weight_lanes, update_lanes = stack_values(LANES, 0.0), stack_values(LANES, 0.0)
    clear_lanes(weight_lanes)
    clear_lanes(update_lanes)
    w_buffer, g_buffer, u = stack_values(LANES, eps), stack_values(LANES, eps), stack_values(LANES, eps)
    m_buffer, v_buffer = stack_values(LANES, eps), stack_values(LANES, eps)
    key = key_of(formats, keys, counts, layer, start, storage.MOMENTS)
    weights_key = key_of(formats, keys, counts, layer, start, storage.WEIGHTS)
    bits = stack_values(LANES, np.uint32(0))
    for first in range(0, count, LANES):
        width, at = min(count - first, LANES), start + first
        fetch_ahead(weights, at, itemsize, ahead)
        fetch_ahead(gradient, at, itemsize, ahead)
        fetch_ahead(firsts, at, itemsize, ahead)
        fetch_ahead(seconds, at, itemsize, ahead)
        w, g = load(weights, at, width, itemsize, w_buffer), load(gradient, at, width, itemsize, g_buffer)
        m, v = load(firsts, at, width, itemsize, m_buffer), load(seconds, at, width, itemsize, v_buffer)
        # Loops of their own, so that the float64 sums do not halve the width of the arithmetic.
        for lane in range(width):
            g_i = rescale * g[lane]
            m[lane] = rules.first_moment(m[lane], g_i, beta1, complement1)
            v[lane] = rules.second_moment(v[lane], g_i, beta2, complement2)
        draw(firsts, at, width, key, bits)
        store(firsts, at, width, m, False, bits)
        store(seconds, at, width, v, True, bits)
        for lane in range(width):
            u[lane] = rules.lamb_direction(w[lane], m[lane], v[lane], correction1, correction2, eps, decay)
        for lane in range(width):
            weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[lane])
            update_lanes[lane] = rules.add_square(update_lanes[lane], u[lane])
        if not waits:
            for lane in range(width):
                w[lane] = rules.descend(w[lane], u[lane], rate)
            draw(weights, at, width, weights_key, bits)
            store(weights, at, width, w, False, bits)
    sums[chunk, WEIGHT_SQUARES] = add_lanes(weight_lanes)
    sums[chunk, UPDATE_SQUARES] = add_lanes(update_lanes)


@cpu_function
def other_norm_chunk(
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
    """Replace the sum of u^2 of a layer whose ratio divides by another norm: 16 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    kind = hyper64[layer, NORM_OF]
    if addresses[layer, GRADIENT] == 0 or hyper[layer, ADAPT] == 0 or kind == rules.DIRECTION:
        return
    count, itemsize = chunk_count(sizes[layer], start), hyper.itemsize
    correction1, correction2 = hyper[layer, CORRECTION1], hyper[layer, CORRECTION2]
    eps, decay = hyper[layer, EPS], hyper[layer, DECAY]
    weights = stored(addresses, formats, layer, WEIGHTS)
    gradient = stored(addresses, formats, layer, GRADIENT)
    firsts = stored(addresses, formats, layer, EXP_AVG)
    seconds = stored(addresses, formats, layer, EXP_AVG_SQ)
    lanes, gradient_lanes = stack_values(LANES, 0.0), stack_values(LANES, 0.0)
    clear_lanes(lanes)
    clear_lanes(gradient_lanes)
    w_buffer, g_buffer = stack_values(LANES, eps), stack_values(LANES, eps)
    m_buffer, v_buffer = stack_values(LANES, eps), stack_values(LANES, eps)
    zero = hyper.dtype.type(0)
    for first in range(0, count, LANES):
        width, at = min(count - first, LANES), start + first
        fetch_ahead(weights, at, itemsize, ahead)
        fetch_ahead(gradient, at, itemsize, ahead)
        fetch_ahead(firsts, at, itemsize, ahead)
        fetch_ahead(seconds, at, itemsize, ahead)
        w, g = load(weights, at, width, itemsize, w_buffer), load(gradient, at, width, itemsize, g_buffer)
        m, v = load(firsts, at, width, itemsize, m_buffer), load(seconds, at, width, itemsize, v_buffer)
        for lane in range(width):
            if kind == rules.UNDECAYED:
                u_i = rules.lamb_direction(w[lane], m[lane], v[lane], correction1, correction2, eps, zero)
            else:
                u_i = rules.lamb_eps_in_root(w[lane], m[lane], v[lane], correction1, correction2, eps, decay)
            lanes[lane] = rules.add_square(lanes[lane], u_i)
            gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], g[lane])
    sums[chunk, UPDATE_SQUARES] = add_lanes(lanes)
    sums[chunk, GRADIENT_SQUARES] = add_lanes(gradient_lanes)


@cpu_function
def lamb_layer(
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
    """Finish one layer's norms, trust ratio and step length."""
    if addresses[layer, GRADIENT] == 0:
        return
    first, last = first_chunk[layer], first_chunk[layer + 1]
    weight_norm = layer_norm(sums, WEIGHT_SQUARES, first, last)
    update_norm = layer_norm(sums, UPDATE_SQUARES, first, last)
    ratio = 1.0
    if hyper[layer, ADAPT] != 0:
        row = hyper64[layer]
        lightest, heaviest = row[MIN_WEIGHT_NORM], row[MAX_WEIGHT_NORM]
        epsilon, least, most = row[RATIO_EPS], row[MIN_RATIO], row[MAX_RATIO]
        ratio = rules.lamb_ratio(weight_norm, update_norm, lightest, heaviest, epsilon, least, most)
        if row[NORM_OF] == rules.EPS_IN_ROOT_GUARDED and layer_sum(sums, GRADIENT_SQUARES, first, last) == 0:
            ratio = 1.0
    norms[layer, WEIGHT_NORM] = weight_norm
    norms[layer, UPDATE_NORM] = update_norm
    norms[layer, RATIO] = ratio
    scales[layer, DESCEND] = rules.step_length(rates[layer], ratio)


@cpu_function
def descend_chunk(
    chunk: Any,
    addresses: Any,
    formats: Any,
    keys: Any,
    counts: Any,
    hyper: Any,
    sizes: Any,
    chunks: Any,
    scales: Any,
    ahead: Any,
) -> None:
    """Recompute u over one chunk of a layer that adapts and take ``w <- w - scale*u``: 16 bytes per parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0 or hyper[layer, ADAPT] == 0:
        return
    count, itemsize = chunk_count(sizes[layer], start), hyper.itemsize
    correction1, correction2 = hyper[layer, CORRECTION1], hyper[layer, CORRECTION2]
    eps, decay, scale = hyper[layer, EPS], hyper[layer, DECAY], scales[layer, DESCEND]
    weights = stored(addresses, formats, layer, WEIGHTS)
    firsts = stored(addresses, formats, layer, EXP_AVG)
    seconds = stored(addresses, formats, layer, EXP_AVG_SQ)
    w_buffer, m_buffer, v_buffer = (
        stack_values(LANES, eps),
        stack_values(LANES, eps),
        stack_values(LANES, eps),
    )
    key = key_of(formats, keys, counts, layer, start, storage.WEIGHTS)
    bits = stack_values(LANES, np.uint32(0))
    for first in range(0, count, LANES):
        width, at = min(count - first, LANES), start + first
        fetch_ahead(weights, at, itemsize, ahead)
        fetch_ahead(firsts, at, itemsize, ahead)
        fetch_ahead(seconds, at, itemsize, ahead)
        w = load(weights, at, width, itemsize, w_buffer)
        m, v = load(firsts, at, width, itemsize, m_buffer), load(seconds, at, width, itemsize, v_buffer)
        for lane in range(width):
            u_i = rules.lamb_direction(w[lane], m[lane], v[lane], correction1, correction2, eps, decay)
            w[lane] = rules.descend(w[lane], u_i, scale)
        draw(weights, at, width, key, bits)
        store(weights, at, width, w, False, bits)
