"""LANS on the CPU: what is done with one chunk or one layer, and the kernels that loop over them."""

from typing import Any

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
from numba_lamb.kernels.cpu.intrinsics import enter_ieee, leave_ieee, pointer_to, stack_values
from numba_lamb.kernels.cpu.sums import add_lanes, centralize, clear_lanes, fetch_ahead, layer_norm, rules
from numba_lamb.layout import CHUNK, LANES

# -- one chunk, one layer --------------------------------------------------------------------------------------


@cpu_function
def rescaled_squares(g: Any, count: Any, itemsize: Any, rescale: Any, ahead: Any) -> Any:
    """Return the sum of the squares of ``rescale*g`` over one chunk."""
    lanes = stack_values(LANES, 0.0)
    clear_lanes(lanes)
    for first in range(0, count, LANES):
        fetch_ahead(g, first, itemsize, ahead)
        for lane in range(min(count - first, LANES)):
            lanes[lane] = rules.add_square(lanes[lane], rescale * g[first + lane])
    return add_lanes(lanes)


@cpu_function
def moments(
    w: Any, g: Any, m: Any, v: Any, count: Any, row: Any, rescale: Any, divisor: Any, ahead: Any, sums: Any
) -> None:
    """Advance m and v over one chunk and put the sums of w^2, of u^2 and of c^2 into `sums`."""
    beta1, complement1, correction1 = row[BETA1], row[COMPLEMENT1], row[CORRECTION1]
    beta2, complement2, correction2 = row[BETA2], row[COMPLEMENT2], row[CORRECTION2]
    eps, decay, one = row[EPS], row[DECAY], row.dtype.type(1)
    weight_lanes = stack_values(LANES, 0.0)
    update_lanes = stack_values(LANES, 0.0)
    gradient_lanes = stack_values(LANES, 0.0)
    clear_lanes(weight_lanes)
    clear_lanes(update_lanes)
    clear_lanes(gradient_lanes)
    u = stack_values(LANES, eps)
    c = stack_values(LANES, eps)
    for first in range(0, count, LANES):
        width = min(count - first, LANES)
        fetch_ahead(w, first, row.itemsize, ahead)
        fetch_ahead(g, first, row.itemsize, ahead)
        fetch_ahead(m, first, row.itemsize, ahead)
        fetch_ahead(v, first, row.itemsize, ahead)
        # Two loops, so that the float64 sums do not halve the width of the arithmetic.
        for lane in range(width):
            i = first + lane
            g_i = rules.normalized(rescale * g[i], divisor)
            m_i = rules.first_moment(m[i], g_i, beta1, complement1)
            v_i = rules.second_moment(v[i], g_i, beta2, complement2)
            u[lane] = rules.lamb_direction(w[i], m_i, v_i, correction1, correction2, eps, decay)
            c[lane] = rules.lamb_direction(w[i], g_i, v_i, one, correction2, eps, decay)
            m[i] = m_i
            v[i] = v_i
        for lane in range(width):
            weight_lanes[lane] = rules.add_square(weight_lanes[lane], w[first + lane])
            update_lanes[lane] = rules.add_square(update_lanes[lane], u[lane])
            gradient_lanes[lane] = rules.add_square(gradient_lanes[lane], c[lane])
    sums[WEIGHT_SQUARES] = add_lanes(weight_lanes)
    sums[UPDATE_SQUARES] = add_lanes(update_lanes)
    sums[GRADIENT_UPDATE_SQUARES] = add_lanes(gradient_lanes)


