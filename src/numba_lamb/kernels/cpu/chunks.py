"""What the CPU kernels do with one chunk or one layer: loads, rule calls, fixed-order sums, stores.

Every function owns what it writes, so the order in which chunks are taken cannot change a bit.
"""

from typing import Any

import numpy as np

from numba_lamb._compile import cpu_function
from numba_lamb.kernels.columns import (
    ADAPT,
    ADVANCE,
    BETA1,
    BETA2,
    COEFFICIENT,
    COMPLEMENT1,
    COMPLEMENT2,
    CORRECTION1,
    CORRECTION2,
    DECAY,
    DECAYED_NORM,
    DESCEND,
    EPS,
    EXP_AVG,
    EXP_AVG_SQ,
    GRADIENT,
    GRADIENT_SQUARES,
    GUARD,
    LOOKAHEAD,
    MAX_RATIO,
    MAX_WEIGHT_NORM,
    MIN_RATIO,
    MIN_WEIGHT_NORM,
    NORM_OF,
    RATE_INSIDE,
    RATIO,
    RATIO_EPS,
    RATIO_OUTSIDE,
    RESCALE,
    SHRINK,
    TRUST_CLIP,
    UPDATE_NORM,
    UPDATE_SQUARES,
    VELOCITY,
    WEIGHT_NORM,
    WEIGHT_SQUARES,
    WEIGHTS,
)
from numba_lamb.kernels.cpu.intrinsics import pointer_to, stack_values
from numba_lamb.kernels.cpu.sums import (
    add_lanes,
    centralize,
    clear_lanes,
    fetch_ahead,
    layer_norm,
    layer_sum,
    rules,
)
from numba_lamb.layout import CHUNK, LANES

# -- decay outside the direction -----------------------------------------------------------------------------


@cpu_function
def shrink_weights(chunk: Any, addresses: Any, hyper: Any, sizes: Any, chunks: Any) -> None:
    """Take ``w <- (1 - lr*decay)*w`` over one chunk: 8 bytes per float32 parameter of a layer decayed so."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    shrink = hyper[layer, SHRINK]
    if addresses[layer, GRADIENT] == 0 or shrink == 1:
        return
    w = pointer_to(addresses[layer, WEIGHTS] + start * hyper.itemsize, shrink)
    for i in range(min(sizes[layer] - start, CHUNK)):
        w[i] = rules.multiply(shrink, w[i])


# -- LAMB ----------------------------------------------------------------------------------------------------


@cpu_function
def lamb_moments(
    w: Any, g: Any, m: Any, v: Any, count: Any, row: Any, rescale: Any, rate: Any, ahead: Any, sums: Any
) -> None:
    """Advance m and v over one chunk and put the sums of w^2 and u^2 into `sums`.

    Where the layer does not adapt, its weights are updated in the same reading, with step length `rate`.
    """
    waits = row[ADAPT] != 0
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
        fetch_ahead(w, first, row.itemsize, ahead)
        fetch_ahead(g, first, row.itemsize, ahead)
        fetch_ahead(m, first, row.itemsize, ahead)
        fetch_ahead(v, first, row.itemsize, ahead)
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
        if not waits:
            for lane in range(width):
                w[first + lane] = rules.descend(w[first + lane], u[lane], rate)
    sums[WEIGHT_SQUARES] = add_lanes(weight_lanes)
    sums[UPDATE_SQUARES] = add_lanes(update_lanes)


@cpu_function
def advance_chunk(
    chunk: Any,
    addresses: Any,
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
    """Take the first pass over one chunk: 24 bytes per float32 parameter, 28 where it is the only one."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    count = min(sizes[layer] - start, CHUNK)
    skipped = start * hyper.itemsize
    rescale, rate = hyper[layer, RESCALE], hyper.dtype.type(rates[layer])
    w = pointer_to(addresses[layer, WEIGHTS] + skipped, rescale)
    g = pointer_to(addresses[layer, GRADIENT] + skipped, rescale)
    m = pointer_to(addresses[layer, EXP_AVG] + skipped, rescale)
    v = pointer_to(addresses[layer, EXP_AVG_SQ] + skipped, rescale)
    if first_row[layer] >= 0:
        one, zero = hyper.dtype.type(1), hyper.dtype.type(0)
        central = stack_values(CHUNK, rescale)
        layer_means = means[first_row[layer] :]
        centralize(central, g, w, start, count, rescale, zero, layer_means, row_lengths[layer])
        # The factor is in the centralized gradient already.
        lamb_moments(w, central, m, v, count, hyper[layer], one, rate, ahead, sums[chunk])
    else:
        lamb_moments(w, g, m, v, count, hyper[layer], rescale, rate, ahead, sums[chunk])


