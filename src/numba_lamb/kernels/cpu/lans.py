"""LANS on the CPU: what is done with one chunk or one layer, and the kernels that loop over them."""

from typing import Any

import numpy as np
from numba import prange

from numba_lamb._compile import cpu_function, cpu_kernel
from numba_lamb.kernels.columns import (
    ADAPT,
    BETA1,
    BETA1_64,
    BETA2,
    COMPLEMENT1,
    COMPLEMENT2,
    CORRECTION1,
    CORRECTION2,
    DECAY,
    DESCEND,
    DIVISOR,
    EPS,
    EXP_AVG,
    EXP_AVG_SQ,
    GRADIENT,
    GRADIENT_DESCEND,
    GRADIENT_NORM,
    GRADIENT_RATIO,
    GRADIENT_SQUARES,
    GRADIENT_UPDATE_NORM,
    GRADIENT_UPDATE_SQUARES,
    MAX_RATIO,
    MAX_WEIGHT_NORM,
    MIN_RATIO,
    MIN_WEIGHT_NORM,
    RATIO,
    RATIO_EPS,
    RESCALE,
    UPDATE_NORM,
    UPDATE_SQUARES,
    WEIGHT_NORM,
    WEIGHT_SQUARES,
    WEIGHTS,
)
from numba_lamb.kernels.cpu.intrinsics import enter_ieee, leave_ieee, stack_values
from numba_lamb.kernels.cpu.rows import draw, fetch_ahead, key_of, load, storage, store, stored
from numba_lamb.kernels.cpu.sums import (
    add_lanes,
    chunk_count,
    chunk_gradient,
    clear_lanes,
    layer_norm,
    rules,
    square_sum,
)
from numba_lamb.layout import CHUNK, LANES

# -- one chunk, one layer --------------------------------------------------------------------------------------


