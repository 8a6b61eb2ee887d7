"""The CPU kernels: chunk functions run over all chunks with ``prange``.

A kernel's arguments are the tables of a bucket by their names. Threads cannot change a bit.

Whether subnormal numbers are flushed to zero is a mode of each thread, so every loop that computes sets it to
IEEE 754's and puts it back.
"""

import math
from typing import Any

import numpy as np
from numba import prange

from numba_lamb._compile import Kernel, cpu_kernel
from numba_lamb.kernels.columns import (
    ADAPT,
    ADAPTED,
    APPLIED,
    GRADIENT,
    GRADIENT_SQUARES,
    MAX_GRAD_NORM,
    UNADAPTED,
    WEIGHTS,
)
from numba_lamb.kernels.cpu.intrinsics import enter_ieee, leave_ieee
from numba_lamb.kernels.cpu.lamb import (
    advance_chunk,
    descend_chunk,
    lamb_layer,
    other_norm_chunk,
    shrink_weights,
)
from numba_lamb.kernels.cpu.lans import (
    lans_advance,
    lans_descend,
    lans_normalize,
    lans_ratio,
    lans_squares,
)
from numba_lamb.kernels.cpu.lars import lars_layer, sum_chunk, update_chunk
from numba_lamb.kernels.cpu.rows import is_native, stored
from numba_lamb.kernels.cpu.sums import (
    chunk_count,
    count_unusable,
    largest_pattern,
    layer_sum,
    row_mean,
    square_sum,
    sum_of_layers,
)


@cpu_kernel
def check_gradients(
    addresses: Any,
    formats: Any,
    bounds: Any,
    bound_patterns: Any,
    signless: Any,
    sizes: Any,
    chunks: Any,
    ahead: Any,
    found: Any,
) -> None:
    """Write into `found` how many gradient values of each chunk cannot be used: 4 bytes per float32 parameter."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        layer, start = chunks[chunk, 0], chunks[chunk, 1]
        found[chunk] = 0
        if addresses[layer, GRADIENT] != 0:
            count, itemsize, bound = chunk_count(sizes[layer], start), bounds.itemsize, bounds[layer]
            gradient = stored(addresses, formats, layer, GRADIENT)
            # Patterns are compared where values are not converted first.
            if not is_native(formats, layer, GRADIENT) or (
                largest_pattern(gradient, start, count, itemsize, signless[0], ahead[0])
                > bound_patterns[layer]
            ):
                found[chunk] = count_unusable(gradient, start, count, itemsize, bound, ahead[0])
        leave_ieee(mode)


@cpu_kernel
def gradient_squares(
    addresses: Any,
    formats: Any,
    bounds: Any,
    sizes: Any,
    chunks: Any,
    ahead: Any,
    found: Any,
    sums: Any,
) -> None:
    """Do `check_gradients` and write the sum of squares of each chunk, in one reading of the gradients."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        layer, start = chunks[chunk, 0], chunks[chunk, 1]
        found[chunk] = 0
        sums[chunk, GRADIENT_SQUARES] = 0.0
        if addresses[layer, GRADIENT] != 0:
            count, itemsize, one = chunk_count(sizes[layer], start), bounds.itemsize, bounds.dtype.type(1)
            gradient = stored(addresses, formats, layer, GRADIENT)
            squares = square_sum(gradient, start, count, itemsize, one, ahead[0])
            sums[chunk, GRADIENT_SQUARES] = squares
            # No value can be infinite, NaN or beyond the bound where the sum is not.
            bound = np.float64(bounds[layer])
            if not (math.isfinite(squares) and squares <= bound * bound):
                found[chunk] = count_unusable(gradient, start, count, itemsize, bounds[layer], ahead[0])
        leave_ieee(mode)


@cpu_kernel
def total_squares(first_chunk: Any, sums: Any, hyper64: Any, squares: Any, total: Any) -> None:
    """Write the sum of each clipped layer's squares into `squares`, and that of all of them into `total`."""
    mode = enter_ieee()
    for layer in range(squares.shape[0]):
        squares[layer] = 0.0
        if hyper64[layer, MAX_GRAD_NORM] > 0:
            squares[layer] = layer_sum(sums, GRADIENT_SQUARES, first_chunk[layer], first_chunk[layer + 1])
    total[0] = sum_of_layers(squares)
    leave_ieee(mode)


@cpu_kernel
def row_means(
    addresses: Any, formats: Any, prepared: Any, row_table: Any, row_lengths: Any, means: Any
) -> None:
    """Write the mean of each row (all axes but the first) of the layers that are centralized.

    `prepared` holds for each layer the factor of its gradient and of its weights.
    """
    for row in prange(row_table.shape[0]):
        mode = enter_ieee()
        layer = row_table[row, 0]
        if addresses[layer, GRADIENT] != 0:
            rescale, decay = prepared[layer, 0], prepared[layer, 1]
            length = row_lengths[layer]
            gradient = stored(addresses, formats, layer, GRADIENT)
            weights = stored(addresses, formats, layer, WEIGHTS)
            at = row_table[row, 1] * length
            means[row] = row_mean(gradient, weights, at, length, prepared.itemsize, rescale, decay)
        leave_ieee(mode)


