"""The CUDA kernels: a block for each chunk, row or layer, with the CPU's lanes, tree and rules, hence its bits.

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
from typing import Any

import numpy as np

from numba_lamb._compile import cuda_function
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.block import (
    ROWS,
    STORED,
    STRIDE,
    add_all_sums,
    add_lanes,
    array_of,
    begin_of,
    chunk_of,
    decode,
    doubles,
    hyper64_of,
    is_stopped,
    key_of,
    lamb_gradient,
    lars_gradient,
    load,
    load_fenced,
    own_rows,
    rows_from,
    rules,
    store,
    store_rows,
    sums_of,
    this_block,
    this_lane,
    until,
    values,
    was_stopped,
)
from numba_lamb.kernels.cuda.frame import (
    close_step,
    count_step,
    takes_part,
)
from numba_lamb.kernels.cuda.intrinsics import zero_like
from numba_lamb.layout import LANES
from numba_lamb.numerics import storage

# -- LAMB ----------------------------------------------------------------------------------------------------


def lamb_advance(args: Any, hyper: Any) -> None:
    """Advance m and v, and add up w^2 and u^2 of each chunk: 24 bytes per float32 parameter."""
    chunk = this_block()
    layer, start, last = chunk_of(args, chunk, is_stopped(args))
    if start == last:
        return
    weights, gradients = (
        array_of(args, hyper, layer, columns.WEIGHTS),
        array_of(args, hyper, layer, columns.GRADIENT),
    )
    exp_avg = array_of(args, hyper, layer, columns.EXP_AVG)
    exp_avg_sq = array_of(args, hyper, layer, columns.EXP_AVG_SQ)
    row = layer * columns.HYPER
    rescale, decay, eps = (
        hyper[row + columns.RESCALE],
        hyper[row + columns.DECAY],
        hyper[row + columns.EPS],
    )
    beta1, complement1 = hyper[row + columns.BETA1], hyper[row + columns.COMPLEMENT1]
    beta2, complement2 = hyper[row + columns.BETA2], hyper[row + columns.COMPLEMENT2]
    correction1, correction2 = hyper[row + columns.CORRECTION1], hyper[row + columns.CORRECTION2]
    rows = rows_from(args, hyper, layer, start)
    w, g, m, v = own_rows(hyper), own_rows(hyper), own_rows(hyper), own_rows(hyper)
    key = key_of(args, layer, start, storage.MOMENTS)
    begin = begin_of(start)
    weight_sum = update_sum = 0.0
    for first in range(start + this_lane(), until(start, last), STRIDE):
        load(w, weights, first, last)
        load(g, gradients, first, last)
        load(m, exp_avg, first, last)
        load(v, exp_avg_sq, first, last)
        decode(w, weights)
        decode(g, gradients)
        decode(m, exp_avg)
        decode(v, exp_avg_sq)
        for k in range(ROWS):
            i = first + k * LANES
            if i < last:
                d = lamb_gradient(g[k], w[k], rescale, rows, i - start)
                m[k] = rules.first_moment(m[k], d, beta1, complement1)
                v[k] = rules.second_moment(v[k], d, beta2, complement2)
                if not STORED:
                    u = rules.lamb_direction(w[k], m[k], v[k], correction1, correction2, eps, decay)
                    store(exp_avg, i, m[k], key, i - begin)
                    store(exp_avg_sq, i, v[k], key, i - begin)
                    weight_sum = rules.add_square(weight_sum, w[k])
                    update_sum = rules.add_square(update_sum, u)
        if STORED:
            # The direction is made of the moments as they are stored, which takes whole rows.
            store_rows(m, exp_avg, first, last, begin, key, False)
            store_rows(v, exp_avg_sq, first, last, begin, key, True)
            for k in range(ROWS):
                if first + k * LANES < last:
                    u = rules.lamb_direction(w[k], m[k], v[k], correction1, correction2, eps, decay)
                    weight_sum = rules.add_square(weight_sum, w[k])
                    update_sum = rules.add_square(update_sum, u)
    weight_sum, update_sum = add_lanes(weight_sum), add_lanes(update_sum)
    if this_lane() == 0:
        sums_of(args, chunk)[columns.WEIGHT_SQUARES] = weight_sum
        sums_of(args, chunk)[columns.UPDATE_SQUARES] = update_sum


@cuda_function
def lamb_other(
    w: Any, m: Any, v: Any, correction1: Any, correction2: Any, eps: Any, decay: Any, zero: Any, kind: Any
) -> Any:
    """Return that of which LAMB's ratio divides by the norm, where it is not the direction."""
    u = rules.lamb_direction(w, m, v, correction1, correction2, eps, zero)
    if kind != rules.UNDECAYED:
        u = rules.lamb_eps_in_root(w, m, v, correction1, correction2, eps, decay)
    return u


