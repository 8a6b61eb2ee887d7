"""The CUDA kernels that frame a step: its scalars, whether its gradients are finite, how it is counted."""

import math
from typing import Any

import numpy as np

from numba_lamb._compile import cuda_function
from numba_lamb.kernels import book as at
from numba_lamb.kernels import rows
from numba_lamb.kernels.cuda_intrinsics import cast_like, load_rows, multiply, pointer_to, zero_like
from numba_lamb.kernels.cuda_warp import (
    QUAD,
    WARP,
    add_column,
    add_lanes,
    add_quads,
    add_squares,
    address_of,
    decayed_gradients,
    doubles,
    is_stopped,
    longs,
    may_vectorize,
    rules,
    scaled,
    setting,
    store,
    this_lane,
    this_warp,
    unusable_values,
    values,
    widened,
)
from numba_lamb.layout import CHUNK, LANES

# -- what the last kernels share -----------------------------------------------------------------------------


@cuda_function
def settle(book: Any, layer: Any) -> None:
    """Latch the skip verdict for the last kernel, which clears the flags it is made of."""
    if layer == 0 and this_lane() == 0:
        longs(book, at.CONTROL)[at.STOPPED] = is_stopped(book)


@cuda_function
def count_step(book: Any, layer: Any) -> None:
    """Count a step of a layer that had a gradient."""
    owned = book[at.OWNED_STEPS]
    if owned != 0:
        pointer_to(owned, np.float32(0))[layer] += np.float32(1)
    else:
        longs(book, at.STEPS)[layer] += 1
    longs(book, at.UPDATED)[layer] = 1


@cuda_function
def close_step(book: Any) -> None:
    """Count the step and lower its flags, which no kernel of this step reads any more."""
    if book[at.LAST_PART] != 0:
        control = longs(book, at.CONTROL)
        clip = doubles(book, at.CLIP)
        if control[at.STOPPED] == 0:
            control[at.APPLIED] += 1
            clip[at.CLIP_NORM] = clip[at.STEP_NORM]
            clip[at.CLIPPED] = book[at.CLIPS]
        elif control[at.REFUSAL] != 0:
            control[at.REFUSED] += 1
            control[at.REASONS] |= control[at.REFUSAL]
        else:
            control[at.SKIPPED] += 1
        control[at.FOUND] = 0
        control[at.REFUSAL] = 0
        clip[at.CLIP_SUM] = 0.0


# -- the step's first kernel: scalars, finite check, squares for the clip -------------------------------------


@cuda_function
def group_value(book: Any, layer: Any, quantity: Any) -> Any:
    """Return a layer's learning rate or weight decay at this step."""
    entry = (longs(book, at.GROUP_OF)[layer] * at.QUANTITIES + quantity) * at.SOURCE_FIELDS
    source = longs(book, at.GROUPS)[entry + at.SOURCE]
    payload = longs(book, at.GROUPS)[entry + at.PAYLOAD]
    control = longs(book, at.CONTROL)
    value = doubles(book, at.GROUPS)[entry + at.PAYLOAD]
    if source == at.DEVICE_FLOAT32:
        value = np.float64(pointer_to(payload, np.float32(0))[0])
    elif source == at.DEVICE_FLOAT64:
        value = pointer_to(payload, 0.0)[0]
    elif source == at.TABLE:
        step = control[at.APPLIED]
        if step >= book[at.TABLE_STEPS] and book[at.TABLE_REPEATS] == 0:
            control[at.REFUSAL] = at.ENDED
            value = 0.0
        else:
            position = (step % book[at.TABLE_STEPS]) * book[at.GROUP_COUNT] + longs(book, at.GROUP_OF)[layer]
            value = doubles(book, at.RATE_TABLE)[position * at.QUANTITIES + quantity]
    if rules.ROUNDED_ZERO <= value < 0.0:
        value = 0.0
    if not 0.0 <= value <= doubles(book, at.CONSTANTS)[at.LARGEST]:
        control[at.REFUSAL] = at.BAD_RATE
    return value


@cuda_function
def next_step(book: Any, layer: Any) -> Any:
    """Return the number, from 1 on, of a layer's step that is being taken."""
    owned = book[at.OWNED_STEPS]
    taken = longs(book, at.STEPS)[layer]
    if owned != 0:
        taken = np.int64(pointer_to(owned, np.float32(0))[layer])
    return taken + 1


