"""What one warp does: quads of values, rule calls on them, sums in the pinned order.

A quad is the four consecutive values that one thread owns in a row of 128, as a tuple. Quads past the end of a
chunk hold zeros, and zeros stay zeros through every rule, so that sums need no masks; but LAMB's direction is 0/0
there if eps is 0 (`before`).

No variable that is a tuple is assigned in two places or carried round a loop: NVVM before 13.4 never ends on one.
"""

from typing import Any

import numpy as np
from numba import cuda

from numba_lamb._compile import bind, cuda_function
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.intrinsics import fma, multiply, pointer_to, shuffle_down, store4, zero_like
from numba_lamb.layout import LANES
from numba_lamb.numerics import rules as rule_text

QUAD = 4
WARP = 32
QUAD_BYTES = 16
"""What one access can move; the addresses must be multiples of it."""
DOUBLE_BYTES = 8

rules = bind(rule_text, cuda_function, fma=fma, multiply=multiply)


# -- where things are ----------------------------------------------------------------------------------------


@cuda_function
def this_lane() -> Any:
    """Return this thread's place in its warp."""
    return cuda.threadIdx.x % WARP


@cuda_function
def this_warp() -> Any:
    """Return this warp's place in the grid."""
    return (np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x) // WARP


@cuda_function
def longs(args: Any, field: Any) -> Any:
    """Return the int64 table whose address the args holds."""
    return pointer_to(args[field], args[0])


@cuda_function
def doubles(args: Any, field: Any) -> Any:
    """Return the float64 table whose address the args holds."""
    return pointer_to(args[field], 0.0)


@cuda_function
def values(args: Any, field: Any, hyper: Any) -> Any:
    """Return the table of the parameters' dtype whose address the args holds."""
    return pointer_to(args[field], hyper[0])


@cuda_function
def hyper64_of(args: Any, layer: Any, column: Any) -> Any:
    """Return one of a layer's float64 hyper-parameters."""
    return doubles(args, fields.HYPER64)[layer * columns.HYPER64 + column]


@cuda_function
def is_stopped(args: Any) -> Any:
    """Return whether this step must change nothing."""
    control = longs(args, fields.CONTROL)
    return control[fields.FOUND] + control[fields.REFUSAL] != 0


@cuda_function
def address_of(args: Any, layer: Any, column: Any) -> Any:
    """Return where one of a layer's arrays starts."""
    return longs(args, fields.ADDRESSES)[layer * columns.ADDRESSES + column]


@cuda_function
def may_vectorize(address: Any) -> Any:
    """Return whether quads at `address`, or at several or-ed together, can be moved 16 bytes at a time."""
    return address % QUAD_BYTES == 0


# -- quads ---------------------------------------------------------------------------------------------------


@cuda_function
def store_some(pointer: Any, first: Any, count: Any, quad: Any) -> None:
    """Write what of the quad at `first` lies before `count`."""
    if first < count:
        pointer[first] = quad[0]
    if first + 1 < count:
        pointer[first + 1] = quad[1]
    if first + 2 < count:
        pointer[first + 2] = quad[2]
    if first + 3 < count:
        pointer[first + 3] = quad[3]


@cuda_function
def store(pointer: Any, first: Any, count: Any, whole: Any, quad: Any) -> None:
    """Write the quad at `first`: at once where it is `whole`, else value by value up to `count`."""
    if whole:
        store4(pointer, first, quad)
    else:
        store_some(pointer, first, count, quad)


@cuda_function
def first_moments(m: Any, g: Any, beta1: Any, complement1: Any) -> Any:
    """Return the rule's values for a quad."""
    return (
        rules.first_moment(m[0], g[0], beta1, complement1),
        rules.first_moment(m[1], g[1], beta1, complement1),
        rules.first_moment(m[2], g[2], beta1, complement1),
        rules.first_moment(m[3], g[3], beta1, complement1),
    )


@cuda_function
def second_moments(v: Any, g: Any, beta2: Any, complement2: Any) -> Any:
    """Return the rule's values for a quad."""
    return (
        rules.second_moment(v[0], g[0], beta2, complement2),
        rules.second_moment(v[1], g[1], beta2, complement2),
        rules.second_moment(v[2], g[2], beta2, complement2),
        rules.second_moment(v[3], g[3], beta2, complement2),
    )


@cuda_function
def lamb_directions(w: Any, m: Any, v: Any, correction1: Any, correction2: Any, eps: Any, decay: Any) -> Any:
    """Return the rule's values for a quad."""
    return (
        rules.lamb_direction(w[0], m[0], v[0], correction1, correction2, eps, decay),
        rules.lamb_direction(w[1], m[1], v[1], correction1, correction2, eps, decay),
        rules.lamb_direction(w[2], m[2], v[2], correction1, correction2, eps, decay),
        rules.lamb_direction(w[3], m[3], v[3], correction1, correction2, eps, decay),
    )


