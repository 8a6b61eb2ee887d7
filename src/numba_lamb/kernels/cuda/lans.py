"""LANS on a GPU: its kernels, and what one warp does for them alone.

``lans_squares`` and ``lans_normalize`` finish each layer's gradient norm before the moments; ``lans_advance``,
``lans_ratio`` and ``lans_descend`` are LAMB's with two directions.
"""

import math
from typing import Any

from numba_lamb._compile import cuda_function
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.frame import close_step, count_step, latch_verdict
from numba_lamb.kernels.cuda.intrinsics import cast_like, load_rows, pointer_to, zero_like
from numba_lamb.kernels.cuda.warp import (
    QUAD,
    add_lanes,
    add_squares,
    add_sums,
    address_of,
    before,
    descended,
    doubles,
    first_moments,
    hyper64_of,
    is_stopped,
    lamb_directions,
    lamb_gradients,
    longs,
    may_vectorize,
    rules,
    second_moments,
    store,
    sums_of,
    this_lane,
    this_warp,
    values,
)
from numba_lamb.layout import CHUNK, LANES


@cuda_function
def normalized(
    g: Any, w: Any, rescale: Any, divisor: Any, means: Any, row: Any, first: Any, last: Any, length: Any
) -> Any:
    """Return the quad of a layer's normalized gradient; `row` is below 0 where it is not centralized."""
    a, b, c, d = lamb_gradients(g, w, rescale, means, row, first, last, length)
    return (
        rules.normalized(a, divisor),
        rules.normalized(b, divisor),
        rules.normalized(c, divisor),
        rules.normalized(d, divisor),
    )


@cuda_function
def ratio_of(args: Any, hyper: Any, layer: Any, weight_norm: Any, update_norm: Any) -> Any:
    """Return a layer's trust ratio of one direction, 1 where it does not adapt."""
    ratio = 1.0
    if hyper[layer * columns.HYPER + columns.ADAPT] != 0:
        ratio = rules.lamb_ratio(
            weight_norm,
            update_norm,
            hyper64_of(args, layer, columns.MIN_WEIGHT_NORM),
            hyper64_of(args, layer, columns.MAX_WEIGHT_NORM),
            hyper64_of(args, layer, columns.RATIO_EPS),
            hyper64_of(args, layer, columns.MIN_RATIO),
            hyper64_of(args, layer, columns.MAX_RATIO),
        )
    return ratio


def lans_squares(args: Any, hyper: Any) -> None:
    """Add up the squares of each chunk's gradient: 4 bytes per float32 parameter."""
    chunk = this_warp()
    if chunk >= args[fields.CHUNK_COUNT] or is_stopped(args):
        return
    layer, start = longs(args, fields.CHUNKS)[2 * chunk], longs(args, fields.CHUNKS)[2 * chunk + 1]
    gradient = address_of(args, layer, columns.GRADIENT)
    if gradient == 0:
        return
    last = min(longs(args, fields.SIZES)[layer], start + CHUNK)
    zero = zero_like(hyper)
    g = pointer_to(gradient, zero)
    vectorized = may_vectorize(gradient)
    rescale = hyper[layer * columns.HYPER + columns.RESCALE]
    first_row = longs(args, fields.FIRST_ROW)[layer]
    length = longs(args, fields.ROW_LENGTHS)[layer]
    means = values(args, fields.MEANS, hyper)
    a = b = c = d = 0.0
    for place in range(start, last, 2 * LANES):
        i = place + QUAD * this_lane()
        whole = vectorized and place + 2 * LANES <= last
        g_i, g_j = load_rows((g,), 2, i, LANES, last, whole)
        # Any values do for the weights, which enter times 0.
        d_i = lamb_gradients(g_i, g_i, rescale, means, first_row, i, last, length)
        d_j = lamb_gradients(g_j, g_j, rescale, means, first_row, i + LANES, last, length)
        a, b, c, d = add_squares(add_squares((a, b, c, d), d_i), d_j)
    squares = add_lanes((a, b, c, d))
    if this_lane() == 0:
        sums_of(args, chunk)[columns.GRADIENT_SQUARES] = squares