@cpu_kernel
def decay_weights(
    addresses: Any, formats: Any, keys: Any, counts: Any, hyper: Any, sizes: Any, chunks: Any
) -> None:
    """Decay the weights of layers whose decay is not in the direction."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        shrink_weights(chunk, addresses, formats, keys, counts, hyper, sizes, chunks)
        leave_ieee(mode)


@cpu_kernel
def lamb_advance(
    addresses: Any,
    formats: Any,
    keys: Any,
    counts: Any,
    hyper: Any,
    sizes: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    rates: Any,
    ahead: Any,
    sums: Any,
) -> None:
    """Advance LAMB's moments and add up squares: 24 bytes per float32 parameter.

    Layers that do not adapt are updated at once: 28 bytes, and none in `lamb_descend`.
    """
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        advance_chunk(
            chunk,
            addresses,
            formats,
            keys,
            counts,
            hyper,
            sizes,
            chunks,
            first_row,
            row_lengths,
            means,
            rates,
            ahead[0],
            sums,
        )
        leave_ieee(mode)


@cpu_kernel
def lamb_other_norm(
    addresses: Any,
    formats: Any,
    hyper: Any,
    hyper64: Any,
    sizes: Any,
    chunks: Any,
    ahead: Any,
    sums: Any,
) -> None:
    """Replace the sums of u^2 in layers whose ratio divides by another norm: 16 bytes per float32 parameter."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        other_norm_chunk(chunk, addresses, formats, hyper, hyper64, sizes, chunks, ahead[0], sums)
        leave_ieee(mode)


@cpu_kernel
def lamb_ratio(
    addresses: Any,
    hyper: Any,
    hyper64: Any,
    rates: Any,
    all_first_chunk: Any,
    all_sums: Any,
    norms: Any,
    scales: Any,
) -> None:
    """Finish each layer's norms and ratio."""
    mode = enter_ieee()
    for layer in range(norms.shape[0]):
        lamb_layer(layer, addresses, hyper, hyper64, rates, all_first_chunk, all_sums, norms, scales)
    leave_ieee(mode)


@cpu_kernel
def lamb_descend(
    addresses: Any,
    formats: Any,
    keys: Any,
    counts: Any,
    hyper: Any,
    sizes: Any,
    chunks: Any,
    scales: Any,
    ahead: Any,
) -> None:
    """Make LAMB's update anew where layers adapt, and apply it: 16 bytes per float32 parameter."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        descend_chunk(chunk, addresses, formats, keys, counts, hyper, sizes, chunks, scales, ahead[0])
        leave_ieee(mode)


@cpu_kernel
def lars_sums(
    addresses: Any,
    formats: Any,
    hyper: Any,
    hyper64: Any,
    sizes: Any,
    chunks: Any,
    ahead: Any,
    sums: Any,
) -> None:
    """Add up the squares of weights and gradients in layers that adapt: 8 bytes per float32 parameter."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        sum_chunk(chunk, addresses, formats, hyper, hyper64, sizes, chunks, ahead[0], sums)
        leave_ieee(mode)


@cpu_kernel
def lars_ratio(
    addresses: Any,
    hyper: Any,
    hyper64: Any,
    rates: Any,
    all_first_chunk: Any,
    all_sums: Any,
    norms: Any,
    scales: Any,
) -> None:
    """Finish each layer's norms and ratio, 1 where it does not adapt."""
    mode = enter_ieee()
    for layer in range(norms.shape[0]):
        lars_layer(layer, addresses, hyper, hyper64, rates, all_first_chunk, all_sums, norms, scales)
    leave_ieee(mode)


@cpu_kernel
def lars_update(
    addresses: Any,
    formats: Any,
    keys: Any,
    counts: Any,
    hyper: Any,
    sizes: Any,
    chunks: Any,
    first_row: Any,
    row_lengths: Any,
    means: Any,
    scales: Any,
    ahead: Any,
) -> None:
    """Take the momentum step: 20 bytes per float32 parameter."""
    for chunk in prange(chunks.shape[0]):
        mode = enter_ieee()
        update_chunk(
            chunk,
            addresses,
            formats,
            keys,
            counts,
            hyper,
            sizes,
            chunks,
            first_row,
            row_lengths,
            means,
            scales,
            ahead[0],
        )
        leave_ieee(mode)


@cpu_kernel
def count_layers(addresses: Any, hyper: Any, steps: Any, updated: Any, common: Any) -> None:
    """Count the step of every layer that has a gradient; write the count that all have, -1 if they differ."""
    alike = True
    for layer in range(steps.shape[0]):
        if addresses[layer, GRADIENT] != 0:
            steps[layer] += 1
            updated[layer] = ADAPTED if hyper[layer, ADAPT] != 0 else UNADAPTED
        alike = alike and steps[layer] == steps[0]
    common[0] = np.int64(steps[0]) if alike else np.int64(-1)


@cpu_kernel
def count_step(counts: Any, norm: Any, shown: Any) -> None:
    """Count a step that was applied, and show its gradients' norm: the last that a step does."""
    counts[APPLIED] += 1
    for k in range(shown.shape[0]):
        shown[k] = norm[k]


KERNELS: dict[str, Kernel] = {
    kernel.serial.__name__: kernel
    for kernel in (
        decay_weights,
        row_means,
        lamb_advance,
        lamb_other_norm,
        lamb_ratio,
        lamb_descend,
        lans_squares,
        lans_normalize,
        lans_advance,
        lans_ratio,
        lans_descend,
        lars_sums,
        lars_ratio,
        lars_update,
        count_layers,
    )
}
"""The kernels of a step by name."""
