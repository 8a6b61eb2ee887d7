"""How values are stored in fewer bits: the rules against NumPy, ml_dtypes, and what their table says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_lamb.kernels.cpu.rows import storage as compiled
from numba_lamb.numerics import storage as text

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
CHANCES = np.arange(0, 2**16, 7).tolist()
patterns = st.one_of(
    st.integers(0, 2**32 - 1),
    # Around the borders of float16, and ties.
    st.integers(0x3300_0000, 0x4800_0000),
    st.builds(lambda high, low, sign: high << 16 | low | sign << 31, st.integers(0, 0x7FFF),
              st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]), st.integers(0, 1)),
)  # fmt: skip


def number(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def same(one: np.float32, other: np.float32) -> bool:
    return bool(np.isnan(one) and np.isnan(other)) or one.tobytes() == other.tobytes()


@pytest.mark.slow
def test_every_pattern_of_16_bits_is_read_exactly() -> None:
    for half in range(2**16):
        stored = np.array([half], np.uint16)
        for dtype, read in ((np.float16, text.from_float16), (ml_dtypes.bfloat16, text.from_bfloat16)):
            assert same(np.float32(read(half)), stored.view(dtype).astype(np.float32)[0]), half


@given(patterns)
def test_a_number_is_stored_as_numpy_does_and_a_split_master_is_exact(bits: int) -> None:
    x = number(bits)
    high = text.split_high(bits)
    rest = np.uint32(text.split_rest(bits, high)).astype(np.uint16).view(np.int16)
    with np.errstate(over="ignore", invalid="ignore"):
        single, half = np.float32(x), np.float16(x)
        near = single.astype(ml_dtypes.bfloat16)
    if np.isnan(x):
        assert text.to_float16(x) & 0x7FFF == 0x7E00
        assert np.isnan(text.joined(high, int(rest)))
        return
    assert text.to_float16(x) == half.view(np.uint16)
    assert same(np.float32(text.joined(high, int(rest))), x)
    # As near as the nearest even, and away from zero where both are.
    if bits & 0xFFFF != 0x8000:
        assert high == int(np.array(near).view(np.uint16))
    else:
        assert high == (bits >> 16) + 1


@given(patterns, st.integers(0, 2**16 - 1))
def test_compiled_rules_give_the_bits_of_their_text(bits: int, chance: int) -> None:
    x = number(bits)
    size = np.float32(abs(x))
    with np.errstate(all="ignore"):
        assert compiled.to_float16(x) == text.to_float16(x)
        assert compiled.split_high(np.uint32(bits)) == text.split_high(bits)
        assert compiled.random_bfloat16(x, np.uint32(chance)) == text.random_bfloat16(x, chance)
        assert compiled.random_float16(x, np.uint32(chance)) == text.random_float16(x, chance)
        assert compiled.stored_second(size, np.uint32(chance)) == text.stored_second(size, chance)
        if np.isfinite(x):
            scale = text.row_scale(size * np.float32(1.5)) if np.isfinite(size * np.float32(1.5)) else size
            inverse = np.float32(1) / scale
            assert compiled.code_of_first(x, scale, inverse, np.uint32(chance)) == text.code_of_first(
                x, scale, inverse, chance
            )


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**62), st.integers(0, 2**40))
def test_hashes_are_the_same_compiled(seed: int, parameter: int, step: int, chunk: int) -> None:
    keys = [where.chunk_key(seed, parameter, step, chunk, text.WEIGHTS) for where in (compiled, text)]
    assert keys[0] == keys[1]
    assert compiled.random_bits(keys[0], 17) == text.random_bits(keys[1], 17)


@pytest.mark.parametrize("x", [1.001, -3e-5, 6.1e-5, 5e-7, 60000.0, 1e-30])
def test_random_rounding_is_exact_on_average(x: float) -> None:
    single = np.float32(x)
    wide = np.mean([float(text.from_bfloat16(text.random_bfloat16(single, c))) for c in CHANCES])
    assert wide == pytest.approx(float(single), rel=1e-5)
    if abs(x) > 1e-8:
        small = np.mean([float(text.from_float16(text.random_float16(single, c))) for c in CHANCES])
        assert small == pytest.approx(float(single), rel=1e-4)


def test_finite_numbers_stay_finite_and_positive_second_moments_positive() -> None:
    largest = np.finfo(np.float32).max
    for chance in (0, 0xFFFF):
        assert math.isfinite(text.from_bfloat16(text.random_bfloat16(largest, chance)))
        assert text.from_float16(text.random_float16(np.float32(65519), chance)) == 65504
        assert np.isinf(text.from_float16(text.random_float16(np.float32(65520), chance)))
        assert text.from_bfloat16(text.stored_second(np.float32(1e-45), chance)) > 0
        assert text.stored_second(np.float32(0), chance) == 0
        scale = np.float32(4)
        assert text.code_of_second(np.float32(1e-30), scale, 1 / scale, chance) == 1
        assert text.code_of_second(np.float32(0), scale, 1 / scale, chance) == 0


@pytest.mark.parametrize("size", [1.0, 0.5, 0.013, 1e-4])
def test_codes_are_in_order_reach_their_ends_and_are_exact_on_average(size: float) -> None:
    scale = np.float32(3.0)
    inverse = np.float32(1) / scale
    firsts = [float(text.first_from_code(np.float32(code), scale)) for code in range(-127, 128)]
    seconds = [float(text.second_from_code(np.float32(code), scale)) for code in range(256)]
    assert firsts == sorted(set(firsts))
    assert seconds == sorted(set(seconds))
    assert (firsts[0], firsts[-1], seconds[0], seconds[-1]) == (-3.0, 3.0, 0.0, 3.0)
    x = np.float32(size * 3)
    first = np.mean([firsts[127 + int(text.code_of_first(-x, scale, inverse, c))] for c in CHANCES])
    second = np.mean([seconds[int(text.code_of_second(x, scale, inverse, c))] for c in CHANCES])
    assert first == pytest.approx(-float(x), rel=2e-3)
    assert second == pytest.approx(float(x), rel=2e-3)


def test_codes_are_those_that_are_read_back() -> None:
    """A zero without a sign, and where the scale is infinite what every processor makes of a NaN."""
    tiny, scale, infinite = np.float32(-1e-30), np.float32(1), np.float32(np.inf)
    for code in (text.code_of_first, compiled.code_of_first):
        assert not np.signbit(np.float32(code(tiny, scale, scale, np.uint32(0xFFFF))))
        with np.errstate(invalid="ignore"):
            assert code(infinite, infinite, np.float32(0), np.uint32(7)) == 0
    for code in (text.code_of_second, compiled.code_of_second):
        with np.errstate(invalid="ignore"):
            assert code(infinite, infinite, np.float32(0), np.uint32(7)) == 1


def test_a_parameter_that_others_wrote_is_taken_as_it_is() -> None:
    for half in (0, 0x8000, 0x7F80, 0xFF80):
        for rest in (-0x8000, -1, 1, 0x7FFF):
            found = np.float32(text.joined(half, rest))
            assert not np.isnan(found)
    assert text.mastered(np.float32(1.0), 0x4000) == 2.0
    assert text.mastered(np.float32(1.0001), 0x3C00) == np.float32(1.0001)
