"""The CUDA kernels that frame a step: its hyper, whether its gradients are finite, how it is counted."""

import math
from typing import Any

import numpy as np

from numba_lamb._compile import cuda_function
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.intrinsics import cast_like, load_rows, pointer_to, zero_like
from numba_lamb.kernels.cuda.warp import (
    QUAD,
    WARP,
    add_column,
    add_lanes,
    add_quads,
    add_squares,
    add_sums,
    address_of,
    decayed_gradients,
    doubles,
    hyper64_of,
    is_stopped,
    longs,
    may_vectorize,
    rules,
    scaled,
    store,
    sums_of,
    this_lane,
    this_warp,
    unusable_values,
    values,
    widened,
)
from numba_lamb.layout import CHUNK, LANES

# -- what the last kernels share -----------------------------------------------------------------------------


@cuda_function
def latch_verdict(args: Any, layer: Any) -> None:
    """Latch the skip verdict for the last kernel, which clears the flags it is made of."""
    if layer == 0 and this_lane() == 0:
        longs(args, fields.CONTROL)[fields.STOPPED] = is_stopped(args)


@cuda_function
def count_step(args: Any, hyper: Any, layer: Any) -> None:
    """Count a step of a layer that had a gradient; mark it."""
    owned = args[fields.OWNED_STEPS]
    if owned != 0:
        pointer_to(owned, np.float32(0))[layer] += np.float32(1)
    else:
        longs(args, fields.STEPS)[layer] += 1
    adapted = hyper[layer * columns.HYPER + columns.ADAPT] != 0
    longs(args, fields.UPDATED)[layer] = columns.ADAPTED if adapted else columns.UNADAPTED


@cuda_function
def close_step(args: Any) -> None:
    """Count the step and lower its flags, which no kernel of this step reads any more."""
    if args[fields.LAST_BUCKET] != 0:
        control = longs(args, fields.CONTROL)
        clip = doubles(args, fields.GRAD_CLIP)
        if control[fields.STOPPED] == 0:
            control[fields.APPLIED] += 1
            clip[fields.CLIP_NORM] = clip[fields.STEP_NORM]
            clip[fields.CLIPPED] = args[fields.CLIPS]
        elif control[fields.REFUSAL] != 0:
            control[fields.REFUSED] += 1
            control[fields.REASONS] |= control[fields.REFUSAL]
        else:
            control[fields.SKIPPED] += 1
        control[fields.FOUND] = 0
        control[fields.REFUSAL] = 0
        clip[fields.CLIP_SUM] = 0.0


# -- the step's first kernel: hyper, finite check, squares for the clip -------------------------------------


@cuda_function
def refuse(args: Any, reason: Any) -> None:
    """Note one reason why this step cannot be taken, beside those that other threads note."""
    pointer_to(args[fields.CONTROL] + 8 * fields.REFUSAL + reason, np.int8(0))[0] = np.int8(1)


@cuda_function
def group_value(args: Any, layer: Any, quantity: Any) -> Any:
    """Return a layer's learning rate or weight decay at this step."""
    entry = (longs(args, fields.GROUP_OF)[layer] * fields.QUANTITIES + quantity) * fields.SOURCE_FIELDS
    source = longs(args, fields.GROUPS)[entry + fields.SOURCE]
    payload = longs(args, fields.GROUPS)[entry + fields.PAYLOAD]
    control = longs(args, fields.CONTROL)
    value = doubles(args, fields.GROUPS)[entry + fields.PAYLOAD]
    if source == fields.DEVICE_FLOAT32:
        value = np.float64(pointer_to(payload, np.float32(0))[0])
    elif source == fields.DEVICE_FLOAT64:
        value = pointer_to(payload, 0.0)[0]
    elif source == fields.TABLE:
        step = control[fields.APPLIED]
        if step >= args[fields.TABLE_STEPS] and args[fields.TABLE_REPEATS] == 0:
            refuse(args, fields.ENDED)
            value = 0.0
        else:
            position = (step % args[fields.TABLE_STEPS]) * args[fields.GROUP_COUNT] + longs(
                args, fields.GROUP_OF
            )[layer]
            value = doubles(args, fields.RATE_TABLE)[position * fields.QUANTITIES + quantity]
    if rules.ROUNDED_ZERO <= value < 0.0:
        value = 0.0
    if not 0.0 <= value <= doubles(args, fields.CONSTANTS)[fields.LARGEST]:
        refuse(args, fields.BAD_RATE)
    return value


@cuda_function
def next_step(args: Any, layer: Any) -> Any:
    """Return the number, from 1 on, of a layer's step that is being taken."""
    owned = args[fields.OWNED_STEPS]
    taken = longs(args, fields.STEPS)[layer]
    if owned != 0:
        taken = np.int64(pointer_to(owned, np.float32(0))[layer])
    return taken + 1


