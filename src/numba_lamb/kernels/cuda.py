"""The CUDA kernels: one warp for each chunk, row or layer, with the CPU's lanes, tree and rules, hence its bits.

Thread ``t`` of a warp owns elements ``4t`` to ``4t + 3`` of every row of 128, hence lanes ``4t`` to ``4t + 3``.
Every kernel takes a part's ``book`` and its per-layer ``scalars``. Nothing here is decided on the host: a step
whose gradients are not finite runs to its end and changes nothing.

A step is ``open_step``, which also checks the gradients; the clip kernels where asked for; ``decay_weights`` where
decay is outside the direction; ``row_means`` where gradients are centralized; then for Lamb ``lamb_advance``,
``lamb_ratio``, ``lamb_descend``, and for Lars and Momentum ``lars_sums`` (where a layer adapts), ``lars_ratio``,
``lars_update``. The last one walks the chunks backwards, because what the one before it touched last is still in
the L2 cache. A kernel that keeps a layer on the chip between its two passes would stand in for those three.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_lamb.kernels import book as at
from numba_lamb.kernels import rows
from numba_lamb.kernels.cuda_intrinsics import load_rows, pointer_to, zero_like
from numba_lamb.kernels.cuda_step import (
    clip_gradients,
    close_step,
    count_step,
    decay_weights,
    gradient_squares,
    open_step,
    row_means,
    scale_gradients,
    settle,
)
from numba_lamb.kernels.cuda_warp import (
    QUAD,
    add_column,
    add_lanes,
    add_squares,
    address_of,
    descended,
    doubles,
    first_moments,
    is_stopped,
    lamb_directions,
    lamb_gradients,
    lars_gradients,
    longs,
    may_vectorize,
    momentum_advances,
    momentum_directions,
    rules,
    scaled,
    second_moments,
    setting,
    store,
    this_lane,
    this_warp,
    values,
)
from numba_lamb.layout import CHUNK, LANES

# -- LAMB ----------------------------------------------------------------------------------------------------


def lamb_advance(book: Any, scalars: Any) -> None:
    """Advance m and v, and add up w^2 and u^2 of each chunk: 24 bytes per float32 parameter."""
    chunk = this_warp()
    if chunk >= book[at.CHUNK_COUNT] or is_stopped(book):
        return
    layer, start = longs(book, at.CHUNKS)[2 * chunk], longs(book, at.CHUNKS)[2 * chunk + 1]
    gradient = address_of(book, layer, rows.GRADIENT)
    if gradient == 0:
        return
    weights = address_of(book, layer, rows.WEIGHTS)
    first, second = address_of(book, layer, rows.FIRST), address_of(book, layer, rows.SECOND)
    last = min(longs(book, at.SIZES)[layer], start + CHUNK)
    zero = zero_like(scalars)
    w, g = pointer_to(weights, zero), pointer_to(gradient, zero)
    m, v = pointer_to(first, zero), pointer_to(second, zero)
    vectorized = may_vectorize(weights | gradient | first | second)
    row = layer * rows.SCALARS
    rescale, decay, eps = scalars[row + rows.RESCALE], scalars[row + rows.DECAY], scalars[row + rows.EPS]
    beta1, complement1 = scalars[row + rows.BETA1], scalars[row + rows.COMPLEMENT1]
    beta2, complement2 = scalars[row + rows.BETA2], scalars[row + rows.COMPLEMENT2]
    correction1, correction2 = scalars[row + rows.CORRECTION1], scalars[row + rows.CORRECTION2]
    first_row = longs(book, at.FIRST_ROW)[layer]
    length = longs(book, at.ROW_LENGTHS)[layer]
    means = values(book, at.MEANS, scalars)
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
        p, q, r, s = add_squares(add_squares((p, q, r, s), u_i), u_j)
    weight_sum, update_sum = add_lanes((a, b, c, d)), add_lanes((p, q, r, s))
    if this_lane() == 0:
        doubles(book, at.SUMS)[2 * chunk] = weight_sum
        doubles(book, at.SUMS)[2 * chunk + 1] = update_sum


def lamb_ratio(book: Any, scalars: Any) -> None:
    """Finish norms, trust ratio and step length, a layer to a warp."""
    layer = this_warp()
    if layer >= book[at.LAYERS]:
        return
    settle(book, layer)
    if is_stopped(book) or address_of(book, layer, rows.GRADIENT) == 0:
        return
    first, last = longs(book, at.FIRST_CHUNK)[layer], longs(book, at.FIRST_CHUNK)[layer + 1]
    weight_norm = math.sqrt(add_column(doubles(book, at.SUMS), 2, 0, first, last))
    update_norm = math.sqrt(add_column(doubles(book, at.SUMS), 2, 1, first, last))
    if this_lane() == 0:
        ratio = 1.0
        if scalars[layer * rows.SCALARS + rows.ADAPT] != 0:
            limit, epsilon = setting(book, layer, rows.WEIGHT_LIMIT), setting(book, layer, rows.EPSILON)
            least, most = setting(book, layer, rows.LEAST), setting(book, layer, rows.MOST)
            ratio = rules.lamb_ratio(weight_norm, update_norm, limit, epsilon, least, most)
        norms = doubles(book, at.NORMS)
        norms[layer * rows.NORMS + rows.WEIGHT_NORM] = weight_norm
        norms[layer * rows.NORMS + rows.UPDATE_NORM] = update_norm
        norms[layer * rows.NORMS + rows.RATIO] = ratio
        scale = doubles(book, at.RATES)[layer] * ratio
        values(book, at.SCALES, scalars)[layer * rows.SCALES + rows.DESCEND] = scale
        count_step(book, layer)


def lamb_descend(book: Any, scalars: Any) -> None:
    """Recompute u and take ``w <- w - scale*u``: 16 bytes per float32 parameter; also closes the step."""
    chunk = book[at.CHUNK_COUNT] - 1 - this_warp()
    stopped = longs(book, at.CONTROL)[at.STOPPED] != 0
    if this_warp() == 0 and this_lane() == 0:
        close_step(book)
    if chunk < 0 or stopped:
        return
    layer, start = longs(book, at.CHUNKS)[2 * chunk], longs(book, at.CHUNKS)[2 * chunk + 1]
    if address_of(book, layer, rows.GRADIENT) == 0:
        return
    weights = address_of(book, layer, rows.WEIGHTS)
    first, second = address_of(book, layer, rows.FIRST), address_of(book, layer, rows.SECOND)
    last = min(longs(book, at.SIZES)[layer], start + CHUNK)
    zero = zero_like(scalars)
    w, m, v = pointer_to(weights, zero), pointer_to(first, zero), pointer_to(second, zero)
    vectorized = may_vectorize(weights | first | second)
    row = layer * rows.SCALARS
    correction1, correction2 = scalars[row + rows.CORRECTION1], scalars[row + rows.CORRECTION2]
    eps, decay = scalars[row + rows.EPS], scalars[row + rows.DECAY]
    scale = values(book, at.SCALES, scalars)[layer * rows.SCALES + rows.DESCEND]
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


def lars_sums(book: Any, scalars: Any) -> None:
    """Add up w^2 and the unscaled g^2 of each chunk of layers that adapt: 8 bytes per float32 parameter."""
    chunk = this_warp()
    if chunk >= book[at.CHUNK_COUNT] or is_stopped(book):
        return
    layer, start = longs(book, at.CHUNKS)[2 * chunk], longs(book, at.CHUNKS)[2 * chunk + 1]
    gradient = address_of(book, layer, rows.GRADIENT)
    if gradient == 0 or scalars[layer * rows.SCALARS + rows.ADAPT] == 0:
        return
    weights = address_of(book, layer, rows.WEIGHTS)
    last = min(longs(book, at.SIZES)[layer], start + CHUNK)
    zero = zero_like(scalars)
    w, g = pointer_to(weights, zero), pointer_to(gradient, zero)
    vectorized = may_vectorize(weights | gradient)
    rescale = scalars[layer * rows.SCALARS + rows.RESCALE]
    a = b = c = d = 0.0
    p = q = r = s = 0.0
    for place in range(start, last, 2 * LANES):
        i = place + QUAD * this_lane()
        whole = vectorized and place + 2 * LANES <= last
        w_i, g_i, w_j, g_j = load_rows((w, g), 2, i, LANES, last, whole)
        a, b, c, d = add_squares(add_squares((a, b, c, d), w_i), w_j)
        p, q, r, s = add_squares(add_squares((p, q, r, s), scaled(g_i, rescale)), scaled(g_j, rescale))
    weight_sum, gradient_sum = add_lanes((a, b, c, d)), add_lanes((p, q, r, s))
    if this_lane() == 0:
        doubles(book, at.SUMS)[2 * chunk] = weight_sum
        doubles(book, at.SUMS)[2 * chunk + 1] = gradient_sum


def lars_ratio(book: Any, scalars: Any) -> None:
    """Finish norms and ratio, what enters the momentum and what is taken from the weights, a layer to a warp."""
    layer = this_warp()
    if layer >= book[at.LAYERS]:
        return
    settle(book, layer)
    if is_stopped(book) or address_of(book, layer, rows.GRADIENT) == 0:
        return
    row = layer * rows.SCALARS
    rate = doubles(book, at.RATES)[layer]
    ratio = 1.0
    if scalars[row + rows.ADAPT] != 0:
        first, last = longs(book, at.FIRST_CHUNK)[layer], longs(book, at.FIRST_CHUNK)[layer + 1]
        weight_norm = math.sqrt(add_column(doubles(book, at.SUMS), 2, 0, first, last))
        gradient_norm = math.sqrt(add_column(doubles(book, at.SUMS), 2, 1, first, last))
        decay = np.float64(scalars[row + rows.DECAY])
        coefficient, epsilon = setting(book, layer, rows.COEFFICIENT), setting(book, layer, rows.EPSILON)
        guard = setting(book, layer, rows.GUARD)
        ratio = rules.lars_ratio(weight_norm, gradient_norm, decay, coefficient, epsilon, guard)
        if setting(book, layer, rows.CLIP) != 0:
            ratio = rules.clipped_ratio(ratio, rate)
        if this_lane() == 0:
            doubles(book, at.NORMS)[layer * rows.NORMS + rows.WEIGHT_NORM] = weight_norm
            doubles(book, at.NORMS)[layer * rows.NORMS + rows.UPDATE_NORM] = gradient_norm
    if this_lane() == 0:
        doubles(book, at.NORMS)[layer * rows.NORMS + rows.RATIO] = ratio
        scales = values(book, at.SCALES, scalars)
        inside = setting(book, layer, rows.RATE_INSIDE) != 0
        scales[layer * rows.SCALES + rows.ADVANCE] = rate * ratio if inside else ratio
        scales[layer * rows.SCALES + rows.DESCEND] = 1.0 if inside else rate
        count_step(book, layer)


def lars_update(book: Any, scalars: Any) -> None:
    """Advance the momentum and update w: 20 bytes per float32 parameter; also closes the step."""
    chunk = book[at.CHUNK_COUNT] - 1 - this_warp()
    stopped = longs(book, at.CONTROL)[at.STOPPED] != 0
    if this_warp() == 0 and this_lane() == 0:
        close_step(book)
    if chunk < 0 or stopped:
        return
    layer, start = longs(book, at.CHUNKS)[2 * chunk], longs(book, at.CHUNKS)[2 * chunk + 1]
    gradient = address_of(book, layer, rows.GRADIENT)
    if gradient == 0:
        return
    weights, first = address_of(book, layer, rows.WEIGHTS), address_of(book, layer, rows.FIRST)
    last = min(longs(book, at.SIZES)[layer], start + CHUNK)
    zero = zero_like(scalars)
    w, g, v = pointer_to(weights, zero), pointer_to(gradient, zero), pointer_to(first, zero)
    vectorized = may_vectorize(weights | gradient | first)
    row = layer * rows.SCALARS
    rescale, decay, momentum = (
        scalars[row + rows.RESCALE],
        scalars[row + rows.DECAY],
        scalars[row + rows.BETA1],
    )
    velocity, lookahead = scalars[row + rows.VELOCITY], scalars[row + rows.LOOKAHEAD]
    advance = values(book, at.SCALES, scalars)[layer * rows.SCALES + rows.ADVANCE]
    descend = values(book, at.SCALES, scalars)[layer * rows.SCALES + rows.DESCEND]
    first_row = longs(book, at.FIRST_ROW)[layer]
    length = longs(book, at.ROW_LENGTHS)[layer]
    means = values(book, at.MEANS, scalars)
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
        lamb_ratio,
        lamb_descend,
        lars_sums,
        lars_ratio,
        lars_update,
    )
}
"""Every kernel by name, in the order of a step."""
