"""What single instructions compute, as functions of NumPy arrays; nothing here knows of lanes or registers.

Nothing is fused, flushed or approximated. NumPy has one C-compiled operation per call, so a product and
a sum stay two roundings; `fma` has one.
"""

from functools import reduce
from typing import Any

import numpy as np
from numba import vectorize

from numba_lamb.kernels.cpu.intrinsics import fma as fma_intrinsic
from tests.cuda.ptx.errors import LaneError

DTYPES: dict[str, Any] = {
    "pred": np.bool_,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    # Two float32 in a 64-bit register: one row of a two-column array.
    "f32x2": np.float32,
} | {f"{letter}{bits}": np.dtype(f"{sign}{bits // 8}").type
     for letter, sign in (("u", "u"), ("s", "i"), ("b", "u")) for bits in (8, 16, 32, 64)}  # fmt: skip

CANONICAL_NAN = np.uint32(0x7FFFFFFF).view(np.float32)


# Both at once and float32 first: a loop for float64 alone would be taken for float32 too, and round twice.
@vectorize(["float32(float32, float32, float32)", "float64(float64, float64, float64)"])
def fma(a: Any, b: Any, c: Any) -> Any:
    return fma_intrinsic(a, b, c)


def canonical(values: Any) -> Any:
    """Give float32 NaNs the only payload that a GPU makes."""
    if values.dtype == np.float32:
        wrong = np.isnan(values)
        if wrong.any():
            return np.where(wrong, CANONICAL_NAN, values)
    return values


def truncated_quotient(a: Any, b: Any) -> Any:
    """Divide integers towards zero."""
    refuse_zero(b)
    quotient = a // b
    if np.dtype(quotient.dtype).kind == "u":
        return quotient
    inexact = (quotient * b != a) & ((a < 0) != (b < 0))
    return quotient + inexact.astype(quotient.dtype)


def remainder(a: Any, b: Any) -> Any:
    """Return the remainder of integers with the sign of `a`."""
    refuse_zero(b)
    return np.fmod(a, b)


def refuse_zero(divisor: Any) -> None:
    zero = np.flatnonzero(np.asarray(divisor) == 0)
    if zero.size:
        raise LaneError(int(zero[0]), "integer division by zero")


def minimum(*values: Any) -> Any:
    """Return the least; NaNs lose, and minus zero is less than zero."""
    return reduce(lambda a, b: ordered_zeros(np.fmin(a, b), a, b, np.bitwise_or), values)


def maximum(*values: Any) -> Any:
    return reduce(lambda a, b: ordered_zeros(np.fmax(a, b), a, b, np.bitwise_and), values)


def minimum_or_nan(*values: Any) -> Any:
    return reduce(lambda a, b: ordered_zeros(np.minimum(a, b), a, b, np.bitwise_or), values)


def maximum_or_nan(*values: Any) -> Any:
    return reduce(lambda a, b: ordered_zeros(np.maximum(a, b), a, b, np.bitwise_and), values)


def ordered_zeros(found: Any, a: Any, b: Any, choose: Any) -> Any:
    """Replace the results where `a` equals `b`: there the values differ at most in the sign of zero."""
    if found.dtype.kind != "f":
        return found
    bits = np.dtype(f"u{found.dtype.itemsize}")
    return np.where(a == b, choose(a.view(bits), b.view(bits)).view(found.dtype), found)


def wide_product(a: Any, b: Any) -> Any:
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return a.astype(wide) * b.astype(wide)


