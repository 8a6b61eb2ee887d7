r"""Scalar update arithmetic, written once for every target, and the table of its numerics.

====================  ==========================================================================
quantity              how it is computed
====================  ==========================================================================
hyper-parameters      float64 on the host, cast once to the parameter's dtype
``1 - beta``          float64, never in the parameter's dtype
``1 / (1 - beta^t)``  float64, ``beta^t`` by binary exponentiation, cast once, multiplied
m, v, u, w            the parameter's dtype; IEEE ``/`` and ``sqrt``, no contraction
products in a sum     one explicit `fma` each
squares               taken and summed in float64, so that every float32 norm is finite and nonzero
chunk sum             element ``i`` of a chunk to lane ``i % 128`` in order, then the lane tree
layer sum             chunk ``c`` of a layer to lane ``c % 128`` in order, then the lane tree
lane tree             lane ``j`` takes lane ``j + h`` for ``h`` = 64, 32, 16, 8, 4, 2, 1
norms, trust ratio    float64; LAMB's ratio is 1 where either norm is 0
``phi(||w||)``        ``min(max(||w||, lightest), heaviest)`` in place of ``||w||`` above a ratio, before either is
                      compared with 0; below it (LARS's ``decay*||w||``) and in statistics ``||w||`` stays
bounds of a ratio     of a quotient alone: a 1 in its place, and LARS's 0, stay; LARC's clip comes after them
``||u||``             some formulas divide by the norm of ``lamb_eps_in_root`` or of u without decay instead: a
                      pass of its own over such layers, sums as for ``||u||``
``||g + decay*w||``   where LARS divides by it: one `fma` each in the parameter's dtype, no ``decay*||w||`` added
rate, weight decay    one in [-1e-12, 0), which rounding makes of 0, is 0
``1 - lr*decay``      decay outside the direction: float64, cast once; ``w`` is multiplied by it at first
corrected rate        ``lr/(1-beta1^t)`` or ``lr*sqrt(1-beta2^t)/(1-beta1^t)``: float64
norm of gradients n   raw squares by chunk and layer as above; layer ``k`` of a dtype to lane ``k % 128`` in
                      order, then the lane tree; dtypes added in order of first appearance; root; times
                      ``1/loss_scale``
``rescale``           ``min(max_grad_norm/n, 1) / loss_scale`` in float64, cast once; ``g`` enters as
                      ``rescale*g``, a product rounded on its own
usable gradient       ``|g/loss_scale| <= bound``: LAMB 2^63 in float32 and 2^511 in float64, whose squares' mean
                      stays finite; Momentum and LARS half of ``(1-momentum)`` times the largest number, that
                      itself where the momentum is 1 or more, and in float64 at most 2^480, of which 2^63 squares
                      have a finite sum; where ``max_grad_norm <= bound``, any finite one
row mean              element ``j`` of a row to lane ``j % 128`` in float64, then the lane tree; cast once
``lr * r``            float64, cast once
LANS's ``g~``         ``(rescale*g)/||rescale*g||`` of the layer, after centralization: squares and sums as above,
                      the norm cast once, IEEE ``/`` in the parameter's dtype; 0 where the norm is 0
LANS's c              u with ``g~`` in the place of ``m/(1-beta1^t)``; its ratio is LAMB's with ``||c||``
LANS's step           ``lr*beta1*r`` and ``lr*(1-beta1)*r_c``: float64, cast once; w less the first times u, then
                      less the second times c, both directions made of the weights before the step
usable in LANS        LAMB's bound, at most 2^480, from which a layer's norm stays below the largest number
====================  ==========================================================================

The functions here are plain Python. Each target compiles its own copy (`numba_lamb._compile.bind`), with
`fma`, and `multiply` on a target that contracts products, standing for that target's instructions. They hold no
literals, which would turn float32 into float64, and no loops over elements.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np

# Where the ratio of LARS is 1: nowhere; where a norm is 0; where ||w|| or the denominator is 0; where a norm or
# the decay is 0; where ||w|| is 0, past LARC's clip, and then 0 where the gradient's norm is: neither decay nor
# gradient enters a layer that has no ratio.
UNGUARDED, ZERO_NORM, ZERO_DENOMINATOR, ZERO_DECAY, LEFT_ALONE = range(5)
# Whose norm LAMB's ratio divides by: u's; that of u with eps inside the root; the same, and the ratio is 1 where
# the step's gradient is 0; that of u without decay.
DIRECTION, EPS_IN_ROOT, EPS_IN_ROOT_GUARDED, UNDECAYED = range(4)
# A rate this little below 0 is 0: float64 rounds rates up to 1000 by less, and no float32 weight shows its step.
ROUNDED_ZERO = -1e-12
# Which layers of a group have a trust ratio: none, those with weight decay, all.
NEVER, WHERE_DECAYED, ALWAYS = range(3)
# What a rate is corrected by.
UNCORRECTED, BY_FIRST, BY_BOTH = range(3)


def fma(a: float, b: float, c: float) -> float:
    """Return ``a*b + c`` rounded once: the float64 meaning of the instruction that each target binds."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    return float(exact) if exact else a * b + c


