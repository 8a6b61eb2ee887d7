"""The CUDA kernels that frame a step: its scalars, whether its gradients are finite, how it is counted."""

import math
from typing import Any

import numpy as np

from numba_lamb._compile import cuda_function
from numba_lamb.kernels import book as at
from numba_lamb.kernels import rows
from numba_lamb.kernels.cuda_intrinsics import load_rows, pointer_to, zero_like
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
    nonfinite_values,
    rules,
    this_lane,
    this_warp,
    values,
    widened,
)
from numba_lamb.layout import CHUNK, LANES

# -- what the last kernels share -----------------------------------------------------------------------------


@cuda_function
def settle(book: Any, layer: Any) -> None:
    """Keep for the step's last kernel whether it must change nothing."""
    if layer == 0 and this_lane() == 0:
        longs(book, at.CONTROL)[at.STOPPED] = is_stopped(book)


@cuda_function
def count_step(book: Any, layer: Any) -> None:
    """Count a step of a layer that had a gradient."""
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
            clip[at.CLIP_NORM] = clip[at.CLIP_SUM]
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
    if not 0.0 <= value <= doubles(book, at.CONSTANTS)[at.LARGEST]:
        control[at.REFUSAL] = at.BAD_RATE
    return value


@cuda_function
def open_layer(book: Any, scalars: Any, layer: Any) -> None:
    """Write one layer's rate, decay and bias corrections for this step."""
    constants = doubles(book, at.CONSTANTS)
    row = layer * rows.SCALARS
    control = longs(book, at.CONTROL)
    if book[at.MAKING] != control[at.CURRENT]:
        control[at.REFUSAL] = at.STALE
    doubles(book, at.RATES)[layer] = group_value(book, layer, at.LEARNING_RATE)
    decay = group_value(book, layer, at.WEIGHT_DECAY)
    scalars[row + rows.DECAY] = decay * doubles(book, at.DECAYED)[layer]
    if constants[at.CORRECTED] != 0:
        step = longs(book, at.STEPS)[layer] + 1
        scalars[row + rows.CORRECTION1] = rules.bias_correction(constants[at.BETA1], step)
        scalars[row + rows.CORRECTION2] = rules.bias_correction(constants[at.BETA2], step)


@cuda_function
def check_gradient(book: Any, scalars: Any, chunk: Any) -> None:
    """Count the values of one chunk that are not finite, and add up their squares where the step clips."""
    layer, start = longs(book, at.CHUNKS)[2 * chunk], longs(book, at.CHUNKS)[2 * chunk + 1]
    zero = zero_like(scalars)
    gradient = address_of(book, layer, rows.GRADIENT)
    last = min(longs(book, at.SIZES)[layer], start + CHUNK)
    last = start if gradient == 0 else last
    g = pointer_to(gradient, zero)
    bad = 0
    a = b = c = d = 0.0
    for row in range(start, last, 4 * LANES):
        i = row + QUAD * this_lane()
        whole = may_vectorize(gradient) and row + 4 * LANES <= last
        one, two, three, four = load_rows((g,), 4, i, LANES, last, whole)
        bad += (
            nonfinite_values(one) + nonfinite_values(two) + nonfinite_values(three) + nonfinite_values(four)
        )
        if book[at.CLIPS] != 0:
            a, b, c, d = add_squares(
                add_squares(add_squares(add_squares((a, b, c, d), one), two), three), four
            )
    squares = add_lanes((a, b, c, d))
    found = add_lanes((np.float64(bad), 0.0, 0.0, 0.0))
    if this_lane() == 0:
        doubles(book, at.SUMS)[2 * chunk] = squares
        pointer_to(book[at.NONFINITE], np.int32(0))[chunk] = np.int32(found)
        if found != 0 and book[at.CHECKS] != 0:
            longs(book, at.CONTROL)[at.FOUND] = 1


def open_step(book: Any, scalars: Any) -> None:
    """Evaluate what layers' scalars depend on, 32 layers to a warp, and check gradients, a chunk to a warp."""
    warp = this_warp()
    layer_warps = (book[at.LAYERS] + WARP - 1) // WARP
    if warp >= layer_warps:
        if warp - layer_warps < book[at.CHUNK_COUNT]:
            check_gradient(book, scalars, warp - layer_warps)
    elif warp * WARP + this_lane() < book[at.LAYERS]:
        open_layer(book, scalars, warp * WARP + this_lane())


# -- clipping by the global norm -----------------------------------------------------------------------------


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
        constants = doubles(book, at.CONSTANTS)
        norm = rules.gradient_norm(doubles(book, at.CLIP)[at.CLIP_SUM], constants[at.LOSS_SCALE])
        factor = rules.clip_factor(norm, constants[at.MAX_GRAD_NORM])
        if book[at.CHECKS] != 0 and not math.isfinite(norm):
            longs(book, at.CONTROL)[at.FOUND] = 1
        scalars[layer * rows.SCALARS + rows.RESCALE] = factor / constants[at.LOSS_SCALE]


# -- centralization ------------------------------------------------------------------------------------------


def row_means(book: Any, scalars: Any) -> None:
    """Write the mean of each row of the layers that are centralized, a row to a warp."""
    row = this_warp()
    if row < book[at.ROW_COUNT] and not is_stopped(book):
        layer, number = longs(book, at.ROW_TABLE)[2 * row], longs(book, at.ROW_TABLE)[2 * row + 1]
        gradient = address_of(book, layer, rows.GRADIENT)
        if gradient != 0:
            zero = zero_like(scalars)
            scalar = layer * rows.SCALARS
            decay = scalars[scalar + rows.DECAY] if book[at.CENTERED_DECAY] != 0 else zero
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