@cpu_function
def other_norm_chunk(
    chunk: Any, addresses: Any, hyper: Any, hyper64: Any, sizes: Any, chunks: Any, ahead: Any, sums: Any
) -> None:
    """Replace the sum of u^2 of a layer whose ratio divides by another norm: 16 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    kind = hyper64[layer, NORM_OF]
    if addresses[layer, GRADIENT] == 0 or hyper[layer, ADAPT] == 0 or kind == rules.DIRECTION:
        return
    count = min(sizes[layer] - start, CHUNK)
    skipped = start * hyper.itemsize
    correction1, correction2 = hyper[layer, CORRECTION1], hyper[layer, CORRECTION2]
    eps, decay = hyper[layer, EPS], hyper[layer, DECAY]
    w = pointer_to(addresses[layer, WEIGHTS] + skipped, eps)
    g = pointer_to(addresses[layer, GRADIENT] + skipped, eps)
    m = pointer_to(addresses[layer, EXP_AVG] + skipped, eps)
    v = pointer_to(addresses[layer, EXP_AVG_SQ] + skipped, eps)
    lanes = stack_values(LANES, 0.0)
    gradient_lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    clear_lanes(gradient_lanes)
    zero = hyper.dtype.type(0)
    for first in range(0, count, LANES):
        fetch_ahead(w, first, hyper.itemsize, ahead)
        fetch_ahead(g, first, hyper.itemsize, ahead)
        fetch_ahead(m, first, hyper.itemsize, ahead)
        fetch_ahead(v, first, hyper.itemsize, ahead)
        for lane in range(min(count - first, LANES)):
            i = first + lane
            if kind == rules.UNDECAYED:
                u_i = rules.lamb_direction(w[i], m[i], v[i], correction1, correction2, eps, zero)
            else:
                u_i = rules.lamb_eps_in_root(w[i], m[i], v[i], correction1, correction2, eps, decay)
            lanes[lane] = rules.add_square(lanes[lane], u_i)
            gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], g[i])
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
    chunk: Any, addresses: Any, hyper: Any, sizes: Any, chunks: Any, scales: Any, ahead: Any
) -> None:
    """Recompute u over one chunk of a layer that adapts and take ``w <- w - scale*u``: 16 bytes per parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0 or hyper[layer, ADAPT] == 0:
        return
    count = min(sizes[layer] - start, CHUNK)
    skipped = start * hyper.itemsize
    correction1, correction2 = hyper[layer, CORRECTION1], hyper[layer, CORRECTION2]
    eps, decay, scale = hyper[layer, EPS], hyper[layer, DECAY], scales[layer, DESCEND]
    w = pointer_to(addresses[layer, WEIGHTS] + skipped, eps)
    m = pointer_to(addresses[layer, EXP_AVG] + skipped, eps)
    v = pointer_to(addresses[layer, EXP_AVG_SQ] + skipped, eps)
    for first in range(0, count, LANES):
        fetch_ahead(w, first, hyper.itemsize, ahead)
        fetch_ahead(m, first, hyper.itemsize, ahead)
        fetch_ahead(v, first, hyper.itemsize, ahead)
        for i in range(first, min(first + LANES, count)):
            u_i = rules.lamb_direction(w[i], m[i], v[i], correction1, correction2, eps, decay)
            w[i] = rules.descend(w[i], u_i, scale)