def multiply(a: Any, b: Any) -> Any:
    """Return ``a*b``, a product rounded on its own, that a target must not contract into a sum."""
    return a * b


def complement(beta: Any) -> Any:
    """``1 - beta`` in float64."""
    return 1.0 - beta


def momentum_weights(momentum: Any, nesterov: Any) -> Any:
    """Return the weights of ``v`` and of the gradient in the direction: (1, 0), with Nesterov (momentum, 1)."""
    return (momentum, 1.0) if nesterov else (1.0, 0.0)


def adapting(adapts: Any, always: Any) -> Any:
    """Return which layers of a group have a trust ratio."""
    if not adapts:
        return NEVER
    return ALWAYS if always else WHERE_DECAYED


def adapts(which: Any, decay: Any) -> Any:
    """Return whether a layer with weight decay `decay` has a trust ratio; `which` is one of the constants."""
    return (which == ALWAYS) | ((which == WHERE_DECAYED) & (decay != 0))


def decay_factor(rate: Any, decay: Any) -> Any:
    """``1 - lr*decay`` in float64: what decay outside the direction multiplies the weights by."""
    return 1.0 - multiply(rate, decay)


def step_length(rate: Any, ratio: Any) -> Any:
    """``lr * r`` in float64."""
    return rate * ratio


def lars_advance(rate: Any, ratio: Any, inside: Any, outside: Any) -> Any:
    """Return the factor of what enters the momentum: the ratio, with the rate where that is `inside` the buffer.

    Where the ratio is `outside`, it is 1; float64.
    """
    if outside:
        return 1.0
    return step_length(rate, ratio) if inside else ratio


def lars_descend(rate: Any, ratio: Any, inside: Any, outside: Any) -> Any:
    """Return the factor of what is taken from the weights: the rest of ``lr * r`` that `lars_advance` leaves."""
    if outside:
        return step_length(rate, ratio)
    return 1.0 if inside else rate


def row_mean(total: Any, length: Any) -> Any:
    """Return the mean of a row whose values add up to `total`; float64."""
    return total / np.float64(length)


def centered(d: Any, mean: Any) -> Any:
    """Return a gradient less its row's mean."""
    return d - mean


def gradient_factor(sign: Any, factor: Any, loss_scale: Any) -> Any:
    """Return what raw gradients are multiplied by, given the factor of the clip; float64."""
    return sign * (factor / loss_scale)


def first_moment(m: Any, g: Any, beta1: Any, complement1: Any) -> Any:
    """``m <- beta1*m + (1-beta1)*g``."""
    return fma(beta1, m, complement1 * g)


def second_moment(v: Any, g: Any, beta2: Any, complement2: Any) -> Any:
    """``v <- beta2*v + (1-beta2)*g*g``."""
    return fma(beta2, v, (complement2 * g) * g)