@cuda_function
def decayed_gradients(g: Any, w: Any, rescale: Any, decay: Any) -> Any:
    """Return the rule's values for a quad."""
    return (
        rules.decayed_gradient(g[0], w[0], rescale, decay),
        rules.decayed_gradient(g[1], w[1], rescale, decay),
        rules.decayed_gradient(g[2], w[2], rescale, decay),
        rules.decayed_gradient(g[3], w[3], rescale, decay),
    )


@cuda_function
def momentum_advances(v: Any, d: Any, momentum: Any, advance: Any) -> Any:
    """Return the rule's values for a quad."""
    return (
        rules.momentum_advance(v[0], d[0], momentum, advance),
        rules.momentum_advance(v[1], d[1], momentum, advance),
        rules.momentum_advance(v[2], d[2], momentum, advance),
        rules.momentum_advance(v[3], d[3], momentum, advance),
    )


@cuda_function
def momentum_directions(v: Any, d: Any, advance: Any, velocity: Any, lookahead: Any) -> Any:
    """Return the rule's values for a quad."""
    return (
        rules.momentum_direction(v[0], d[0], advance, velocity, lookahead),
        rules.momentum_direction(v[1], d[1], advance, velocity, lookahead),
        rules.momentum_direction(v[2], d[2], advance, velocity, lookahead),
        rules.momentum_direction(v[3], d[3], advance, velocity, lookahead),
    )


@cuda_function
def descended(w: Any, u: Any, scale: Any) -> Any:
    """Return the rule's values for a quad."""
    return (
        rules.descend(w[0], u[0], scale),
        rules.descend(w[1], u[1], scale),
        rules.descend(w[2], u[2], scale),
        rules.descend(w[3], u[3], scale),
    )


@cuda_function
def scaled(g: Any, scale: Any) -> Any:
    """Return a quad times `scale`."""
    return scale * g[0], scale * g[1], scale * g[2], scale * g[3]


@cuda_function
def unusable_values(g: Any, bound: Any) -> Any:
    """Return how many gradient values of a quad are infinite, NaN or beyond `bound`."""
    return (
        np.int64(not rules.is_usable(g[0], bound))
        + np.int64(not rules.is_usable(g[1], bound))
        + np.int64(not rules.is_usable(g[2], bound))
        + np.int64(not rules.is_usable(g[3], bound))
    )