# -- LARS and Momentum, which is LARS with ratio 1 -----------------------------------------------------------


@cpu_function
def sum_chunk(
    chunk: Any, addresses: Any, hyper: Any, hyper64: Any, sizes: Any, chunks: Any, ahead: Any, sums: Any
) -> None:
    """Put the sums of w^2 and of the rescaled g^2 over one chunk into `sums`: 8 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0 or hyper[layer, ADAPT] == 0:
        return
    count = min(sizes[layer] - start, CHUNK)
    skipped = start * hyper.itemsize
    rescale, decay = hyper[layer, RESCALE], hyper[layer, DECAY]
    decayed = hyper64[layer, DECAYED_NORM] != 0
    w = pointer_to(addresses[layer, WEIGHTS] + skipped, rescale)
    g = pointer_to(addresses[layer, GRADIENT] + skipped, rescale)
    weight_lanes = stack_values(LANES, 0.0)
    gradient_lanes = stack_values(LANES, 0.0)
    clear_lanes(weight_lanes)
    clear_lanes(gradient_lanes)
    for first in range(0, count, LANES):
        fetch_ahead(w, first, hyper.itemsize, ahead)
        fetch_ahead(g, first, hyper.itemsize, ahead)
        width = min(count - first, LANES)
        if decayed:
            for lane in range(width):
                i = first + lane
                d_i = rules.decayed_gradient(g[i], w[i], rescale, decay)
                weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[i])
                gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], d_i)
        else:
            for lane in range(width):
                i = first + lane
                weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[i])
                gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], rescale * g[i])
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
def momentum_update(
    w: Any,
    g: Any,
    v: Any,
    count: Any,
    row: Any,
    rescale: Any,
    decay: Any,
    advance: Any,
    descend: Any,
    ahead: Any,
) -> None:
    """Advance v and update w over one chunk."""
    momentum, velocity, lookahead = row[BETA1], row[VELOCITY], row[LOOKAHEAD]
    for first in range(0, count, LANES):
        fetch_ahead(w, first, row.itemsize, ahead)
        fetch_ahead(g, first, row.itemsize, ahead)
        fetch_ahead(v, first, row.itemsize, ahead)
        for i in range(first, min(first + LANES, count)):
            d_i = rules.decayed_gradient(g[i], w[i], rescale, decay)
            v_i = rules.momentum_advance(v[i], d_i, momentum, advance)
            u_i = rules.momentum_direction(v_i, d_i, advance, velocity, lookahead)
            v[i] = v_i
            w[i] = rules.descend(w[i], u_i, descend)


@cpu_function
def update_chunk(
    chunk: Any,
    addresses: Any,
    hyper: Any,
    sizes: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    scales: Any,
    ahead: Any,
) -> None:
    """Take the momentum step over one chunk: 20 bytes per float32 parameter."""
    layer, start = chunks[chunk, 0], chunks[chunk, 1]
    if addresses[layer, GRADIENT] == 0:
        return
    count = min(sizes[layer] - start, CHUNK)
    skipped = start * hyper.itemsize
    rescale, decay = hyper[layer, RESCALE], hyper[layer, DECAY]
    advance, descend = scales[layer, ADVANCE], scales[layer, DESCEND]
    w = pointer_to(addresses[layer, WEIGHTS] + skipped, decay)
    g = pointer_to(addresses[layer, GRADIENT] + skipped, decay)
    v = pointer_to(addresses[layer, EXP_AVG] + skipped, decay)
    if first_row[layer] >= 0:
        one, zero = hyper.dtype.type(1), hyper.dtype.type(0)
        central = stack_values(CHUNK, decay)
        layer_means = means[first_row[layer] :]
        centralize(central, g, w, start, count, rescale, decay, layer_means, row_lengths[layer])
        # The decay is in the centralized gradient already.
        momentum_update(w, central, v, count, hyper[layer], one, zero, advance, descend, ahead)
    else:
        momentum_update(w, g, v, count, hyper[layer], rescale, decay, advance, descend, ahead)