@cpu_function
def squares_chunk(
    chunk: Any,
    addresses: Any,
    formats: Any,
    hyper: Any,
    sizes: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    ahead: Any,
    sums: Any,
) -> None:
    """Add up the squares of ``rescale*g`` over one chunk."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    count, itemsize = chunk_count(sizes[layer], start), hyper.itemsize
    central = stack_values(CHUNK, hyper[layer, RESCALE])
    zero = hyper.dtype.type(0)
    gradient, rescale, _ = chunk_gradient(
        addresses, formats, hyper, layer, start, count, zero, first_row, row_lengths, means, central
    )
    sums[chunk, GRADIENT_SQUARES] = square_sum(gradient, start, count, itemsize, rescale, ahead)


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
    ahead: Any,
    sums: Any,
    scales: Any,
) -> None:
    """Advance m and v over one chunk and add up w^2, u^2 and c^2."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    row, count, itemsize = hyper[layer], chunk_count(sizes[layer], start), hyper.itemsize
    beta1, complement1, correction1 = row[BETA1], row[COMPLEMENT1], row[CORRECTION1]
    beta2, complement2, correction2 = row[BETA2], row[COMPLEMENT2], row[CORRECTION2]
    eps, decay, one, divisor = row[EPS], row[DECAY], hyper.dtype.type(1), scales[layer, DIVISOR]
    central = stack_values(CHUNK, eps)
    zero = hyper.dtype.type(0)
    gradient, rescale, _ = chunk_gradient(
        addresses, formats, hyper, layer, start, count, zero, first_row, row_lengths, means, central
    )
    weights = stored(addresses, formats, layer, WEIGHTS)
    firsts = stored(addresses, formats, layer, EXP_AVG)
    seconds = stored(addresses, formats, layer, EXP_AVG_SQ)
    weight_lanes, update_lanes = stack_values(LANES, 0.0), stack_values(LANES, 0.0)
    gradient_lanes = stack_values(LANES, 0.0)
    clear_lanes(weight_lanes)
    clear_lanes(update_lanes)
    clear_lanes(gradient_lanes)
    w_buffer, g_buffer = stack_values(LANES, eps), stack_values(LANES, eps)
    m_buffer, v_buffer = stack_values(LANES, eps), stack_values(LANES, eps)
    u, c = stack_values(LANES, eps), stack_values(LANES, eps)
    key = key_of(formats, keys, counts, layer, start, storage.MOMENTS)
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
            c[lane] = rules.normalized(rescale * g[lane], divisor)
            m[lane] = rules.first_moment(m[lane], c[lane], beta1, complement1)
            v[lane] = rules.second_moment(v[lane], c[lane], beta2, complement2)
        draw(firsts, at, width, key, bits)
        store(firsts, at, width, m, False, bits)
        store(seconds, at, width, v, True, bits)
        for lane in range(width):
            u[lane] = rules.lamb_direction(w[lane], m[lane], v[lane], correction1, correction2, eps, decay)
            c[lane] = rules.lamb_direction(w[lane], c[lane], v[lane], one, correction2, eps, decay)
        for lane in range(width):
            weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[lane])
            update_lanes[lane] = rules.add_square(update_lanes[lane], u[lane])
            gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], c[lane])
    sums[chunk, WEIGHT_SQUARES] = add_lanes(weight_lanes)
    sums[chunk, UPDATE_SQUARES] = add_lanes(update_lanes)
    sums[chunk, GRADIENT_UPDATE_SQUARES] = add_lanes(gradient_lanes)


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
    first_row: Any,
    row_lengths: Any,
    means: Any,
    scales: Any,
    ahead: Any,
) -> None:
    """Recompute u and c over one chunk and take both from w."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    row, count, itemsize = hyper[layer], chunk_count(sizes[layer], start), hyper.itemsize
    correction1, correction2 = row[CORRECTION1], row[CORRECTION2]
    eps, decay, one = row[EPS], row[DECAY], hyper.dtype.type(1)
    divisor, scale = scales[layer, DIVISOR], scales[layer, DESCEND]
    gradient_scale = scales[layer, GRADIENT_DESCEND]
    central = stack_values(CHUNK, eps)
    zero = hyper.dtype.type(0)
    gradient, rescale, _ = chunk_gradient(
        addresses, formats, hyper, layer, start, count, zero, first_row, row_lengths, means, central
    )
    weights = stored(addresses, formats, layer, WEIGHTS)
    firsts = stored(addresses, formats, layer, EXP_AVG)
    seconds = stored(addresses, formats, layer, EXP_AVG_SQ)
    w_buffer, g_buffer = stack_values(LANES, eps), stack_values(LANES, eps)
    m_buffer, v_buffer = stack_values(LANES, eps), stack_values(LANES, eps)
    key = key_of(formats, keys, counts, layer, start, storage.WEIGHTS)
    bits = stack_values(LANES, np.uint32(0))
    for first in range(0, count, LANES):
        width, at = min(count - first, LANES), start + first
        fetch_ahead(weights, at, itemsize, ahead)
        fetch_ahead(gradient, at, itemsize, ahead)
        fetch_ahead(firsts, at, itemsize, ahead)
        fetch_ahead(seconds, at, itemsize, ahead)
        w, g = load(weights, at, width, itemsize, w_buffer), load(gradient, at, width, itemsize, g_buffer)
        m, v = load(firsts, at, width, itemsize, m_buffer), load(seconds, at, width, itemsize, v_buffer)
        for lane in range(width):
            g_i = rules.normalized(rescale * g[lane], divisor)
            u_i = rules.lamb_direction(w[lane], m[lane], v[lane], correction1, correction2, eps, decay)
            c_i = rules.lamb_direction(w[lane], g_i, v[lane], one, correction2, eps, decay)
            w[lane] = rules.descend(rules.descend(w[lane], u_i, scale), c_i, gradient_scale)
        draw(weights, at, width, key, bits)
        store(weights, at, width, w, False, bits)


@cpu_function
def normalize_layer(layer: Any, addresses: Any, first_chunk: Any, sums: Any, norms: Any, scales: Any) -> None:
    """Finish one layer's gradient norm, and what its gradient is divided by."""
    if addresses[layer, GRADIENT] != 0:
        norm = layer_norm(sums, GRADIENT_SQUARES, first_chunk[layer], first_chunk[layer + 1])
        norms[layer, GRADIENT_NORM] = norm
        scales[layer, DIVISOR] = rules.lans_divisor(norm)