def lamb_direction(w: Any, m: Any, v: Any, correction1: Any, correction2: Any, eps: Any, decay: Any) -> Any:
    """``u = (m/(1-beta1^t)) / (sqrt(v/(1-beta2^t)) + eps) + decay*w``; ``correction = 1/(1-beta^t)``."""
    return fma(decay, w, (m * correction1) / (math.sqrt(v * correction2) + eps))


def lamb_eps_in_root(w: Any, m: Any, v: Any, correction1: Any, correction2: Any, eps: Any, decay: Any) -> Any:
    """``(m/(1-beta1^t)) / sqrt(v/(1-beta2^t) + eps) + decay*w``, which some formulas take the norm of."""
    return fma(decay, w, (m * correction1) / math.sqrt(fma(v, correction2, eps)))


def lans_divisor(norm: Any) -> Any:
    """Return what a layer's gradient is divided by: its norm, infinity where that is 0; float64."""
    return norm if norm != 0 else math.inf


def normalized(g: Any, divisor: Any) -> Any:
    """``g~ = g / ||g||``."""
    return g / divisor


def lans_scale(rate: Any, share: Any, ratio: Any) -> Any:
    """``lr * share * r``, with the shares ``beta1`` and ``1-beta1`` of LANS's two directions; float64."""
    return rate * share * ratio


def decayed_gradient(g: Any, w: Any, rescale: Any, decay: Any) -> Any:
    """``d = g/loss_scale + decay*w``: the gradient with coupled (L2) decay."""
    return fma(decay, w, rescale * g)


def momentum_advance(v: Any, d: Any, momentum: Any, advance: Any) -> Any:
    """``v <- momentum*v + advance*d``; `advance` is 1 for Momentum and the local rate for LARS."""
    return fma(momentum, v, advance * d)


def momentum_direction(v: Any, d: Any, advance: Any, velocity: Any, lookahead: Any) -> Any:
    """``u = velocity*v + lookahead*advance*d``: plain with weights (1, 0), Nesterov with (momentum, 1)."""
    return fma(velocity, v, lookahead * (advance * d))


def descend(w: Any, u: Any, scale: Any) -> Any:
    """``w <- w - scale*u``."""
    return fma(-scale, u, w)


def add_square(total: Any, x: Any) -> Any:
    """``total + x*x`` in float64."""
    wide = np.float64(x)
    return fma(wide, wide, total)


def within(value: Any, least: Any, most: Any) -> Any:
    """``min(max(value, least), most)``, a NaN where `value` is one."""
    if value < least:
        value = least
    if value > most:
        value = most
    return value


def lamb_ratio(
    weight_norm: Any, update_norm: Any, lightest: Any, heaviest: Any, epsilon: Any, least: Any, most: Any
) -> Any:
    """``r = phi(||w||) / (||u|| + epsilon)`` in [least, most], 1 where phi(||w||) or ||u|| is 0; float64.

    ``phi(z) = min(max(z, lightest), heaviest)``.
    """
    weight_norm = within(weight_norm, lightest, heaviest)
    if weight_norm == 0 or update_norm == 0:
        return 1.0
    return within(weight_norm / (update_norm + epsilon), least, most)


def lars_ratio(
    weight_norm: Any,
    gradient_norm: Any,
    decay: Any,
    coefficient: Any,
    epsilon: Any,
    guard: Any,
    lightest: Any,
    heaviest: Any,
    least: Any,
    most: Any,
) -> Any:
    """``coefficient*phi(||w||) / (||g|| + decay*||w|| + epsilon)`` in [least, most]; float64.

    0 for 0/0, and 1 or 0 where `guard` says so.
    """
    denominator = fma(decay, weight_norm, gradient_norm) + epsilon
    weight_norm = within(weight_norm, lightest, heaviest)
    if guard != UNGUARDED:
        if not weight_norm > 0:
            return 1.0
        if guard == LEFT_ALONE and not gradient_norm > 0:
            return 0.0
        if not denominator > 0 or (guard != ZERO_DENOMINATOR and not gradient_norm > 0):
            return 1.0
        if guard == ZERO_DECAY and not decay > 0:
            return 1.0
    if denominator == 0:
        return 0.0
    return within(coefficient * weight_norm / denominator, least, most)