@cuda_function
def less_mean(d: Any, means: Any, row: Any, index: Any, last: Any, length: Any) -> Any:
    """Return a value less its row's mean, 0 for an `index` from `last` on; the layer's means begin at `row`."""
    # Past the end the last row's mean is read, and left out.
    central = rules.centered(d, means[row + min(index, last - 1) // length])
    return central if index < last else zero_like(means)


@cuda_function
def centralized(d: Any, means: Any, row: Any, first: Any, last: Any, length: Any) -> Any:
    """Return the quad of a layer's values from `first` on, less their rows' means."""
    return (
        less_mean(d[0], means, row, first, last, length),
        less_mean(d[1], means, row, first + 1, last, length),
        less_mean(d[2], means, row, first + 2, last, length),
        less_mean(d[3], means, row, first + 3, last, length),
    )


@cuda_function
def lamb_gradients(
    g: Any, w: Any, rescale: Any, means: Any, row: Any, first: Any, last: Any, length: Any
) -> Any:
    """Return the quad that enters LAMB's moments; `row` is below 0 where it is not centralized."""
    a, b, c, d = scaled(g, rescale)
    if row >= 0:
        decayed = decayed_gradients(g, w, rescale, zero_like(means))
        a, b, c, d = centralized(decayed, means, row, first, last, length)
    return a, b, c, d


@cuda_function
def lars_gradients(
    g: Any, w: Any, rescale: Any, decay: Any, means: Any, row: Any, first: Any, last: Any, length: Any
) -> Any:
    """Return the quad that enters the momentum; `row` is below 0 where it is not centralized."""
    decayed = decayed_gradients(g, w, rescale, decay)
    a, b, c, d = decayed
    if row >= 0:
        a, b, c, d = centralized(decayed, means, row, first, last, length)
    return a, b, c, d


@cuda_function
def before(x: Any, first: Any, last: Any, zero: Any) -> Any:
    """Return the quad at `first` with zeros from `last` on, where a rule may have made 0/0 of zeros."""
    return (
        x[0] if first < last else zero,
        x[1] if first + 1 < last else zero,
        x[2] if first + 2 < last else zero,
        x[3] if first + 3 < last else zero,
    )


@cuda_function
def normed_gradients(g: Any, w: Any, rescale: Any, decay: Any, decayed: Any) -> Any:
    """Return the quad whose norm LARS's ratio divides by: the gradient, with its decay where that is in it."""
    a, b, c, d = scaled(g, rescale)
    if decayed:
        a, b, c, d = decayed_gradients(g, w, rescale, decay)
    return a, b, c, d


@cuda_function
def lamb_others(
    w: Any, m: Any, v: Any, correction1: Any, correction2: Any, eps: Any, decay: Any, zero: Any, kind: Any
) -> Any:
    """Return the quad whose norm LAMB's ratio divides by, where that is not the direction's."""
    a, b, c, d = lamb_directions(w, m, v, correction1, correction2, eps, zero)
    if kind != rules.UNDECAYED:
        a = rules.lamb_eps_in_root(w[0], m[0], v[0], correction1, correction2, eps, decay)
        b = rules.lamb_eps_in_root(w[1], m[1], v[1], correction1, correction2, eps, decay)
        c = rules.lamb_eps_in_root(w[2], m[2], v[2], correction1, correction2, eps, decay)
        d = rules.lamb_eps_in_root(w[3], m[3], v[3], correction1, correction2, eps, decay)
    return a, b, c, d


# -- sums ----------------------------------------------------------------------------------------------------


@cuda_function
def add_squares(lanes: Any, x: Any) -> Any:
    """Return four lanes with the squares of a quad added."""
    return (
        rules.add_square(lanes[0], x[0]),
        rules.add_square(lanes[1], x[1]),
        rules.add_square(lanes[2], x[2]),
        rules.add_square(lanes[3], x[3]),
    )


@cuda_function
def widened(x: Any) -> Any:
    """Return a quad in float64."""
    return np.float64(x[0]), np.float64(x[1]), np.float64(x[2]), np.float64(x[3])


@cuda_function
def add_quads(lanes: Any, x: Any) -> Any:
    """Return four lanes with a quad added."""
    return lanes[0] + x[0], lanes[1] + x[1], lanes[2] + x[2], lanes[3] + x[3]


@cuda_function
def add_lanes(lanes: Any) -> Any:
    """Add up a warp's 128 lanes in the pinned tree; the sum is in its first thread."""
    a, b, c, d = lanes
    # A stride of 64 lanes is one of 16 threads.
    distance = LANES // 2 // QUAD
    while distance > 0:
        a += shuffle_down(a, distance)
        b += shuffle_down(b, distance)
        c += shuffle_down(c, distance)
        d += shuffle_down(d, distance)
        distance //= 2
    a += c
    b += d
    return a + b


@cuda_function
def column_value(table: Any, columns: Any, column: Any, row: Any, last: Any) -> Any:
    """Return one value of a float64 table, 0 for a `row` from `last` on."""
    # Loads that no branch guards can be under way together; past the end they read the last row.
    value = table[min(row, last - 1) * columns + column]
    return value if row < last else 0.0


@cuda_function
def load_column(table: Any, columns: Any, column: Any, first: Any, last: Any) -> Any:
    """Return four rows' values of one `column` of a float64 table, with zeros from row `last` on."""
    return (
        column_value(table, columns, column, first, last),
        column_value(table, columns, column, first + 1, last),
        column_value(table, columns, column, first + 2, last),
        column_value(table, columns, column, first + 3, last),
    )


@cuda_function
def add_column(table: Any, columns: Any, column: Any, first: Any, last: Any) -> Any:
    """Add up rows `first` to ``last - 1`` of one column in the pinned tree; the sum is in the first thread."""
    a = b = c = d = 0.0
    own = first + QUAD * this_lane()
    # Four rows of lanes at a time, so that their loads are under way together.
    while own < last:
        one = load_column(table, columns, column, own, last)
        two = load_column(table, columns, column, own + LANES, last)
        three = load_column(table, columns, column, own + 2 * LANES, last)
        four = load_column(table, columns, column, own + 3 * LANES, last)
        a, b, c, d = add_quads(add_quads(add_quads(add_quads((a, b, c, d), one), two), three), four)
        own += 4 * LANES
    return add_lanes((a, b, c, d))


@cuda_function
def sums_of(args: Any, chunk: Any) -> Any:
    """Return a chunk's sums, by column."""
    return pointer_to(args[fields.SUMS] + chunk * columns.SUMS * DOUBLE_BYTES, 0.0)


@cuda_function
def add_sums(args: Any, column: Any, first: Any, last: Any) -> Any:
    """Add up one column of the sums of chunks `first` to ``last - 1``; the sum is in the first thread."""
    return add_column(doubles(args, fields.SUMS), columns.SUMS, column, first, last)