def lamb_other_norm(args: Any, hyper: Any) -> None:
    """Replace the sum of u^2 of layers whose ratio divides by another norm: 16 bytes per float32 parameter."""
    chunk = this_block()
    layer, start, last = chunk_of(args, chunk, is_stopped(args))
    if start == last:
        return
    kind = hyper64_of(args, layer, columns.NORM_OF)
    row = layer * columns.HYPER
    if hyper[row + columns.ADAPT] == 0 or kind == rules.DIRECTION:
        return
    weights, gradients = (
        array_of(args, hyper, layer, columns.WEIGHTS),
        array_of(args, hyper, layer, columns.GRADIENT),
    )
    exp_avg = array_of(args, hyper, layer, columns.EXP_AVG)
    exp_avg_sq = array_of(args, hyper, layer, columns.EXP_AVG_SQ)
    correction1, correction2 = hyper[row + columns.CORRECTION1], hyper[row + columns.CORRECTION2]
    eps, decay, zero = hyper[row + columns.EPS], hyper[row + columns.DECAY], zero_like(hyper)
    w, g, m, v = own_rows(hyper), own_rows(hyper), own_rows(hyper), own_rows(hyper)
    gradient_sum = update_sum = 0.0
    for first in range(start + this_lane(), last, STRIDE):
        load(w, weights, first, last)
        load(g, gradients, first, last)
        load(m, exp_avg, first, last)
        load(v, exp_avg_sq, first, last)
        decode(w, weights)
        decode(g, gradients)
        decode(m, exp_avg)
        decode(v, exp_avg_sq)
        for k in range(ROWS):
            if first + k * LANES < last:
                u = lamb_other(w[k], m[k], v[k], correction1, correction2, eps, decay, zero, kind)
                gradient_sum = rules.add_square(gradient_sum, g[k])
                update_sum = rules.add_square(update_sum, u)
    gradient_sum, update_sum = add_lanes(gradient_sum), add_lanes(update_sum)
    if this_lane() == 0:
        sums_of(args, chunk)[columns.GRADIENT_SQUARES] = gradient_sum
        sums_of(args, chunk)[columns.UPDATE_SQUARES] = update_sum


