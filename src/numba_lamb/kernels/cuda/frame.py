"""The CUDA kernels that frame a step: its hyper, whether its gradients are finite, how it is counted."""

import math
from typing import Any

import numpy as np

from numba_lamb._compile import cuda_function
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.block import (
    ROWS,
    STRIDE,
    add_column,
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
    load,
    load_fenced,
    longs,
    make_keys,
    own_rows,
    rules,
    store,
    sums_of,
    this_block,
    this_lane,
    values,
)
from numba_lamb.kernels.cuda.intrinsics import cast_like, pointer_to, zero_like
from numba_lamb.layout import LANES
from numba_lamb.numerics import storage

# -- what the last kernels share -----------------------------------------------------------------------------


@cuda_function
def takes_part(args: Any, layer: Any) -> Any:
    """Return whether a layer is updated; latch the verdict for the last kernel, which clears the flags."""
    stopped = is_stopped(args)
    if layer == 0 and this_lane() == 0:
        longs(args, fields.CONTROL)[fields.STOPPED] = stopped
    return layer < args[fields.LAYERS] and not stopped and address_of(args, layer, columns.GRADIENT) != 0


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
def follow_step(args: Any, applied: Any) -> None:
    """Have a loss scale follow a step that was applied or left out."""
    scaler = doubles(args, fields.SCALER)
    value = pointer_to(args[fields.GRAD_SCALE], np.float32(0))
    scale = np.float64(value[0])
    steps = scaler[fields.SCALE_STEPS] + 1.0
    if not applied:
        steps = 0.0
        scale = rules.reduced_scale(scale, scaler[fields.SCALE_BACKOFF], scaler[fields.SCALE_LEAST])
    elif steps == scaler[fields.SCALE_INTERVAL]:
        steps = 0.0
        scale = rules.grown_scale(scale, scaler[fields.SCALE_GROWTH], scaler[fields.SCALE_MOST])
    scaler[fields.SCALE_STEPS] = steps
    value[0] = np.float32(scale)


@cuda_function
def close_step(args: Any) -> None:
    """Have one thread count the step and lower its flags, which no kernel of this step reads any more."""
    if args[fields.LAST_BUCKET] != 0 and this_block() == 0 and this_lane() == 0:
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
        if args[fields.SCALER] != 0 and (control[fields.STOPPED] == 0 or control[fields.REFUSAL] == 0):
            follow_step(args, control[fields.STOPPED] == 0)
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
    make_keys(args, layer, next_step(args, layer))


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
    layer, start, last = chunk_of(args, chunk, False)
    checked = hyper64_of(args, layer, columns.CHECKED) != 0
    most, limit = hyper64_of(args, layer, columns.BOUND), hyper64_of(args, layer, columns.MAX_GRAD_NORM)
    clipped = limit > 0
    largest = doubles(args, fields.CONSTANTS)[fields.LARGEST]
    bound = cast_like(hyper, rules.raw_bound(most, limit, loss_scale_of(args), largest))
    gradients, g = array_of(args, hyper, layer, columns.GRADIENT), own_rows(hyper)
    bad, squares = 0, 0.0
    for first in range(start + this_lane(), last if checked or clipped else start, STRIDE):
        load_fenced(g, gradients, 1, first, last)
        decode(g, gradients)
        for k in range(ROWS):
            if first + k * LANES < last:
                bad += not rules.is_usable(g[k], bound)
                if clipped:
                    squares = rules.add_square(squares, g[k])
    squares, found = add_lanes(squares), add_lanes(np.float64(bad))
    if this_lane() == 0:
        sums_of(args, chunk)[columns.GRADIENT_SQUARES] = squares
        pointer_to(args[fields.NONFINITE], np.int32(0))[chunk] = np.int32(found) if checked else np.int32(0)
        if found != 0 and checked:
            longs(args, fields.CONTROL)[fields.FOUND] = 1


