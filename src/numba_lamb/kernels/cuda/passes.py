"""The CUDA kernels: one warp for each chunk, row or layer, with the CPU's lanes, tree and rules, hence its bits.

Thread ``t`` of a warp owns elements ``4t`` to ``4t + 3`` of every row of 128, hence lanes ``4t`` to ``4t + 3``.
Every kernel takes a bucket's ``args`` and its per-layer ``hyper``. Nothing here is decided on the host: a step
whose gradients are not finite runs to its end and changes nothing.

A step is ``open_step``, which also checks the gradients; the clip kernels where asked for; ``decay_weights`` where
decay is outside the direction; ``row_means`` where gradients are centralized; then for Lamb ``lamb_advance``,
``lamb_other_norm`` where a ratio divides by another norm, ``lamb_ratio``, ``lamb_descend``, for Lans the kernels
of `numba_lamb.kernels.cuda.lans`, and for Lars and Momentum ``lars_sums`` (where a layer adapts), ``lars_ratio``,
``lars_update``. The last one walks the chunks backwards, because what the one before it touched last is still in
the L2 cache. A kernel that keeps a layer on the chip between its two passes would stand in for those three.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.frame import (
    clip_gradients,
    close_step,
    count_step,
    decay_weights,
    gradient_squares,
    latch_verdict,
    open_step,
    row_means,
    scale_gradients,
)
from numba_lamb.kernels.cuda.intrinsics import load_rows, pointer_to, zero_like
from numba_lamb.kernels.cuda.lans import LANS_KERNELS
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
    lamb_others,
    lars_gradients,
    longs,
    may_vectorize,
    momentum_advances,
    momentum_directions,
    normed_gradients,
    rules,
    second_moments,
    store,
    sums_of,
    this_lane,
    this_warp,
    values,
)
from numba_lamb.layout import CHUNK, LANES

# -- LAMB ----------------------------------------------------------------------------------------------------


def lamb_advance(args: Any, hyper: Any) -> None:
    """Advance m and v, and add up w^2 and u^2 of each chunk: 24 bytes per float32 parameter."""
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
    zero = zero_like(hyper)
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
    first_row = longs(args, fields.FIRST_ROW)[layer]
    length = longs(args, fields.ROW_LENGTHS)[layer]
    means = values(args, fields.MEANS, hyper)
    a = b = c = d = 0.0
    p = q = r = s = 0.0
    for place in range(start, last, 2 * LANES):
        i = place + QUAD * this_lane()
        j = i + LANES
        whole = vectorized and place + 2 * LANES <= last
        w_i, g_i, m_i, v_i, w_j, g_j, m_j, v_j = load_rows((w, g, m, v), 2, i, LANES, last, whole)
        d_i = lamb_gradients(g_i, w_i, rescale, means, first_row, i, last, length)
        d_j = lamb_gradients(g_j, w_j, rescale, means, first_row, j, last, length)
        new_m_i, new_m_j = (
            first_moments(m_i, d_i, beta1, complement1),
            first_moments(m_j, d_j, beta1, complement1),
        )
        new_v_i = second_moments(v_i, d_i, beta2, complement2)
        new_v_j = second_moments(v_j, d_j, beta2, complement2)
        u_i = lamb_directions(w_i, new_m_i, new_v_i, correction1, correction2, eps, decay)
        u_j = lamb_directions(w_j, new_m_j, new_v_j, correction1, correction2, eps, decay)
        store(m, i, last, whole, new_m_i)
        store(v, i, last, whole, new_v_i)
        store(m, j, last, whole, new_m_j)
        store(v, j, last, whole, new_v_j)
        a, b, c, d = add_squares(add_squares((a, b, c, d), w_i), w_j)
        p, q, r, s = add_squares(
            add_squares((p, q, r, s), before(u_i, i, last, zero)), before(u_j, j, last, zero)
        )
    weight_sum, update_sum = add_lanes((a, b, c, d)), add_lanes((p, q, r, s))
    if this_lane() == 0:
        sums_of(args, chunk)[columns.WEIGHT_SQUARES] = weight_sum
        sums_of(args, chunk)[columns.UPDATE_SQUARES] = update_sum


def lamb_other_norm(args: Any, hyper: Any) -> None:
    """Replace the sum of u^2 of layers whose ratio divides by another norm: 16 bytes per float32 parameter."""
    chunk = this_warp()
    if chunk >= args[fields.CHUNK_COUNT] or is_stopped(args):
        return
    layer, start = longs(args, fields.CHUNKS)[2 * chunk], longs(args, fields.CHUNKS)[2 * chunk + 1]
    gradient = address_of(args, layer, columns.GRADIENT)
    kind = hyper64_of(args, layer, columns.NORM_OF)
    row = layer * columns.HYPER
    if gradient == 0 or hyper[row + columns.ADAPT] == 0 or kind == rules.DIRECTION:
        return
    weights = address_of(args, layer, columns.WEIGHTS)
    first, second = address_of(args, layer, columns.EXP_AVG), address_of(args, layer, columns.EXP_AVG_SQ)
    last = min(longs(args, fields.SIZES)[layer], start + CHUNK)
    zero = zero_like(hyper)
    w, g = pointer_to(weights, zero), pointer_to(gradient, zero)
    m, v = pointer_to(first, zero), pointer_to(second, zero)
    vectorized = may_vectorize(weights | gradient | first | second)
    correction1, correction2 = hyper[row + columns.CORRECTION1], hyper[row + columns.CORRECTION2]
    eps, decay = hyper[row + columns.EPS], hyper[row + columns.DECAY]
    a = b = c = d = 0.0
    p = q = r = s = 0.0
    for place in range(start, last, LANES):
        i = place + QUAD * this_lane()
        whole = vectorized and place + LANES <= last
        w_i, g_i, m_i, v_i = load_rows((w, g, m, v), 1, i, LANES, last, whole)
        u_i = lamb_others(w_i, m_i, v_i, correction1, correction2, eps, decay, zero, kind)
        a, b, c, d = add_squares((a, b, c, d), g_i)
        p, q, r, s = add_squares((p, q, r, s), before(u_i, i, last, zero))
    gradient_sum, update_sum = add_lanes((a, b, c, d)), add_lanes((p, q, r, s))
    if this_lane() == 0:
        sums_of(args, chunk)[columns.GRADIENT_SQUARES] = gradient_sum
        sums_of(args, chunk)[columns.UPDATE_SQUARES] = update_sum


def lamb_ratio(args: Any, hyper: Any) -> None:
    """Finish norms, trust ratio and step length, a layer to a warp."""
    layer = this_warp()
    if layer >= args[fields.LAYERS]:
        return
    latch_verdict(args, layer)
    if is_stopped(args) or address_of(args, layer, columns.GRADIENT) == 0:
        return
    first, last = longs(args, fields.FIRST_CHUNK)[layer], longs(args, fields.FIRST_CHUNK)[layer + 1]
    weight_norm = math.sqrt(add_sums(args, columns.WEIGHT_SQUARES, first, last))
    update_norm = math.sqrt(add_sums(args, columns.UPDATE_SQUARES, first, last))
    gradient_sum = 1.0
    if hyper64_of(args, layer, columns.NORM_OF) == rules.EPS_IN_ROOT_GUARDED:
        gradient_sum = add_sums(args, columns.GRADIENT_SQUARES, first, last)
    if this_lane() == 0:
        ratio = 1.0
        if hyper[layer * columns.HYPER + columns.ADAPT] != 0 and gradient_sum != 0:
            ratio = rules.lamb_ratio(
                weight_norm,
                update_norm,
                hyper64_of(args, layer, columns.MIN_WEIGHT_NORM),
                hyper64_of(args, layer, columns.MAX_WEIGHT_NORM),
                hyper64_of(args, layer, columns.RATIO_EPS),
                hyper64_of(args, layer, columns.MIN_RATIO),
                hyper64_of(args, layer, columns.MAX_RATIO),
            )
        norms = doubles(args, fields.NORMS)
        norms[layer * columns.NORMS + columns.WEIGHT_NORM] = weight_norm
        norms[layer * columns.NORMS + columns.UPDATE_NORM] = update_norm
        norms[layer * columns.NORMS + columns.RATIO] = ratio
        scale = rules.step_length(doubles(args, fields.RATES)[layer], ratio)
        values(args, fields.SCALES, hyper)[layer * columns.SCALES + columns.DESCEND] = scale
        count_step(args, hyper, layer)


def lamb_descend(args: Any, hyper: Any) -> None:
    """Recompute u and take ``w <- w - scale*u``: 16 bytes per float32 parameter; also closes the step."""
    chunk = args[fields.CHUNK_COUNT] - 1 - this_warp()
    stopped = longs(args, fields.CONTROL)[fields.STOPPED] != 0
    if this_warp() == 0 and this_lane() == 0:
        close_step(args)
    if chunk < 0 or stopped:
        return
    layer, start = longs(args, fields.CHUNKS)[2 * chunk], longs(args, fields.CHUNKS)[2 * chunk + 1]
    if address_of(args, layer, columns.GRADIENT) == 0:
        return
    weights = address_of(args, layer, columns.WEIGHTS)
    first, second = address_of(args, layer, columns.EXP_AVG), address_of(args, layer, columns.EXP_AVG_SQ)
    last = min(longs(args, fields.SIZES)[layer], start + CHUNK)
    zero = zero_like(hyper)
    w, m, v = pointer_to(weights, zero), pointer_to(first, zero), pointer_to(second, zero)
    vectorized = may_vectorize(weights | first | second)
    row = layer * columns.HYPER
    correction1, correction2 = hyper[row + columns.CORRECTION1], hyper[row + columns.CORRECTION2]
    eps, decay = hyper[row + columns.EPS], hyper[row + columns.DECAY]
    scale = values(args, fields.SCALES, hyper)[layer * columns.SCALES + columns.DESCEND]
    for back in range(start, last, 2 * LANES):
        place = start + (last - 1 - back) // (2 * LANES) * (2 * LANES)
        i = place + QUAD * this_lane()
        j = i + LANES
        whole = vectorized and place + 2 * LANES <= last
        w_i, m_i, v_i, w_j, m_j, v_j = load_rows((w, m, v), 2, i, LANES, last, whole)
        u_i = lamb_directions(w_i, m_i, v_i, correction1, correction2, eps, decay)
        u_j = lamb_directions(w_j, m_j, v_j, correction1, correction2, eps, decay)
        store(w, i, last, whole, descended(w_i, u_i, scale))
        store(w, j, last, whole, descended(w_j, u_j, scale))


# -- LARS and Momentum, which is LARS with ratio 1 -----------------------------------------------------------


def lars_sums(args: Any, hyper: Any) -> None:
    """Add up w^2 and the unscaled g^2 of each chunk of layers that adapt: 8 bytes per float32 parameter."""
    chunk = this_warp()
    if chunk >= args[fields.CHUNK_COUNT] or is_stopped(args):
        return
    layer, start = longs(args, fields.CHUNKS)[2 * chunk], longs(args, fields.CHUNKS)[2 * chunk + 1]
    gradient = address_of(args, layer, columns.GRADIENT)
    if gradient == 0 or hyper[layer * columns.HYPER + columns.ADAPT] == 0:
        return
    weights = address_of(args, layer, columns.WEIGHTS)
    last = min(longs(args, fields.SIZES)[layer], start + CHUNK)
    zero = zero_like(hyper)
    w, g = pointer_to(weights, zero), pointer_to(gradient, zero)
    vectorized = may_vectorize(weights | gradient)
    rescale, decay = (
        hyper[layer * columns.HYPER + columns.RESCALE],
        hyper[layer * columns.HYPER + columns.DECAY],
    )
    decayed = hyper64_of(args, layer, columns.DECAYED_NORM) != 0
    a = b = c = d = 0.0
    p = q = r = s = 0.0
    for place in range(start, last, 2 * LANES):
        i = place + QUAD * this_lane()
        whole = vectorized and place + 2 * LANES <= last
        w_i, g_i, w_j, g_j = load_rows((w, g), 2, i, LANES, last, whole)
        a, b, c, d = add_squares(add_squares((a, b, c, d), w_i), w_j)
        d_i = normed_gradients(g_i, w_i, rescale, decay, decayed)
        d_j = normed_gradients(g_j, w_j, rescale, decay, decayed)
        p, q, r, s = add_squares(add_squares((p, q, r, s), d_i), d_j)
    weight_sum, gradient_sum = add_lanes((a, b, c, d)), add_lanes((p, q, r, s))
    if this_lane() == 0:
        sums_of(args, chunk)[columns.WEIGHT_SQUARES] = weight_sum
        sums_of(args, chunk)[columns.UPDATE_SQUARES] = gradient_sum


def lars_ratio(args: Any, hyper: Any) -> None:
    """Finish norms and ratio, what enters the momentum and what is taken from the weights, a layer to a warp."""
    layer = this_warp()
    if layer >= args[fields.LAYERS]:
        return
    latch_verdict(args, layer)
    if is_stopped(args) or address_of(args, layer, columns.GRADIENT) == 0:
        return
    row = layer * columns.HYPER
    rate = doubles(args, fields.RATES)[layer]
    ratio = 1.0
    if hyper[row + columns.ADAPT] != 0:
        first, last = longs(args, fields.FIRST_CHUNK)[layer], longs(args, fields.FIRST_CHUNK)[layer + 1]
        weight_norm = math.sqrt(add_sums(args, columns.WEIGHT_SQUARES, first, last))
        gradient_norm = math.sqrt(add_sums(args, columns.UPDATE_SQUARES, first, last))
        # A norm that has the decay in it stands alone below the ratio.
        decay = (
            np.float64(hyper[row + columns.DECAY])
            if hyper64_of(args, layer, columns.DECAYED_NORM) == 0
            else 0.0
        )
        guard = hyper64_of(args, layer, columns.GUARD)
        lightest = hyper64_of(args, layer, columns.MIN_WEIGHT_NORM)
        heaviest = hyper64_of(args, layer, columns.MAX_WEIGHT_NORM)
        ratio = rules.lars_ratio(
            weight_norm,
            gradient_norm,
            decay,
            hyper64_of(args, layer, columns.COEFFICIENT),
            hyper64_of(args, layer, columns.RATIO_EPS),
            guard,
            lightest,
            heaviest,
            hyper64_of(args, layer, columns.MIN_RATIO),
            hyper64_of(args, layer, columns.MAX_RATIO),
        )
        if hyper64_of(args, layer, columns.TRUST_CLIP) != 0:
            phi = rules.within(weight_norm, lightest, heaviest)
            ratio = rules.clipped_ratio(ratio, rate, phi, guard)
        if this_lane() == 0:
            doubles(args, fields.NORMS)[layer * columns.NORMS + columns.WEIGHT_NORM] = weight_norm
            doubles(args, fields.NORMS)[layer * columns.NORMS + columns.UPDATE_NORM] = gradient_norm
    if this_lane() == 0:
        doubles(args, fields.NORMS)[layer * columns.NORMS + columns.RATIO] = ratio
        scales = values(args, fields.SCALES, hyper)
        inside = hyper64_of(args, layer, columns.RATE_INSIDE) != 0
        outside = hyper64_of(args, layer, columns.RATIO_OUTSIDE) != 0
        own = layer * columns.SCALES
        scales[own + columns.ADVANCE] = rules.lars_advance(rate, ratio, inside, outside)
        scales[own + columns.DESCEND] = rules.lars_descend(rate, ratio, inside, outside)
        count_step(args, hyper, layer)


def lars_update(args: Any, hyper: Any) -> None:
    """Advance the momentum and update w: 20 bytes per float32 parameter; also closes the step."""
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
    weights, first = address_of(args, layer, columns.WEIGHTS), address_of(args, layer, columns.EXP_AVG)
    last = min(longs(args, fields.SIZES)[layer], start + CHUNK)
    zero = zero_like(hyper)
    w, g, v = pointer_to(weights, zero), pointer_to(gradient, zero), pointer_to(first, zero)
    vectorized = may_vectorize(weights | gradient | first)
    row = layer * columns.HYPER
    rescale, decay, momentum = (
        hyper[row + columns.RESCALE],
        hyper[row + columns.DECAY],
        hyper[row + columns.BETA1],
    )
    velocity, lookahead = hyper[row + columns.VELOCITY], hyper[row + columns.LOOKAHEAD]
    advance = values(args, fields.SCALES, hyper)[layer * columns.SCALES + columns.ADVANCE]
    descend = values(args, fields.SCALES, hyper)[layer * columns.SCALES + columns.DESCEND]
    first_row = longs(args, fields.FIRST_ROW)[layer]
    length = longs(args, fields.ROW_LENGTHS)[layer]
    means = values(args, fields.MEANS, hyper)
    for back in range(start, last, 2 * LANES):
        place = start + (last - 1 - back) // (2 * LANES) * (2 * LANES)
        i = place + QUAD * this_lane()
        j = i + LANES
        whole = vectorized and place + 2 * LANES <= last
        w_i, g_i, v_i, w_j, g_j, v_j = load_rows((w, g, v), 2, i, LANES, last, whole)
        d_i = lars_gradients(g_i, w_i, rescale, decay, means, first_row, i, last, length)
        d_j = lars_gradients(g_j, w_j, rescale, decay, means, first_row, j, last, length)
        new_v_i = momentum_advances(v_i, d_i, momentum, advance)
        new_v_j = momentum_advances(v_j, d_j, momentum, advance)
        u_i = momentum_directions(new_v_i, d_i, advance, velocity, lookahead)
        u_j = momentum_directions(new_v_j, d_j, advance, velocity, lookahead)
        store(v, i, last, whole, new_v_i)
        store(v, j, last, whole, new_v_j)
        store(w, i, last, whole, descended(w_i, u_i, descend))
        store(w, j, last, whole, descended(w_j, u_j, descend))


KERNELS: dict[str, Callable[[Any, Any], None]] = {
    kernel.__name__: kernel
    for kernel in (
        open_step,
        gradient_squares,
        clip_gradients,
        scale_gradients,
        decay_weights,
        row_means,
        lamb_advance,
        lamb_other_norm,
        lamb_ratio,
        lamb_descend,
        *LANS_KERNELS,
        lars_sums,
        lars_ratio,
        lars_update,
    )
}
"""Every kernel by name, in the order of a step."""