def lamb_ratio(args: Any, hyper: Any) -> None:
    """Finish norms, trust ratio and step length, a layer to a block."""
    layer = this_block()
    if not takes_part(args, layer):
        return
    weight_sum, update_sum, gradient_sum = add_all_sums(args, layer, columns.GRADIENT_SQUARES)
    if this_lane() == 0:
        weight_norm, update_norm = math.sqrt(weight_sum), math.sqrt(update_sum)
        guarded = hyper64_of(args, layer, columns.NORM_OF) == rules.EPS_IN_ROOT_GUARDED
        ratio = 1.0
        if hyper[layer * columns.HYPER + columns.ADAPT] != 0 and not (guarded and gradient_sum == 0):
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
    close_step(args)
    layer, start, last = chunk_of(args, args[fields.CHUNK_COUNT] - 1 - this_block(), was_stopped(args))
    if start == last:
        return
    weights = array_of(args, hyper, layer, columns.WEIGHTS)
    exp_avg = array_of(args, hyper, layer, columns.EXP_AVG)
    exp_avg_sq = array_of(args, hyper, layer, columns.EXP_AVG_SQ)
    row = layer * columns.HYPER
    correction1, correction2 = hyper[row + columns.CORRECTION1], hyper[row + columns.CORRECTION2]
    eps, decay = hyper[row + columns.EPS], hyper[row + columns.DECAY]
    scale = values(args, fields.SCALES, hyper)[layer * columns.SCALES + columns.DESCEND]
    key = key_of(args, layer, start, storage.WEIGHTS)
    begin = begin_of(start)
    w, m, v = own_rows(hyper), own_rows(hyper), own_rows(hyper)
    for first in range(start + this_lane(), last, STRIDE):
        load(w, weights, first, last)
        load(m, exp_avg, first, last)
        load(v, exp_avg_sq, first, last)
        decode(w, weights)
        decode(m, exp_avg)
        decode(v, exp_avg_sq)
        for k in range(ROWS):
            i = first + k * LANES
            if i < last:
                u = rules.lamb_direction(w[k], m[k], v[k], correction1, correction2, eps, decay)
                store(weights, i, rules.descend(w[k], u, scale), key, i - begin)


# -- LARS and Momentum, which is LARS with ratio 1 -----------------------------------------------------------


def lars_sums(args: Any, hyper: Any) -> None:
    """Add up w^2 and the unscaled g^2 of each chunk of layers that adapt: 8 bytes per float32 parameter."""
    chunk = this_block()
    layer, start, last = chunk_of(args, chunk, is_stopped(args))
    row = layer * columns.HYPER
    if start == last or hyper[row + columns.ADAPT] == 0:
        return
    weights, gradients = (
        array_of(args, hyper, layer, columns.WEIGHTS),
        array_of(args, hyper, layer, columns.GRADIENT),
    )
    rescale = hyper[row + columns.RESCALE]
    # The norm below the ratio may be that of the gradient with its decay.
    decayed, decay = hyper64_of(args, layer, columns.DECAYED_NORM) != 0, hyper[row + columns.DECAY]
    w, g = own_rows(hyper), own_rows(hyper)
    weight_sum = gradient_sum = 0.0
    for first in range(start + this_lane(), last, STRIDE):
        load_fenced(w, weights, 1, first, last)
        load_fenced(g, gradients, 1, first, last)
        decode(w, weights)
        decode(g, gradients)
        for k in range(ROWS):
            if first + k * LANES < last:
                d = rescale * g[k]
                if decayed:
                    d = rules.decayed_gradient(g[k], w[k], rescale, decay)
                weight_sum = rules.add_square(weight_sum, w[k])
                gradient_sum = rules.add_square(gradient_sum, d)
    weight_sum, gradient_sum = add_lanes(weight_sum), add_lanes(gradient_sum)
    if this_lane() == 0:
        sums_of(args, chunk)[columns.WEIGHT_SQUARES] = weight_sum
        sums_of(args, chunk)[columns.UPDATE_SQUARES] = gradient_sum


@cuda_function
def lars_ratio_of(args: Any, hyper: Any, layer: Any, weight_norm: Any, gradient_norm: Any) -> Any:
    """Return the ratio of a layer that adapts."""
    # A norm that has the decay in it stands alone below the ratio.
    decay = 0.0
    if hyper64_of(args, layer, columns.DECAYED_NORM) == 0:
        decay = np.float64(hyper[layer * columns.HYPER + columns.DECAY])
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
        ratio = rules.clipped_ratio(ratio, doubles(args, fields.RATES)[layer], phi, guard)
    return ratio