def open_step(args: Any, hyper: Any) -> None:
    """Evaluate what layers' hyper depend on, a layer to a thread, and check gradients, a chunk to a block."""
    chunk = this_block() - (args[fields.LAYERS] + LANES - 1) // LANES
    layer = this_block() * LANES + this_lane()
    if chunk >= 0:
        if chunk < args[fields.CHUNK_COUNT]:
            check_gradient(args, hyper, chunk)
    elif layer < args[fields.LAYERS]:
        if layer == 0:
            open_part(args)
        open_layer(args, hyper, layer)


# -- what gradients are multiplied by: clipping by the global norm, loss scaling -------------------------------


def gradient_squares(args: Any, hyper: Any) -> None:
    """Add up each layer's squares, a layer to a block."""
    layer = this_block()
    if layer < args[fields.LAYERS]:
        squares = add_sums(args, layer, columns.GRADIENT_SQUARES)
        if this_lane() == 0:
            doubles(args, fields.SQUARES)[layer] = squares


def clip_gradients(args: Any, hyper: Any) -> None:
    """Add a bucket's squares to those of the buckets before it, in one block."""
    squares = add_column(doubles(args, fields.SQUARES), 1, 0, args[fields.LAYERS])
    if this_lane() == 0:
        doubles(args, fields.GRAD_CLIP)[fields.CLIP_SUM] += squares


def scale_gradients(args: Any, hyper: Any) -> None:
    """Write what gradients are multiplied by, a layer to a thread."""
    layer = this_block() * LANES + this_lane()
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
    """Take ``w <- (1 - lr*decay)*w``, a chunk to a block: 8 bytes per float32 parameter of a layer decayed so."""
    layer, start, last = chunk_of(args, this_block(), is_stopped(args))
    shrink = hyper[layer * columns.HYPER + columns.SHRINK]
    if start == last or shrink == 1:
        return
    weights, w = array_of(args, hyper, layer, columns.WEIGHTS), own_rows(hyper)
    key = key_of(args, layer, start, storage.SHRUNK)
    begin = begin_of(start)
    for first in range(start + this_lane(), last, STRIDE):
        load(w, weights, first, last)
        decode(w, weights)
        for k in range(ROWS):
            i = first + k * LANES
            if i < last:
                store(weights, i, shrink * w[k], key, i - begin)


def row_means(args: Any, hyper: Any) -> None:
    """Write the mean of each row of the layers that are centralized, a row to a block."""
    row = this_block()
    if row >= args[fields.ROW_COUNT] or is_stopped(args):
        return
    layer, number = longs(args, fields.ROW_TABLE)[2 * row], longs(args, fields.ROW_TABLE)[2 * row + 1]
    if address_of(args, layer, columns.GRADIENT) == 0:
        return
    weights, gradients = (
        array_of(args, hyper, layer, columns.WEIGHTS),
        array_of(args, hyper, layer, columns.GRADIENT),
    )
    rescale = hyper[layer * columns.HYPER + columns.RESCALE]
    decay = zero_like(hyper)
    if args[fields.CENTRALIZES_DECAY] != 0:
        decay = hyper[layer * columns.HYPER + columns.DECAY]
    length = longs(args, fields.ROW_LENGTHS)[layer]
    last = (number + 1) * length
    w, g = own_rows(hyper), own_rows(hyper)
    total = 0.0
    for first in range(number * length + this_lane(), last, STRIDE):
        load_fenced(w, weights, 1, first, last)
        load_fenced(g, gradients, 1, first, last)
        decode(w, weights)
        decode(g, gradients)
        for k in range(ROWS):
            if first + k * LANES < last:
                total += np.float64(rules.decayed_gradient(g[k], w[k], rescale, decay))
    total = add_lanes(total)
    if this_lane() == 0:
        values(args, fields.MEANS, hyper)[row] = rules.row_mean(total, length)