@cuda_function
def open_layer(book: Any, scalars: Any, layer: Any) -> None:
    """Write one layer's rate, decay and bias corrections for this step."""
    row = layer * rows.SCALARS
    rate = group_value(book, layer, at.LEARNING_RATE)
    decay = group_value(book, layer, at.WEIGHT_DECAY) * setting(book, layer, rows.DECAYED)
    outside = setting(book, layer, rows.OUTSIDE) != 0
    scalars[row + rows.SHRINK] = 1.0 - multiply(rate, decay) if outside else 1.0
    scalars[row + rows.DECAY] = 0.0 if outside else decay
    if book[at.TWO_MOMENTS] != 0:
        step = next_step(book, layer)
        beta1, beta2 = setting(book, layer, rows.FIRST_DECAY), setting(book, layer, rows.SECOND_DECAY)
        corrected = setting(book, layer, rows.CORRECTED) != 0
        scalars[row + rows.CORRECTION1] = rules.bias_correction(beta1, step) if corrected else 1.0
        scalars[row + rows.CORRECTION2] = rules.bias_correction(beta2, step) if corrected else 1.0
        rate *= rules.rate_factor(setting(book, layer, rows.RATE_CORRECTION), beta1, beta2, step)
    doubles(book, at.RATES)[layer] = rate


@cuda_function
def open_part(book: Any) -> None:
    """Stop a step whose tables were replaced, or that a loss scaler says must be left out."""
    control = longs(book, at.CONTROL)
    if book[at.MAKING] != control[at.CURRENT]:
        control[at.REFUSAL] = at.STALE
    found = book[at.FOUND_INF]
    if found != 0 and pointer_to(found, np.float32(0))[0] != 0:
        control[at.FOUND] = 1


@cuda_function
def loss_scale_of(book: Any) -> Any:
    """Return what gradients were multiplied by."""
    loss_scale = doubles(book, at.CONSTANTS)[at.LOSS_SCALE]
    given = book[at.GRAD_SCALE]
    if given != 0:
        loss_scale *= np.float64(pointer_to(given, np.float32(0))[0])
    return loss_scale


@cuda_function
def check_gradient(book: Any, scalars: Any, chunk: Any) -> None:
    """Count the values of one chunk that cannot be used, and add up their squares, where its layer asks for it."""
    layer, start = longs(book, at.CHUNKS)[2 * chunk], longs(book, at.CHUNKS)[2 * chunk + 1]
    zero = zero_like(scalars)
    gradient = address_of(book, layer, rows.GRADIENT)
    last = min(longs(book, at.SIZES)[layer], start + CHUNK)
    checked, clipped = setting(book, layer, rows.CHECKED) != 0, setting(book, layer, rows.LIMIT) > 0
    last = last if gradient != 0 and (checked or clipped) else start
    g = pointer_to(gradient, zero)
    most, limit = setting(book, layer, rows.BOUND), setting(book, layer, rows.LIMIT)
    largest = doubles(book, at.CONSTANTS)[at.LARGEST]
    bound = cast_like(scalars, rules.raw_bound(most, limit, loss_scale_of(book), largest))
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
        doubles(book, at.SUMS)[2 * chunk] = squares
        pointer_to(book[at.NONFINITE], np.int32(0))[chunk] = np.int32(found) if checked else np.int32(0)
        if found != 0 and checked:
            longs(book, at.CONTROL)[at.FOUND] = 1


def open_step(book: Any, scalars: Any) -> None:
    """Evaluate what layers' scalars depend on, 32 layers to a warp, and check gradients, a chunk to a warp."""
    warp = this_warp()
    layer_warps = (book[at.LAYERS] + WARP - 1) // WARP
    if warp >= layer_warps:
        if warp - layer_warps < book[at.CHUNK_COUNT]:
            check_gradient(book, scalars, warp - layer_warps)
    elif warp * WARP + this_lane() < book[at.LAYERS]:
        if warp * WARP + this_lane() == 0:
            open_part(book)
        open_layer(book, scalars, warp * WARP + this_lane())


# -- what gradients are multiplied by: clipping by the global norm, loss scaling -------------------------------