@cpu_function
def descend(
    w: Any, g: Any, m: Any, v: Any, count: Any, row: Any, rescale: Any, scales: Any, ahead: Any
) -> None:
    """Recompute u and c over one chunk and take both from w."""
    correction1, correction2 = row[CORRECTION1], row[CORRECTION2]
    eps, decay, one = row[EPS], row[DECAY], row.dtype.type(1)
    divisor, scale, gradient_scale = scales[DIVISOR], scales[DESCEND], scales[GRADIENT_DESCEND]
    for first in range(0, count, LANES):
        fetch_ahead(w, first, row.itemsize, ahead)
        fetch_ahead(g, first, row.itemsize, ahead)
        fetch_ahead(m, first, row.itemsize, ahead)
        fetch_ahead(v, first, row.itemsize, ahead)
        for i in range(first, min(first + LANES, count)):
            g_i = rules.normalized(rescale * g[i], divisor)
            u_i = rules.lamb_direction(w[i], m[i], v[i], correction1, correction2, eps, decay)
            c_i = rules.lamb_direction(w[i], g_i, v[i], one, correction2, eps, decay)
            w[i] = rules.descend(rules.descend(w[i], u_i, scale), c_i, gradient_scale)


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
        layer, start = chunks[chunk, 0], chunks[chunk, 1]
        if addresses[layer, GRADIENT] != 0:
            count, skipped = min(sizes[layer] - start, CHUNK), start * hyper.itemsize
            rescale = hyper[layer, RESCALE]
            g = pointer_to(addresses[layer, GRADIENT] + skipped, rescale)
            if first_row[layer] >= 0:
                w = pointer_to(addresses[layer, WEIGHTS] + skipped, rescale)
                one, zero = hyper.dtype.type(1), hyper.dtype.type(0)
                central = stack_values(CHUNK, rescale)
                layer_means = means[first_row[layer] :]
                centralize(central, g, w, start, count, rescale, zero, layer_means, row_lengths[layer])
                sums[chunk, GRADIENT_SQUARES] = rescaled_squares(
                    central, count, hyper.itemsize, one, ahead[0]
                )
            else:
                sums[chunk, GRADIENT_SQUARES] = rescaled_squares(g, count, hyper.itemsize, rescale, ahead[0])
        leave_ieee(mode)


@cpu_kernel
def lans_normalize(addresses: Any, first_chunk: Any, sums: Any, norms: Any, scales: Any) -> None:
    """Finish each layer's gradient norm."""
    mode = enter_ieee()
    for layer in range(norms.shape[0]):
        normalize_layer(layer, addresses, first_chunk, sums, norms, scales)
    leave_ieee(mode)


@cpu_kernel
def lans_advance(
    addresses: Any,
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
        layer, start = chunks[chunk, 0], chunks[chunk, 1]
        if addresses[layer, GRADIENT] != 0:
            count, skipped = min(sizes[layer] - start, CHUNK), start * hyper.itemsize
            rescale, divisor = hyper[layer, RESCALE], scales[layer, DIVISOR]
            w = pointer_to(addresses[layer, WEIGHTS] + skipped, rescale)
            g = pointer_to(addresses[layer, GRADIENT] + skipped, rescale)
            m = pointer_to(addresses[layer, EXP_AVG] + skipped, rescale)
            v = pointer_to(addresses[layer, EXP_AVG_SQ] + skipped, rescale)
            if first_row[layer] >= 0:
                one, zero = hyper.dtype.type(1), hyper.dtype.type(0)
                central = stack_values(CHUNK, rescale)
                layer_means = means[first_row[layer] :]
                centralize(central, g, w, start, count, rescale, zero, layer_means, row_lengths[layer])
                moments(w, central, m, v, count, hyper[layer], one, divisor, ahead[0], sums[chunk])
            else:
                moments(w, g, m, v, count, hyper[layer], rescale, divisor, ahead[0], sums[chunk])
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
        layer, start = chunks[chunk, 0], chunks[chunk, 1]
        if addresses[layer, GRADIENT] != 0:
            count, skipped = min(sizes[layer] - start, CHUNK), start * hyper.itemsize
            rescale = hyper[layer, RESCALE]
            w = pointer_to(addresses[layer, WEIGHTS] + skipped, rescale)
            g = pointer_to(addresses[layer, GRADIENT] + skipped, rescale)
            m = pointer_to(addresses[layer, EXP_AVG] + skipped, rescale)
            v = pointer_to(addresses[layer, EXP_AVG_SQ] + skipped, rescale)
            if first_row[layer] >= 0:
                one, zero = hyper.dtype.type(1), hyper.dtype.type(0)
                central = stack_values(CHUNK, rescale)
                layer_means = means[first_row[layer] :]
                centralize(central, g, w, start, count, rescale, zero, layer_means, row_lengths[layer])
                descend(w, central, m, v, count, hyper[layer], one, scales[layer], ahead[0])
            else:
                descend(w, g, m, v, count, hyper[layer], rescale, scales[layer], ahead[0])
        leave_ieee(mode)