def high_product(a: Any, b: Any) -> Any:
    """Return the upper half of the product."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        return (wide_product(a, b) >> bits).astype(a.dtype)
    unsigned = high_product_of_64_bits(a.astype(np.uint64), b.astype(np.uint64))
    if a.dtype.kind == "u":
        return unsigned
    zero = np.int64(0)
    return unsigned.astype(np.int64) - np.where(a < 0, b, zero) - np.where(b < 0, a, zero)


def high_product_of_64_bits(a: Any, b: Any) -> Any:
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_high, a_low, b_high, b_low = a >> half, a & low, b >> half, b & low
    middle = a_high * b_low + (a_low * b_low >> half)
    other = a_low * b_high + (middle & low)
    return a_high * b_high + (middle >> half) + (other >> half)


def shift_left(a: Any, amount: Any) -> Any:
    """Shift left; an amount of the width or more gives zero."""
    bits = 8 * a.dtype.itemsize
    return np.where(amount >= bits, a.dtype.type(0), a << np.minimum(amount, bits - 1).astype(a.dtype))


def shift_right(a: Any, amount: Any) -> Any:
    """Shift right; an amount of the width or more gives zero, or the sign."""
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(amount, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(amount >= bits, a.dtype.type(0), shifted)


def funnel_shift(left: bool, wrap: bool) -> Any:
    def shift(low: Any, high: Any, amount: Any) -> Any:
        amount = (amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
        moved = both << amount >> np.uint64(32) if left else both >> amount
        return moved.astype(np.uint32)

    return shift


def insert_bits(a: Any, b: Any, position: Any, length: Any) -> Any:
    """Return `b` with the lowest `length` bits of `a` at `position`."""
    position, length = position & np.uint32(255), length & np.uint32(255)
    ones = ~shift_left(~np.zeros_like(b), length)
    mask = shift_left(ones, position)
    return shift_left(a, position) & mask | b & ~mask


def extract_bits(a: Any, position: Any, length: Any) -> Any:
    """Return `length` bits of `a` from `position` on, extended by their sign if `a` is signed."""
    bits = np.uint32(8 * a.dtype.itemsize)
    position, length = position & np.uint32(255), length & np.uint32(255)
    mask = ~shift_left(~np.zeros_like(a), length)
    found = shift_right(a, position) & mask
    if a.dtype.kind == "u":
        return found
    last = np.minimum(position + np.maximum(length, np.uint32(1)) - np.uint32(1), bits - np.uint32(1))
    negative = (shift_right(a, last) & a.dtype.type(1)).astype(bool) & (length > 0)
    return np.where(negative, found | ~mask, found)


def permute_bytes(a: Any, b: Any, selector: Any) -> Any:
    """Pick four of the eight bytes of `a` and `b`; bit 3 of a choice repeats the sign of the byte."""
    both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    result = np.uint32(0)
    for k in range(4):
        choice = selector >> np.uint32(4 * k) & np.uint32(15)
        byte = (both >> ((choice & np.uint32(7)).astype(np.uint64) * np.uint64(8))).astype(
            np.uint32
        ) & np.uint32(255)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        result = result | np.where(choice & np.uint32(8), sign, byte) << np.uint32(8 * k)
    return result


def any_logic(a: Any, b: Any, c: Any, table: Any) -> Any:
    """Return the bitwise function of three words that an 8-bit truth table gives."""
    result = np.uint32(0)
    for row in range(8):
        terms = [word if row >> (2 - k) & 1 else ~word for k, word in enumerate((a, b, c))]
        result = result | np.where(
            table >> np.uint32(row) & np.uint32(1), terms[0] & terms[1] & terms[2], np.uint32(0)
        )
    return result


def leading_zeros(a: Any) -> Any:
    """Count the zero bits above the highest one."""
    bits = 8 * a.dtype.itemsize
    halves = [a] if bits == 32 else [(a >> np.uint64(32)).astype(np.uint32), a.astype(np.uint32)]
    lengths = [np.frexp(half.astype(np.float64))[1] for half in halves]
    length = lengths[0] if bits == 32 else np.where(lengths[0] > 0, lengths[0] + 32, lengths[1])
    return (bits - length).astype(np.uint32)


def bfloat16_bits(values: Any) -> Any:
    """Round float32 to nearest even and return the upper 16 bits."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def float_from_bfloat16(bits: Any) -> Any:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def integer_from_float(values: Any, kind: str) -> Any:
    """Convert whole floats, saturating; NaN gives what PTX says for the two types."""
    limits = np.iinfo(DTYPES[kind])
    low, high = values.dtype.type(limits.min), values.dtype.type(limits.max)
    # The largest integer rounds up to a power of two where the float has fewer digits: `>=` takes it in too.
    too_high, too_low, invalid = values >= high, values <= low, np.isnan(values)
    result = np.where(too_high | too_low | invalid, values.dtype.type(0), values).astype(DTYPES[kind])
    result = np.where(too_high, DTYPES[kind](limits.max), np.where(too_low, DTYPES[kind](limits.min), result))
    narrow = values.dtype.itemsize < 8 and limits.bits < 64
    of_nan = 0 if narrow else 1 << (limits.bits - 1)
    return np.where(invalid, np.uint64(of_nan).astype(DTYPES[kind]), result)


CLASSES = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: ~np.isnan(a),
    "notanumber": np.isnan,
    "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
    "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
}

ROUNDED_TO_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}

COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def float_comparison(name: str) -> Any:
    """Return the comparison of floats called `name`: ordered, unordered (``ltu``), or for NaN alone."""
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":
        # In PTX an ordered comparison with NaN is false, that for inequality too.
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    if len(name) == 3 and name[2] == "u":
        ordered = COMPARISONS[name[:2]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    return COMPARISONS[name]