def lans_normalize(args: Any, hyper: Any) -> None:
    """Finish the gradient's norm, and what the gradient is divided by, a layer to a warp."""
    layer = this_warp()
    if layer >= args[fields.LAYERS] or is_stopped(args) or address_of(args, layer, columns.GRADIENT) == 0:
        return
    first, last = longs(args, fields.FIRST_CHUNK)[layer], longs(args, fields.FIRST_CHUNK)[layer + 1]
    norm = math.sqrt(add_sums(args, columns.GRADIENT_SQUARES, first, last))
    if this_lane() == 0:
        doubles(args, fields.NORMS)[layer * columns.NORMS + columns.GRADIENT_NORM] = norm
        scales = values(args, fields.SCALES, hyper)
        scales[layer * columns.SCALES + columns.DIVISOR] = rules.lans_divisor(norm)


def lans_advance(args: Any, hyper: Any) -> None:
    """Advance m and v, and add up w^2, u^2 and c^2 of each chunk: 24 bytes per float32 parameter."""
    chunk = this_warp()
    if chunk >= args[fields.CHUNK_COUNT] or is_stopped(args):
        return
    layer, start = longs(args, fields.CHUNKS)[2 * chunk], longs(args, fields.CHUNKS)[2 * chunk + 1]
    gradient = address_of(args, layer, columns.GRADIENT)
    if gradient == 0:
        return
    weights = address_of(args, layer, columns.WEIGHTS)
    first, second = address_of(args, layer, columns.EXP_AVG), address_of(args, layer, columns.EXP_AVG_SQ)
    last = min(longs(args, fields.SIZES)[layer], start + CHUNK)
    zero, one = zero_like(hyper), cast_like(hyper, 1.0)
    w, g = pointer_to(weights, zero), pointer_to(gradient, zero)
    m, v = pointer_to(first, zero), pointer_to(second, zero)
    vectorized = may_vectorize(weights | gradient | first | second)
    row = layer * columns.HYPER
    rescale, decay, eps = (
        hyper[row + columns.RESCALE],
        hyper[row + columns.DECAY],
        hyper[row + columns.EPS],
    )
    beta1, complement1 = hyper[row + columns.BETA1], hyper[row + columns.COMPLEMENT1]
    beta2, complement2 = hyper[row + columns.BETA2], hyper[row + columns.COMPLEMENT2]
    correction1, correction2 = hyper[row + columns.CORRECTION1], hyper[row + columns.CORRECTION2]
    divisor = values(args, fields.SCALES, hyper)[layer * columns.SCALES + columns.DIVISOR]
    first_row = longs(args, fields.FIRST_ROW)[layer]
    length = longs(args, fields.ROW_LENGTHS)[layer]
    means = values(args, fields.MEANS, hyper)
    a = b = c = d = 0.0
    p = q = r = s = 0.0
    x = y = z = t = 0.0
    # A row at a time: with two, a thread has too few registers.
    for place in range(start, last, LANES):
        i = place + QUAD * this_lane()
        whole = vectorized and place + LANES <= last
        w_i, g_i, m_i, v_i = load_rows((w, g, m, v), 1, i, LANES, last, whole)
        d_i = normalized(g_i, w_i, rescale, divisor, means, first_row, i, last, length)
        new_m_i = first_moments(m_i, d_i, beta1, complement1)
        new_v_i = second_moments(v_i, d_i, beta2, complement2)
        u_i = lamb_directions(w_i, new_m_i, new_v_i, correction1, correction2, eps, decay)
        c_i = lamb_directions(w_i, d_i, new_v_i, one, correction2, eps, decay)
        store(m, i, last, whole, new_m_i)
        store(v, i, last, whole, new_v_i)
        a, b, c, d = add_squares((a, b, c, d), w_i)
        p, q, r, s = add_squares((p, q, r, s), before(u_i, i, last, zero))
        x, y, z, t = add_squares((x, y, z, t), before(c_i, i, last, zero))
    weight_sum, update_sum = add_lanes((a, b, c, d)), add_lanes((p, q, r, s))
    gradient_sum = add_lanes((x, y, z, t))
    if this_lane() == 0:
        sums_of(args, chunk)[columns.WEIGHT_SQUARES] = weight_sum
        sums_of(args, chunk)[columns.UPDATE_SQUARES] = update_sum
        sums_of(args, chunk)[columns.GRADIENT_UPDATE_SQUARES] = gradient_sum