def lars_ratio(args: Any, hyper: Any) -> None:
    """Finish norms and ratio, what enters the momentum and what is taken from the weights, a layer to a block."""
    layer = this_block()
    if not takes_part(args, layer):
        return
    # Where a layer does not adapt there are no sums, and what is read here is not used.
    weight_sum, gradient_sum, _ = add_all_sums(args, layer, columns.GRADIENT_SQUARES)
    if this_lane() == 0:
        norms, ratio = doubles(args, fields.NORMS), 1.0
        if hyper[layer * columns.HYPER + columns.ADAPT] != 0:
            weight_norm, gradient_norm = math.sqrt(weight_sum), math.sqrt(gradient_sum)
            ratio = lars_ratio_of(args, hyper, layer, weight_norm, gradient_norm)
            norms[layer * columns.NORMS + columns.WEIGHT_NORM] = weight_norm
            norms[layer * columns.NORMS + columns.UPDATE_NORM] = gradient_norm
        norms[layer * columns.NORMS + columns.RATIO] = ratio
        inside = hyper64_of(args, layer, columns.RATE_INSIDE) != 0
        outside = hyper64_of(args, layer, columns.RATIO_OUTSIDE) != 0
        rate, scales = doubles(args, fields.RATES)[layer], values(args, fields.SCALES, hyper)
        own = layer * columns.SCALES
        scales[own + columns.ADVANCE] = rules.lars_advance(rate, ratio, inside, outside)
        scales[own + columns.DESCEND] = rules.lars_descend(rate, ratio, inside, outside)
        count_step(args, hyper, layer)


def lars_update(args: Any, hyper: Any) -> None:
    """Advance the momentum and update w: 20 bytes per float32 parameter; also closes the step."""
    close_step(args)
    layer, start, last = chunk_of(args, args[fields.CHUNK_COUNT] - 1 - this_block(), was_stopped(args))
    if start == last:
        return
    weights, gradients = (
        array_of(args, hyper, layer, columns.WEIGHTS),
        array_of(args, hyper, layer, columns.GRADIENT),
    )
    exp_avg = array_of(args, hyper, layer, columns.EXP_AVG)
    row = layer * columns.HYPER
    rescale, decay, momentum = (
        hyper[row + columns.RESCALE],
        hyper[row + columns.DECAY],
        hyper[row + columns.BETA1],
    )
    velocity, lookahead = hyper[row + columns.VELOCITY], hyper[row + columns.LOOKAHEAD]
    advance = values(args, fields.SCALES, hyper)[layer * columns.SCALES + columns.ADVANCE]
    descend = values(args, fields.SCALES, hyper)[layer * columns.SCALES + columns.DESCEND]
    rows = rows_from(args, hyper, layer, start)
    key = key_of(args, layer, start, storage.MOMENTS)
    begin = begin_of(start)
    weights_key = key_of(args, layer, start, storage.WEIGHTS)
    w, g, v = own_rows(hyper), own_rows(hyper), own_rows(hyper)
    for first in range(start + this_lane(), until(start, last), STRIDE):
        load(w, weights, first, last)
        load(g, gradients, first, last)
        load(v, exp_avg, first, last)
        decode(w, weights)
        decode(g, gradients)
        decode(v, exp_avg)
        for k in range(ROWS):
            i = first + k * LANES
            if i < last:
                d = lars_gradient(g[k], w[k], rescale, decay, rows, i - start)
                v[k] = rules.momentum_advance(v[k], d, momentum, advance)
                if not STORED:
                    u = rules.momentum_direction(v[k], d, advance, velocity, lookahead)
                    store(exp_avg, i, v[k], key, i - begin)
                    store(weights, i, rules.descend(w[k], u, descend), weights_key, i - begin)
        if STORED:
            store_rows(v, exp_avg, first, last, begin, key, False)
            for k in range(ROWS):
                i = first + k * LANES
                if i < last:
                    d = lars_gradient(g[k], w[k], rescale, decay, rows, i - start)
                    u = rules.momentum_direction(v[k], d, advance, velocity, lookahead)
                    store(weights, i, rules.descend(w[k], u, descend), weights_key, i - begin)