@cuda_function
def open_layer(args: Any, hyper: Any, layer: Any) -> None:
    """Write one layer's rate, decay and bias corrections for this step."""
    row = layer * columns.HYPER
    rate = group_value(args, layer, fields.LEARNING_RATE)
    decay = group_value(args, layer, fields.WEIGHT_DECAY) * hyper64_of(args, layer, columns.DECAYED)
    outside = hyper64_of(args, layer, columns.DECOUPLED) != 0
    hyper[row + columns.SHRINK] = rules.decay_factor(rate, decay) if outside else 1.0
    hyper[row + columns.DECAY] = 0.0 if outside else decay
    hyper[row + columns.ADAPT] = 1.0 if rules.adapts(hyper64_of(args, layer, columns.ADAPTS), decay) else 0.0
    if args[fields.CORRECTS] != 0:
        step = next_step(args, layer)
        beta1, beta2 = hyper64_of(args, layer, columns.BETA1_64), hyper64_of(args, layer, columns.BETA2_64)
        corrected = hyper64_of(args, layer, columns.BIAS_CORRECTION) != 0
        hyper[row + columns.CORRECTION1] = rules.bias_correction(beta1, step) if corrected else 1.0
        hyper[row + columns.CORRECTION2] = rules.bias_correction(beta2, step) if corrected else 1.0
        rate *= rules.rate_factor(hyper64_of(args, layer, columns.RATE_CORRECTION), beta1, beta2, step)
    doubles(args, fields.RATES)[layer] = rate


@cuda_function
def open_part(args: Any) -> None:
    """Stop a step whose tables were replaced, or that a loss scaler says must be left out."""
    control = longs(args, fields.CONTROL)
    if args[fields.GENERATION] != control[fields.CURRENT]:
        refuse(args, fields.STALE)
    found = args[fields.FOUND_INF]
    if found != 0 and pointer_to(found, np.float32(0))[0] != 0:
        control[fields.FOUND] = 1


@cuda_function
def loss_scale_of(args: Any) -> Any:
    """Return what gradients were multiplied by."""
    loss_scale = doubles(args, fields.CONSTANTS)[fields.LOSS_SCALE]
    given = args[fields.GRAD_SCALE]
    if given != 0:
        loss_scale *= np.float64(pointer_to(given, np.float32(0))[0])
    return loss_scale


@cuda_function
def check_gradient(args: Any, hyper: Any, chunk: Any) -> None:
    """Count the values of one chunk that cannot be used, and add up their squares, where its layer asks for it."""
    layer, start = longs(args, fields.CHUNKS)[2 * chunk], longs(args, fields.CHUNKS)[2 * chunk + 1]
    zero = zero_like(hyper)
    gradient = address_of(args, layer, columns.GRADIENT)
    last = min(longs(args, fields.SIZES)[layer], start + CHUNK)
    checked, clipped = (
        hyper64_of(args, layer, columns.CHECKED) != 0,
        hyper64_of(args, layer, columns.MAX_GRAD_NORM) > 0,
    )
    last = last if gradient != 0 and (checked or clipped) else start
    g = pointer_to(gradient, zero)
    most, limit = hyper64_of(args, layer, columns.BOUND), hyper64_of(args, layer, columns.MAX_GRAD_NORM)
    largest = doubles(args, fields.CONSTANTS)[fields.LARGEST]
    bound = cast_like(hyper, rules.raw_bound(most, limit, loss_scale_of(args), largest))
    bad = 0
    a = b = c = d = 0.0
    for row in range(start, last, 4 * LANES):
        i = row + QUAD * this_lane()
        whole = may_vectorize(gradient) and row + 4 * LANES <= last
        one, two, three, four = load_rows((g,), 4, i, LANES, last, whole)
        bad += unusable_values(one, bound) + unusable_values(two, bound)
        bad += unusable_values(three, bound) + unusable_values(four, bound)
        if clipped:
            a, b, c, d = add_squares(
                add_squares(add_squares(add_squares((a, b, c, d), one), two), three), four
            )
    squares = add_lanes((a, b, c, d))
    found = add_lanes((np.float64(bad), 0.0, 0.0, 0.0))
    if this_lane() == 0:
        sums_of(args, chunk)[columns.GRADIENT_SQUARES] = squares
        pointer_to(args[fields.NONFINITE], np.int32(0))[chunk] = np.int32(found) if checked else np.int32(0)
        if found != 0 and checked:
            longs(args, fields.CONTROL)[fields.FOUND] = 1


def open_step(args: Any, hyper: Any) -> None:
    """Evaluate what layers' hyper depend on, 32 layers to a warp, and check gradients, a chunk to a warp."""
    warp = this_warp()
    layer_warps = (args[fields.LAYERS] + WARP - 1) // WARP
    if warp >= layer_warps:
        if warp - layer_warps < args[fields.CHUNK_COUNT]:
            check_gradient(args, hyper, warp - layer_warps)
    elif warp * WARP + this_lane() < args[fields.LAYERS]:
        if warp * WARP + this_lane() == 0:
            open_part(args)
        open_layer(args, hyper, warp * WARP + this_lane())