def lans_ratio(args: Any, hyper: Any) -> None:
    """Finish norms, both trust ratios and both step lengths, a layer to a warp."""
    layer = this_warp()
    if layer >= args[fields.LAYERS]:
        return
    latch_verdict(args, layer)
    if is_stopped(args) or address_of(args, layer, columns.GRADIENT) == 0:
        return
    first, last = longs(args, fields.FIRST_CHUNK)[layer], longs(args, fields.FIRST_CHUNK)[layer + 1]
    weight_norm = math.sqrt(add_sums(args, columns.WEIGHT_SQUARES, first, last))
    update_norm = math.sqrt(add_sums(args, columns.UPDATE_SQUARES, first, last))
    gradient_update_norm = math.sqrt(add_sums(args, columns.GRADIENT_UPDATE_SQUARES, first, last))
    if this_lane() == 0:
        ratio = ratio_of(args, hyper, layer, weight_norm, update_norm)
        gradient_ratio = ratio_of(args, hyper, layer, weight_norm, gradient_update_norm)
        norms, row = doubles(args, fields.NORMS), layer * columns.NORMS
        norms[row + columns.WEIGHT_NORM] = weight_norm
        norms[row + columns.UPDATE_NORM] = update_norm
        norms[row + columns.RATIO] = ratio
        norms[row + columns.GRADIENT_UPDATE_NORM] = gradient_update_norm
        norms[row + columns.GRADIENT_RATIO] = gradient_ratio
        rate, beta1 = doubles(args, fields.RATES)[layer], hyper64_of(args, layer, columns.BETA1_64)
        scales, own = values(args, fields.SCALES, hyper), layer * columns.SCALES
        scales[own + columns.DESCEND] = rules.lans_scale(rate, beta1, ratio)
        scales[own + columns.GRADIENT_DESCEND] = rules.lans_scale(
            rate, rules.complement(beta1), gradient_ratio
        )
        count_step(args, hyper, layer)


def lans_descend(args: Any, hyper: Any) -> None:
    """Recompute u and c and take both from w: 20 bytes per float32 parameter; also closes the step."""
    chunk = args[fields.CHUNK_COUNT] - 1 - this_warp()
    stopped = longs(args, fields.CONTROL)[fields.STOPPED] != 0
    if this_warp() == 0 and this_lane() == 0:
        close_step(args)
    if chunk < 0 or stopped:
        return
    layer, start = longs(args, fields.CHUNKS)[2 * chunk], longs(args, fields.CHUNKS)[2 * chunk + 1]
    gradient = address_of(args, layer, columns.GRADIENT)
    if gradient == 0:
        return
    weights = address_of(args, layer, columns.WEIGHTS)
    first, second = address_of(args, layer, columns.EXP_AVG), address_of(args, layer, columns.EXP_AVG_SQ)
    last = min(longs(args, fields.SIZES)[layer], start + CHUNK)
    zero, one = zero_like(hyper), cast_like(hyper, 1.0)
    w, g = pointer_to(weights, zero), pointer_to(gradient, zero)
    m, v = pointer_to(first, zero), pointer_to(second, zero)
    vectorized = may_vectorize(weights | gradient | first | second)
    row, own = layer * columns.HYPER, layer * columns.SCALES
    rescale, decay, eps = (
        hyper[row + columns.RESCALE],
        hyper[row + columns.DECAY],
        hyper[row + columns.EPS],
    )
    correction1, correction2 = hyper[row + columns.CORRECTION1], hyper[row + columns.CORRECTION2]
    scales = values(args, fields.SCALES, hyper)
    divisor, scale = scales[own + columns.DIVISOR], scales[own + columns.DESCEND]
    gradient_scale = scales[own + columns.GRADIENT_DESCEND]
    first_row = longs(args, fields.FIRST_ROW)[layer]
    length = longs(args, fields.ROW_LENGTHS)[layer]
    means = values(args, fields.MEANS, hyper)
    for back in range(start, last, LANES):
        place = start + (last - 1 - back) // LANES * LANES
        i = place + QUAD * this_lane()
        whole = vectorized and place + LANES <= last
        w_i, g_i, m_i, v_i = load_rows((w, g, m, v), 1, i, LANES, last, whole)
        d_i = normalized(g_i, w_i, rescale, divisor, means, first_row, i, last, length)
        u_i = lamb_directions(w_i, m_i, v_i, correction1, correction2, eps, decay)
        c_i = lamb_directions(w_i, d_i, v_i, one, correction2, eps, decay)
        store(w, i, last, whole, descended(descended(w_i, u_i, scale), c_i, gradient_scale))


LANS_KERNELS = (lans_squares, lans_normalize, lans_advance, lans_ratio, lans_descend)
"""In the order of a step."""