def clipped_ratio(ratio: Any, rate: Any, phi: Any, guard: Any) -> Any:
    """``min(ratio/rate, 1)``: with it the layer's rate is the smaller of ratio and rate; 0 for 0/0.

    The 1 of a layer that is left alone because ``phi(||w||)`` is 0 stays.
    """
    if guard == LEFT_ALONE and not phi > 0:
        return ratio
    if ratio >= rate and ratio > 0:
        return 1.0
    if ratio == 0:
        return 0.0
    return ratio / rate


def second_moment_bound(largest: Any) -> Any:
    """``2^k <= sqrt(largest)/2``: no mean of squares up to it, and no corrected one, leaves the dtype; float64."""
    return 2.0 ** (math.frexp(largest)[1] // 2 - 1)


def lans_bound(largest: Any) -> Any:
    """`second_moment_bound`, at most 2^480: below it a layer's norm of 2^63 values is finite in the dtype."""
    return min(second_moment_bound(largest), 2.0**480)


def momentum_bound(largest: Any, momentum: Any) -> Any:
    """``(1-momentum)*largest/2``: no sum with these weights leaves the dtype; `largest` from momentum 1 on.

    At most 2^480, so that the norm of a layer's gradient is finite.
    """
    if momentum < 1:
        largest = (1.0 - momentum) * largest / 2.0
    return min(largest, 2.0**480)


def raw_bound(bound: Any, limit: Any, loss_scale: Any, largest: Any) -> Any:
    """Return what a raw gradient may be, whose clip to `limit` (0 for none) and loss scale are still to come."""
    if 0 < limit <= bound:
        return largest
    return min(bound * loss_scale, largest)


def is_usable(g: Any, bound: Any) -> Any:
    """Return whether a raw gradient is finite and keeps the moments so; no NaN is."""
    return abs(g) <= bound


def gradient_norm(total: Any, loss_scale: Any) -> Any:
    """``n = ||g / loss_scale||`` of all gradients, whose squares add up to `total`; float64."""
    return math.sqrt(total) * (1.0 / loss_scale)


def clip_factor(norm: Any, limit: Any) -> Any:
    """``min(limit/n, 1)``: 0 for an infinite norm, NaN for a NaN; float64."""
    if norm <= limit:
        return 1.0
    return limit / norm


def grown_scale(scale: Any, growth: Any, most: Any) -> Any:
    """Return a loss scale after enough steps that were taken; float64."""
    return min(scale * growth, most)


def reduced_scale(scale: Any, backoff: Any, least: Any) -> Any:
    """Return a loss scale after a step that was left out; float64."""
    return max(scale * backoff, least)


def integer_power(base: Any, exponent: Any) -> Any:
    """Return ``base ** exponent`` in float64 by binary exponentiation: the same bits on host and device."""
    power = 1.0
    while exponent > 0:
        if exponent & 1:
            power = multiply(power, base)
        base = multiply(base, base)
        exponent >>= 1
    return power


def bias_correction(beta: Any, step: Any) -> Any:
    """``1 / (1 - beta^t)`` in float64 for the 1-based step ``t``."""
    return 1.0 / (1.0 - integer_power(beta, step))


def rate_factor(correction: Any, beta1: Any, beta2: Any, step: Any) -> Any:
    """Return what formulas that correct the rate instead of the moments multiply it by; float64.

    ``1 / (1 - beta1^t)`` for `BY_FIRST`, ``sqrt(1 - beta2^t) / (1 - beta1^t)`` for `BY_BOTH`.
    """
    if correction == BY_FIRST:
        return bias_correction(beta1, step)
    if correction == BY_BOTH:
        return bias_correction(beta1, step) / math.sqrt(bias_correction(beta2, step))
    return 1.0
