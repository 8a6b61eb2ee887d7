"""LANS on a GPU: its kernels.

``lans_squares`` and ``lans_normalize`` finish each layer's gradient norm before the moments; ``lans_advance``,
``lans_ratio`` and ``lans_descend`` are LAMB's with two directions.
"""

import math
from typing import Any

from numba_lamb._compile import cuda_function
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.block import (
    ROWS,
    STORED,
    STRIDE,
    add_all_sums,
    add_lanes,
    add_sums,
    address_of,
    array_of,
    begin_of,
    chunk_of,
    decode,
    doubles,
    hyper64_of,
    is_stopped,
    key_of,
    lamb_gradient,
    load,
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
from numba_lamb.kernels.cuda.frame import close_step, count_step, takes_part
from numba_lamb.kernels.cuda.intrinsics import cast_like
from numba_lamb.layout import LANES
from numba_lamb.numerics import storage


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
    chunk = this_block()
    layer, start, last = chunk_of(args, chunk, is_stopped(args))
    if start == last:
        return
    gradients = array_of(args, hyper, layer, columns.GRADIENT)
    rescale = hyper[layer * columns.HYPER + columns.RESCALE]
    rows = rows_from(args, hyper, layer, start)
    g, squares = own_rows(hyper), 0.0
    for first in range(start + this_lane(), last, STRIDE):
        load(g, gradients, first, last)
        decode(g, gradients)
        for k in range(ROWS):
            i = first + k * LANES
            if i < last:
                # Any values do for the weights, which enter times 0.
                d = lamb_gradient(g[k], g[k], rescale, rows, i - start)
                squares = rules.add_square(squares, d)
    squares = add_lanes(squares)
    if this_lane() == 0:
        sums_of(args, chunk)[columns.GRADIENT_SQUARES] = squares


def lans_normalize(args: Any, hyper: Any) -> None:
    """Finish the gradient's norm, and what the gradient is divided by, a layer to a block."""
    layer = this_block()
    if layer >= args[fields.LAYERS] or is_stopped(args) or address_of(args, layer, columns.GRADIENT) == 0:
        return
    squares = add_sums(args, layer, columns.GRADIENT_SQUARES)
    if this_lane() == 0:
        norm = math.sqrt(squares)
        doubles(args, fields.NORMS)[layer * columns.NORMS + columns.GRADIENT_NORM] = norm
        scales = values(args, fields.SCALES, hyper)
        scales[layer * columns.SCALES + columns.DIVISOR] = rules.lans_divisor(norm)


def lans_advance(args: Any, hyper: Any) -> None:
    """Advance m and v, and add up w^2, u^2 and c^2 of each chunk: 24 bytes per float32 parameter."""
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
    one = cast_like(hyper, 1.0)
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
    rows = rows_from(args, hyper, layer, start)
    w, g, m, v = own_rows(hyper), own_rows(hyper), own_rows(hyper), own_rows(hyper)
    key = key_of(args, layer, start, storage.MOMENTS)
    begin = begin_of(start)
    weight_sum = update_sum = gradient_sum = 0.0
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
                d = rules.normalized(lamb_gradient(g[k], w[k], rescale, rows, i - start), divisor)
                m[k] = rules.first_moment(m[k], d, beta1, complement1)
                v[k] = rules.second_moment(v[k], d, beta2, complement2)
                if STORED:
                    g[k] = d
                else:
                    u = rules.lamb_direction(w[k], m[k], v[k], correction1, correction2, eps, decay)
                    c = rules.lamb_direction(w[k], d, v[k], one, correction2, eps, decay)
                    store(exp_avg, i, m[k], key, i - begin)
                    store(exp_avg_sq, i, v[k], key, i - begin)
                    weight_sum = rules.add_square(weight_sum, w[k])
                    update_sum = rules.add_square(update_sum, u)
                    gradient_sum = rules.add_square(gradient_sum, c)
        if STORED:
            store_rows(m, exp_avg, first, last, begin, key, False)
            store_rows(v, exp_avg_sq, first, last, begin, key, True)
            for k in range(ROWS):
                if first + k * LANES < last:
                    u = rules.lamb_direction(w[k], m[k], v[k], correction1, correction2, eps, decay)
                    c = rules.lamb_direction(w[k], g[k], v[k], one, correction2, eps, decay)
                    weight_sum = rules.add_square(weight_sum, w[k])
                    update_sum = rules.add_square(update_sum, u)
                    gradient_sum = rules.add_square(gradient_sum, c)
    weight_sum, update_sum, gradient_sum = (
        add_lanes(weight_sum),
        add_lanes(update_sum),
        add_lanes(gradient_sum),
    )
    if this_lane() == 0:
        sums_of(args, chunk)[columns.WEIGHT_SQUARES] = weight_sum
        sums_of(args, chunk)[columns.UPDATE_SQUARES] = update_sum
        sums_of(args, chunk)[columns.GRADIENT_UPDATE_SQUARES] = gradient_sum


def lans_ratio(args: Any, hyper: Any) -> None:
    """Finish norms, both trust ratios and both step lengths, a layer to a block."""
    layer = this_block()
    if not takes_part(args, layer):
        return
    weight_sum, update_sum, gradient_sum = add_all_sums(args, layer, columns.GRADIENT_UPDATE_SQUARES)
    if this_lane() == 0:
        weight_norm, update_norm = math.sqrt(weight_sum), math.sqrt(update_sum)
        gradient_update_norm = math.sqrt(gradient_sum)
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
    close_step(args)
    layer, start, last = chunk_of(args, args[fields.CHUNK_COUNT] - 1 - this_block(), was_stopped(args))
    if start == last:
        return
    weights, gradients = (
        array_of(args, hyper, layer, columns.WEIGHTS),
        array_of(args, hyper, layer, columns.GRADIENT),
    )
    exp_avg = array_of(args, hyper, layer, columns.EXP_AVG)
    exp_avg_sq = array_of(args, hyper, layer, columns.EXP_AVG_SQ)
    one = cast_like(hyper, 1.0)
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
    key = key_of(args, layer, start, storage.WEIGHTS)
    begin = begin_of(start)
    rows = rows_from(args, hyper, layer, start)
    w, g, m, v = own_rows(hyper), own_rows(hyper), own_rows(hyper), own_rows(hyper)
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
            i = first + k * LANES
            if i < last:
                d = rules.normalized(lamb_gradient(g[k], w[k], rescale, rows, i - start), divisor)
                u = rules.lamb_direction(w[k], m[k], v[k], correction1, correction2, eps, decay)
                c = rules.lamb_direction(w[k], d, v[k], one, correction2, eps, decay)
                new_w = rules.descend(rules.descend(w[k], u, scale), c, gradient_scale)
                store(weights, i, new_w, key, i - begin)


LANS_KERNELS = (lans_squares, lans_normalize, lans_advance, lans_ratio, lans_descend)
"""In the order of a step."""