def gradient_squares(book: Any, scalars: Any) -> None:
    """Add up each layer's squares, a layer to a warp."""
    layer = this_warp()
    if layer < book[at.LAYERS]:
        first_chunk = longs(book, at.FIRST_CHUNK)
        squares = add_column(doubles(book, at.SUMS), 2, 0, first_chunk[layer], first_chunk[layer + 1])
        if this_lane() == 0:
            doubles(book, at.SQUARES)[layer] = squares


def clip_gradients(book: Any, scalars: Any) -> None:
    """Add a part's squares to those of the parts before it, in one warp."""
    if this_warp() == 0:
        squares = add_column(doubles(book, at.SQUARES), 1, 0, 0, book[at.LAYERS])
        if this_lane() == 0:
            doubles(book, at.CLIP)[at.CLIP_SUM] += squares


def scale_gradients(book: Any, scalars: Any) -> None:
    """Write what gradients are multiplied by, a layer to a thread."""
    layer = this_warp() * WARP + this_lane()
    if layer < book[at.LAYERS]:
        loss_scale = loss_scale_of(book)
        clip = doubles(book, at.CLIP)
        norm = rules.gradient_norm(clip[at.CLIP_SUM], loss_scale)
        if layer == 0:
            clip[at.STEP_NORM] = norm
            if book[at.WATCHES] != 0 and not math.isfinite(norm):
                longs(book, at.CONTROL)[at.FOUND] = 1
        limit = setting(book, layer, rows.LIMIT)
        factor = rules.clip_factor(norm, limit) if limit > 0 else 1.0
        sign = setting(book, layer, rows.SIGN)
        scalars[layer * rows.SCALARS + rows.RESCALE] = sign * (factor / loss_scale)


# -- before the update: decay outside the direction, centralization ------------------------------------------


def decay_weights(book: Any, scalars: Any) -> None:
    """Take ``w <- (1 - lr*decay)*w``, a chunk to a warp: 8 bytes per float32 parameter of a layer decayed so."""
    chunk = this_warp()
    if chunk >= book[at.CHUNK_COUNT] or is_stopped(book):
        return
    layer, start = longs(book, at.CHUNKS)[2 * chunk], longs(book, at.CHUNKS)[2 * chunk + 1]
    shrink = scalars[layer * rows.SCALARS + rows.SHRINK]
    if address_of(book, layer, rows.GRADIENT) == 0 or shrink == 1:
        return
    weights = address_of(book, layer, rows.WEIGHTS)
    last = min(longs(book, at.SIZES)[layer], start + CHUNK)
    w = pointer_to(weights, zero_like(scalars))
    for row in range(start, last, 4 * LANES):
        i = row + QUAD * this_lane()
        whole = may_vectorize(weights) and row + 4 * LANES <= last
        one, two, three, four = load_rows((w,), 4, i, LANES, last, whole)
        store(w, i, last, whole, scaled(one, shrink))
        store(w, i + LANES, last, whole, scaled(two, shrink))
        store(w, i + 2 * LANES, last, whole, scaled(three, shrink))
        store(w, i + 3 * LANES, last, whole, scaled(four, shrink))


def row_means(book: Any, scalars: Any) -> None:
    """Write the mean of each row of the layers that are centralized, a row to a warp."""
    row = this_warp()
    if row < book[at.ROW_COUNT] and not is_stopped(book):
        layer, number = longs(book, at.ROW_TABLE)[2 * row], longs(book, at.ROW_TABLE)[2 * row + 1]
        gradient = address_of(book, layer, rows.GRADIENT)
        if gradient != 0:
            zero = zero_like(scalars)
            scalar = layer * rows.SCALARS
            # LAMB centralizes the gradient itself, with no decay in it.
            decay = zero if book[at.TWO_MOMENTS] != 0 else scalars[scalar + rows.DECAY]
            length = longs(book, at.ROW_LENGTHS)[layer]
            g, w = pointer_to(gradient, zero), pointer_to(address_of(book, layer, rows.WEIGHTS), zero)
            last = (number + 1) * length
            p = q = r = s = 0.0
            for i in range(number * length + QUAD * this_lane(), last, LANES):
                g_i, w_i = load_rows((g, w), 1, i, LANES, last, False)
                d = decayed_gradients(g_i, w_i, scalars[scalar + rows.RESCALE], decay)
                p, q, r, s = add_quads((p, q, r, s), widened(d))
            total = add_lanes((p, q, r, s))
            if this_lane() == 0:
                values(book, at.MEANS, scalars)[row] = total / np.float64(length)