@cpu_function
def ratio_layer(
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
    """Finish one layer's other norms, both trust ratios and both step lengths."""
    if addresses[layer, GRADIENT] == 0:
        return
    first, last = first_chunk[layer], first_chunk[layer + 1]
    weight_norm = layer_norm(sums, WEIGHT_SQUARES, first, last)
    update_norm = layer_norm(sums, UPDATE_SQUARES, first, last)
    gradient_update_norm = layer_norm(sums, GRADIENT_UPDATE_SQUARES, first, last)
    row = hyper64[layer]
    ratio = gradient_ratio = 1.0
    if hyper[layer, ADAPT] != 0:
        lightest, heaviest = row[MIN_WEIGHT_NORM], row[MAX_WEIGHT_NORM]
        epsilon, least, most = row[RATIO_EPS], row[MIN_RATIO], row[MAX_RATIO]
        ratio = rules.lamb_ratio(weight_norm, update_norm, lightest, heaviest, epsilon, least, most)
        gradient_ratio = rules.lamb_ratio(
            weight_norm, gradient_update_norm, lightest, heaviest, epsilon, least, most
        )
    norms[layer, WEIGHT_NORM] = weight_norm
    norms[layer, UPDATE_NORM] = update_norm
    norms[layer, RATIO] = ratio
    norms[layer, GRADIENT_UPDATE_NORM] = gradient_update_norm
    norms[layer, GRADIENT_RATIO] = gradient_ratio
    beta1 = row[BETA1_64]
    scales[layer, DESCEND] = rules.lans_scale(rates[layer], beta1, ratio)
    scales[layer, GRADIENT_DESCEND] = rules.lans_scale(rates[layer], rules.complement(beta1), gradient_ratio)


# -- kernels ---------------------------------------------------------------------------------------------------


@cpu_kernel
def lans_squares(
    addresses: Any,
    formats: Any,
    hyper: Any,
    sizes: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    ahead: Any,
    sums: Any,
) -> None:
    """Add up the squares of the gradients: 4 bytes per float32 parameter."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        squares_chunk(
            chunk, addresses, formats, hyper, sizes, chunks, first_row, row_lengths, means, ahead[0], sums
        )
        leave_ieee(mode)


@cpu_kernel
def lans_normalize(addresses: Any, all_first_chunk: Any, all_sums: Any, norms: Any, scales: Any) -> None:
    """Finish each layer's gradient norm."""
    mode = enter_ieee()
    for layer in range(norms.shape[0]):
        normalize_layer(layer, addresses, all_first_chunk, all_sums, norms, scales)
    leave_ieee(mode)


@cpu_kernel
def lans_advance(
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
    ahead: Any,
    sums: Any,
    scales: Any,
) -> None:
    """Advance LANS's moments and add up squares: 24 bytes per float32 parameter."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        advance_chunk(
            chunk,
            addresses,
            formats,
            keys,
            counts,
            hyper,
            sizes,
            chunks,
            first_row,
            row_lengths,
            means,
            ahead[0],
            sums,
            scales,
        )
        leave_ieee(mode)


@cpu_kernel
def lans_ratio(
    addresses: Any,
    hyper: Any,
    hyper64: Any,
    rates: Any,
    all_first_chunk: Any,
    all_sums: Any,
    norms: Any,
    scales: Any,
) -> None:
    """Finish each layer's norms and both ratios."""
    mode = enter_ieee()
    for layer in range(norms.shape[0]):
        ratio_layer(layer, addresses, hyper, hyper64, rates, all_first_chunk, all_sums, norms, scales)
    leave_ieee(mode)


@cpu_kernel
def lans_descend(
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
    """Make LANS's update anew and apply it: 20 bytes per float32 parameter."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        descend_chunk(
            chunk,
            addresses,
            formats,
            keys,
            counts,
            hyper,
            sizes,
            chunks,
            first_row,
            row_lengths,
            means,
            scales,
            ahead[0],
        )
        leave_ieee(mode)