# -- what gradients are multiplied by: clipping by the global norm, loss scaling -------------------------------


def gradient_squares(args: Any, hyper: Any) -> None:
    """Add up each layer's squares, a layer to a warp."""
    layer = this_warp()
    if layer < args[fields.LAYERS]:
        first_chunk = longs(args, fields.FIRST_CHUNK)
        squares = add_sums(args, columns.GRADIENT_SQUARES, first_chunk[layer], first_chunk[layer + 1])
        if this_lane() == 0:
            doubles(args, fields.SQUARES)[layer] = squares


def clip_gradients(args: Any, hyper: Any) -> None:
    """Add a bucket's squares to those of the buckets before it, in one warp."""
    if this_warp() == 0:
        squares = add_column(doubles(args, fields.SQUARES), 1, 0, 0, args[fields.LAYERS])
        if this_lane() == 0:
            doubles(args, fields.GRAD_CLIP)[fields.CLIP_SUM] += squares


def scale_gradients(args: Any, hyper: Any) -> None:
    """Write what gradients are multiplied by, a layer to a thread."""
    layer = this_warp() * WARP + this_lane()
    if layer < args[fields.LAYERS]:
        loss_scale = loss_scale_of(args)
        clip = doubles(args, fields.GRAD_CLIP)
        norm = rules.gradient_norm(clip[fields.CLIP_SUM], loss_scale)
        if layer == 0:
            clip[fields.STEP_NORM] = norm
            if args[fields.WATCHES] != 0 and not math.isfinite(norm):
                longs(args, fields.CONTROL)[fields.FOUND] = 1
        limit = hyper64_of(args, layer, columns.MAX_GRAD_NORM)
        factor = rules.clip_factor(norm, limit) if limit > 0 else 1.0
        sign = hyper64_of(args, layer, columns.SIGN)
        hyper[layer * columns.HYPER + columns.RESCALE] = rules.gradient_factor(sign, factor, loss_scale)


# -- before the update: decay outside the direction, centralization ------------------------------------------


def decay_weights(args: Any, hyper: Any) -> None:
    """Take ``w <- (1 - lr*decay)*w``, a chunk to a warp: 8 bytes per float32 parameter of a layer decayed so."""
    chunk = this_warp()
    if chunk >= args[fields.CHUNK_COUNT] or is_stopped(args):
        return
    layer, start = longs(args, fields.CHUNKS)[2 * chunk], longs(args, fields.CHUNKS)[2 * chunk + 1]
    shrink = hyper[layer * columns.HYPER + columns.SHRINK]
    if address_of(args, layer, columns.GRADIENT) == 0 or shrink == 1:
        return
    weights = address_of(args, layer, columns.WEIGHTS)
    last = min(longs(args, fields.SIZES)[layer], start + CHUNK)
    w = pointer_to(weights, zero_like(hyper))
    for row in range(start, last, 4 * LANES):
        i = row + QUAD * this_lane()
        whole = may_vectorize(weights) and row + 4 * LANES <= last
        one, two, three, four = load_rows((w,), 4, i, LANES, last, whole)
        store(w, i, last, whole, scaled(one, shrink))
        store(w, i + LANES, last, whole, scaled(two, shrink))
        store(w, i + 2 * LANES, last, whole, scaled(three, shrink))
        store(w, i + 3 * LANES, last, whole, scaled(four, shrink))


def row_means(args: Any, hyper: Any) -> None:
    """Write the mean of each row of the layers that are centralized, a row to a warp."""
    row = this_warp()
    if row < args[fields.ROW_COUNT] and not is_stopped(args):
        layer, number = longs(args, fields.ROW_TABLE)[2 * row], longs(args, fields.ROW_TABLE)[2 * row + 1]
        gradient = address_of(args, layer, columns.GRADIENT)
        if gradient != 0:
            zero = zero_like(hyper)
            scalar = layer * columns.HYPER
            # LAMB centralizes the gradient itself, with no decay in it.
            decay = zero if args[fields.CORRECTS] != 0 else hyper[scalar + columns.DECAY]
            length = longs(args, fields.ROW_LENGTHS)[layer]
            g, w = pointer_to(gradient, zero), pointer_to(address_of(args, layer, columns.WEIGHTS), zero)
            last = (number + 1) * length
            p = q = r = s = 0.0
            for i in range(number * length + QUAD * this_lane(), last, LANES):
                g_i, w_i = load_rows((g, w), 1, i, LANES, last, False)
                d = decayed_gradients(g_i, w_i, hyper[scalar + columns.RESCALE], decay)
                p, q, r, s = add_quads((p, q, r, s), widened(d))
            total = add_lanes((p, q, r, s))
            if this_lane() == 0:
                values(args, fields.MEANS, hyper)[row] = rules.row_mean(total, length)
