"""Single instructions compute what PTX and IEEE 754 say."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.cuda.ptx.interpreter import PtxError
from tests.cuda.ptx.texts import evaluate, same

FLOAT_VALUES = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    np.inf,
    -np.inf,
    np.nan,
    1e-40,
    -3e-45,
    3.4e38,
    1.17549435e-38,
    16777217.0,
]


def pairs(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore", under="ignore"):
        values = np.array(FLOAT_VALUES, dtype)
    first, second = np.meshgrid(values, values)
    return first.ravel(), second.ravel()


def exact_float32(value: Fraction) -> np.float32:
    """Round once to float32: by way of a float64 rounded to odd."""
    near = float(value)
    if Fraction(near) != value and np.float64(near).view(np.int64) % 2 == 0:
        near = math.nextafter(near, math.inf if value > Fraction(near) else -math.inf)
    return np.float32(near)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["add", "sub.rn", "mul.rn", "div.rn"])
def test_float_operations_are_rounded_as_ieee_says(name: str, dtype: Any) -> None:
    a, b = pairs(dtype)
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name[:3]]
    with np.errstate(all="ignore"):
        expected = operation(a, b)
    assert same(evaluate(f"{name}.f{8 * a.itemsize} D, A, B;", dtype, a, b), expected)


def test_square_root_and_sign_operations() -> None:
    a = np.array(FLOAT_VALUES, np.float32)
    with np.errstate(all="ignore"):
        assert same(evaluate("sqrt.rn.f32 D, A;", np.float32, a), np.sqrt(a))
        assert same(evaluate("rcp.rn.f32 D, A;", np.float32, a), np.float32(1) / a)
    assert same(evaluate("neg.f32 D, A;", np.float32, a), -a)
    assert same(evaluate("abs.f32 D, A;", np.float32, a), np.abs(a))
    assert same(evaluate("copysign.f32 D, A, B;", np.float32, a, a[::-1]), np.copysign(a[::-1], a))
    classes = evaluate("testp.finite.f32 P, A; selp.u32 D, 1, 0, P;", np.uint32, a)
    assert classes.tolist() == np.isfinite(a).tolist()


def test_minimum_passes_nan_over_and_orders_zeros() -> None:
    a = np.array([np.nan, 1, np.nan, 0.0, -0.0], np.float32)
    b = np.array([2, np.nan, np.nan, -0.0, 0.0], np.float32)
    assert same(evaluate("min.f32 D, A, B;", np.float32, a, b), np.float32([2, 1, np.nan, -0.0, -0.0]))
    assert same(evaluate("max.f32 D, A, B;", np.float32, a, b), np.float32([2, 1, np.nan, 0.0, 0.0]))
    assert same(evaluate("min.NaN.f32 D, A, B;", np.float32, a, b), np.float32([np.nan] * 3 + [-0.0] * 2))


def test_fma_rounds_once() -> None:
    rng = np.random.default_rng(3)
    # A product halfway between two float32, and an addend that float64 cannot hold beside it.
    tie = np.float32([1 + 2**-12, 1 + 2**-12, 2**-80])
    for dtype, exact in ((np.float32, exact_float32), (np.float64, float)):
        a, b, c = (rng.standard_normal((3, 300)) * 2.0 ** rng.integers(-30, 30, (3, 300))).astype(dtype)
        c[:150] = -(a * b)[:150]
        a[0], b[0], c[0] = tie
        expected = [
            exact(Fraction(x) * Fraction(y) + Fraction(z))
            for x, y, z in zip(*map(np.ndarray.tolist, (a, b, c)), strict=True)
        ]
        assert same(
            evaluate(f"fma.rn.f{8 * a.itemsize} D, A, B, C;", dtype, a, b, c), np.array(expected, dtype)
        )
    assert exact_float32(Fraction(float(tie[0])) ** 2 + Fraction(float(tie[2]))) != np.float32(
        float(tie[0]) ** 2 + float(tie[2])
    )


def test_product_and_sum_are_not_fused() -> None:
    a, c = np.float32([1 + 2**-12]), np.float32([-1 - 2**-11])
    product = ".reg .f32 M; mul.f32 M, A, A; add.f32 D, M, B;"
    assert evaluate(product, np.float32, a, c).tolist() == [0.0]
    assert evaluate("fma.rn.f32 D, A, A, B;", np.float32, a, c).tolist() == [2**-24]


def test_a_made_nan_is_the_canonical_one() -> None:
    a = np.uint32([0xFFC00001, 0x7F800000])
    assert evaluate("sub.f32 D, A, A;", np.uint32, a).tolist() == [0x7FFFFFFF] * 2


def test_comparisons_of_floats() -> None:
    a, b = pairs(np.float32)
    either = np.isnan(a) | np.isnan(b)
    expected = {
        "lt": a < b, "geu": (a >= b) | either, "ne": (a != b) & ~either, "neu": (a != b) | either,
        "eq": a == b, "equ": (a == b) | either, "nan": either, "num": ~either,
    }  # fmt: skip
    for name, value in expected.items():
        found = evaluate(f"setp.{name}.f32 P, A, B; selp.u32 D, 1, 0, P;", np.uint32, a, b)
        assert (found == value).all(), name
    found = evaluate(
        "setp.eq.f32 P, A, A; setp.lt.and.f32 P, A, B, !P; selp.u32 D, 1, 0, P;", np.uint32, a, b
    )
    assert not found.any()


def test_conversions() -> None:
    wide = np.array(
        [0.5, 1.5, 2.5, -0.5, -1.7, 3e9, -3e9, np.nan, np.inf, 1 + 2**-24, 2.0**-149 * 0.5, 1e300]
    )
    with np.errstate(all="ignore"):
        assert same(evaluate("cvt.rn.f32.f64 D, A;", np.float32, wide), wide.astype(np.float32))
    nearest = [0, 2, 2, 0, -2, 2**31 - 1, -(2**31), 0, 2**31 - 1, 1, 0, 2**31 - 1]
    found = evaluate("cvt.rni.s32.f64 D, A;", np.int32, wide)
    assert found.tolist()[:7] == nearest[:7]
    assert evaluate("cvt.rni.s32.f32 D, A;", np.int32, wide[:8].astype(np.float32))[7] == 0
    assert evaluate("cvt.rzi.u32.f64 D, A;", np.uint32, wide).tolist()[:7] == [
        0,
        1,
        2,
        0,
        0,
        3_000_000_000,
        0,
    ]
    whole = np.array([2**24 + 1, -(2**62) - 1, 2**63 - 1, -3])
    assert same(evaluate("cvt.rn.f32.s64 D, A;", np.float32, whole), whole.astype(np.float32))
    assert same(evaluate("cvt.rn.f32.u64 D, A;", np.float32, whole), whole.view(np.uint64).astype(np.float32))
    assert evaluate("cvt.s64.s8 D, A;", np.int64, np.uint32([0x1FF, 0x7F])).tolist() == [-1, 127]
    half = np.float32([1.0, 65520, 1 + 2**-11, np.nan])
    with np.errstate(over="ignore"):
        expected = half.astype(np.float16)
    assert same(evaluate("cvt.rn.f16.f32 D, A;", np.uint16, half).view(np.float16), expected)


def test_integer_operations() -> None:
    rng = np.random.default_rng(8)
    for dtype in (np.int32, np.uint32, np.int64, np.uint64):
        limits = np.iinfo(dtype)
        a, b = rng.integers(limits.min, limits.max, (2, 200), dtype)
        b[::2] = rng.integers(1, 50, 100)
        kind = f"{'s' if limits.min else 'u'}{limits.bits}"
        exact = [(int(x), int(y)) for x, y in zip(a, b, strict=True)]
        quotients = [abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) for x, y in exact]
        assert evaluate(f"div.{kind} D, A, B;", dtype, a, b).tolist() == quotients
        remainders = [x - q * y for (x, y), q in zip(exact, quotients, strict=True)]
        assert evaluate(f"rem.{kind} D, A, B;", dtype, a, b).tolist() == remainders
        assert evaluate(f"mul.hi.{kind} D, A, B;", dtype, a, b).tolist() == [
            x * y >> limits.bits for x, y in exact
        ]
        low = evaluate(f"mul.lo.{kind} D, A, B;", dtype, a, b).view(f"u{a.itemsize}")
        assert low.tolist() == [x * y % 2**limits.bits for x, y in exact]
    with pytest.raises(PtxError, match=r"division by zero(.|\n)*thread 1"):
        evaluate("div.u32 D, A, B;", np.uint32, np.uint32([5, 5]), np.uint32([1, 0]))


def test_bit_operations() -> None:
    a, b = np.uint32([0x80000001, 0x12345678, 0]), np.uint32([0xF0F0F0F0, 0xFFFFFFFF, 7])
    assert evaluate("clz.b32 D, A;", np.uint32, a).tolist() == [0, 3, 32]
    assert evaluate("popc.b32 D, A;", np.uint32, a).tolist() == [2, 13, 0]
    assert evaluate("shr.s32 D, A, 40;", np.uint32, a).tolist() == [0xFFFFFFFF, 0, 0]
    assert evaluate("shl.b32 D, A, 32;", np.uint32, a).tolist() == [0, 0, 0]
    assert evaluate("bfe.u32 D, A, 4, 8;", np.uint32, a).tolist() == [0, 0x67, 0]
    assert evaluate("bfi.b32 D, A, B, 8, 4;", np.uint32, a, b).tolist() == [0xF0F0F1F0, 0xFFFFF8FF, 7]
    assert evaluate("prmt.b32 D, A, B, 0x7610;", np.uint32, a, b).tolist() == [0xF0F00001, 0xFFFF5678, 0]
    assert evaluate("lop3.b32 D, A, B, A, 0x3C;", np.uint32, a, b).tolist() == (a ^ b).tolist()
    assert evaluate("shf.l.wrap.b32 D, A, B, 4;", np.uint32, a, b).tolist() == [0x0F0F0F08, 0xFFFFFFF1, 0x70]
