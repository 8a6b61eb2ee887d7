r"""How values are stored in fewer bits, written once for every target, and the table of it.

====================  ==========================================================================
quantity              how it is stored
====================  ==========================================================================
arithmetic            of every parameter below float64 is float32, by the table in `numba_lamb.numerics.rules`
bfloat16, float16     read exactly, subnormals, infinities and NaN included
split master          a float32 value x is a bfloat16 parameter and 16 bits: the parameter is x rounded to nearest,
                      the rest the difference of their bit patterns, in [-2^15, 2^15). Ties go away from zero: to
                      the nearest even, 65537 values would round to an even parameter, one more than 16 bits tell
                      apart. A NaN is one NaN, and the rest 0
float32 master        of a float16 parameter, which is the master rounded to the nearest even
a parameter that was  by others, and is not what its master is rounded to: the parameter is the master. Of a split
written               master only a NaN shows that; else the rest stays, and is less than half a unit
no master             the parameter is rounded up or down by 16 random bits: up with the probability of what is cut
                      off, so that the mean is exact. Below 2^-14 in float16 the cut is of the number times 2^24
random bits           of an element of a chunk, 32 in each use: a hash of its place in the chunk and of a key,
                      which is one of seed, parameter, its step, its chunk, and the use. So they are the same for
                      any threads, ranks and devices, and after a resume
bfloat16 moments      rounded up or down as above; a positive second moment never to 0
8-bit moments         128 in a row share a float32 scale, the largest magnitude. The first moment is
                      ``sign * scale * (c/127)^2`` with c up to 127 in a byte of two's complement, the second
                      ``scale * (c/255)^4``; c is rounded up or down so that the mean is exact, for a positive
                      second moment never to 0
directions            are made of moments as they are stored, in every pass
====================  ==========================================================================

As in the rules, `bits_of`, `float_of` and `multiply` stand for a target's instructions. Integers are up to 32 bits
in what is wider, hence the masks.
"""

import math
import struct
from typing import Any

import numpy as np

MASK = 0xFFFF_FFFF
INFINITE = 0x7F80_0000
# From the last bfloat16 number on there is none above that is finite.
LAST = 0x7F7F_0000
# From here on a number is rounded to infinity in float16.
FLOAT16_END = 65520.0
# Float32 patterns of 1, of 127 and 255, and of 1 over these.
ONE = 0x3F80_0000
FIRST_MOST, SECOND_MOST, FIRST_UNIT, SECOND_UNIT = 0x42FE_0000, 0x437F_0000, 0x3C01_0204, 0x3B80_8081
# The uses that random bits have.
MOMENTS, WEIGHTS, SHRUNK = range(3)
USES = 3


def bits_of(x: Any) -> Any:
    """Return the bit pattern of a float32 number: the meaning of the instruction that each target binds."""
    return struct.unpack("<I", struct.pack("<f", x))[0]


def float_of(bits: Any) -> Any:
    """Return the float32 number of the low 32 bits: the meaning of the instruction that each target binds."""
    return np.float32(struct.unpack("<f", struct.pack("<I", bits & MASK))[0])


def low(word: Any) -> Any:
    """Return the low 32 bits of an integer, as one of 32 bits: a target computes in no more then."""
    return int(word) & MASK


def multiply(a: Any, b: Any) -> Any:
    """Return a rounded product, which no sum that it feeds may take up: what each target makes sure of."""
    return a * b


# -- 16 bits -------------------------------------------------------------------------------------------------


def from_bfloat16(half: Any) -> Any:
    """Return the float32 number of a bfloat16 pattern."""
    return float_of(half << 16)


def from_float16(half: Any) -> Any:
    """Return the float32 number of a float16 pattern."""
    magnitude = low((half & 0x7FFF) << 13)
    # 2^112 moves the exponent to where float32 has it; subnormals become normal, exactly.
    scaled = bits_of(float_of(magnitude) * float_of(0x7780_0000))
    if magnitude >= 0x0F80_0000:
        scaled = low(magnitude | INFINITE)
    return float_of(scaled | ((half & 0x8000) << 16))


def to_float16(x: Any) -> Any:
    """Return the float16 pattern of a float32 number rounded to the nearest even."""
    bits = bits_of(x)
    magnitude = low(bits & 0x7FFF_FFFF)
    normal = low(low(magnitude + ((magnitude >> 13) & 1) - 0x37FF_F001) >> 13)
    # The addition rounds to a multiple of 2^-24, the unit of subnormals.
    small = low(bits_of(float_of(magnitude) + float_of(0x3F00_0000)) & 0x7FFF)
    found = normal if magnitude >= 0x3880_0000 else small
    if magnitude >= 0x4780_0000:
        found = low(0x7E00) if magnitude > INFINITE else low(0x7C00)
    return low(found | ((bits >> 16) & 0x8000))


# -- masters -------------------------------------------------------------------------------------------------


def split_high(bits: Any) -> Any:
    """Return the bfloat16 pattern nearest to a float32 pattern, of two the one away from zero."""
    high = low(low(bits + 0x8000) >> 16)
    return low(0x7FC0) if low(bits & 0x7FFF_FFFF) > INFINITE else high


def split_rest(bits: Any, high: Any) -> Any:
    """Return what `split_high` leaves, as the low 16 bits of a signed number."""
    rest = low(low(bits - (high << 16)) & 0xFFFF)
    return low(0) if low(bits & 0x7FFF_FFFF) > INFINITE else rest


def joined(high: Any, rest: Any) -> Any:
    """Return the float32 number of a bfloat16 pattern and the rest, a signed number."""
    bits = low((high << 16) + rest)
    if low(bits & 0x7FFF_FFFF) > INFINITE:
        # No such rest belongs to this parameter, which others have written then.
        bits = low(high << 16)
    return float_of(bits)


def mastered(master: Any, half: Any) -> Any:
    """Return the float32 master of a float16 pattern: the parameter itself where others have written it."""
    return master if to_float16(master) == half else from_float16(half)


# -- random rounding -----------------------------------------------------------------------------------------


def mixed(word: Any) -> Any:
    """Return a hash of the low 32 bits, one to one."""
    word = low(word)
    word = low(word ^ (word >> 16))
    word = low(word * 0x7FEB_352D)
    word = low(word ^ (word >> 15))
    word = low(word * 0x846C_A68B)
    return low(word ^ (word >> 16))


def layer_key(seed: Any, parameter: Any, step: Any, use: Any) -> Any:
    """Return what the keys of a layer's chunks are made of, 32 bits; arguments up to 2^63 but for `use`."""
    key = mixed(use + 0x9E37_79B9)
    key = mixed(key ^ low(seed))
    key = mixed(key + low(seed >> 32))
    key = mixed(key ^ low(parameter))
    key = mixed(key ^ low(step))
    return mixed(key + low(step >> 32))


def key_in_layer(key: Any, chunk: Any) -> Any:
    """Return the key of a chunk's random bits, given `layer_key`."""
    return mixed(mixed(key ^ low(chunk)) + low(chunk >> 32))


def chunk_key(seed: Any, parameter: Any, step: Any, chunk: Any, use: Any) -> Any:
    """Return the key of a chunk's random bits, 32 bits; arguments up to 2^63 but for `use`."""
    return key_in_layer(layer_key(seed, parameter, step, use), chunk)


def random_bits(key: Any, place: Any) -> Any:
    """Return 32 random bits for an element of a chunk."""
    return mixed(low(place) ^ low(key))


def half_of(bits: Any, upper: Any) -> Any:
    """Return 16 of an element's 32 random bits: the upper ones are for the second moment."""
    return low(bits >> 16) if upper else low(bits & 0xFFFF)


def random_bfloat16(x: Any, chance: Any) -> Any:
    """Return the bfloat16 pattern below or above a float32 number, as 16 random bits have it.

    A finite number stays one; a NaN is a quiet one, as arithmetic makes it.
    """
    bits = bits_of(x)
    added = chance if low(bits & 0x7FFF_FFFF) < LAST else low(0)
    return low(low(bits + added) >> 16)


def random_float16(x: Any, chance: Any) -> Any:
    """Return the float16 pattern below or above a float32 number, as 16 random bits have it."""
    bits = bits_of(x)
    magnitude = low(bits & 0x7FFF_FFFF)
    normal = low(low(magnitude + (chance >> 3) - 0x3800_0000) >> 13)
    # In units of subnormals, with 16 bits after the point: exact but for what is below them.
    units = float_of(min(magnitude, low(0x3880_0000))) * float_of(0x5380_0000)
    small = low(low(np.int32(units) + chance) >> 16)
    found = min(normal, low(0x7BFF)) if magnitude >= 0x3880_0000 else small
    # What is nearer to 2^16 than to the largest number is infinite, as it is where nothing is random.
    if magnitude >= 0x477F_F000:
        found = low(0x7E00) if magnitude > INFINITE else low(0x7C00)
    return low(found | ((bits >> 16) & 0x8000))


def stored_second(x: Any, chance: Any) -> Any:
    """Return the bfloat16 pattern of a second moment: `random_bfloat16`, but a positive one is not 0."""
    return max(random_bfloat16(x, chance), min(bits_of(x), low(1)))


# -- 8 bits --------------------------------------------------------------------------------------------------


def row_scale(largest: Any) -> Any:
    """Return the scale of a row with this largest magnitude, a normal number."""
    least = float_of(0x0080_0000)
    return least if largest < least else largest


def first_from_code(code: Any, scale: Any) -> Any:
    """Return the first moment of a code from -127 to 127, a float32 number."""
    root = code * float_of(FIRST_UNIT)
    return multiply(root * abs(root), scale)


def second_from_code(code: Any, scale: Any) -> Any:
    """Return the second moment of a code from 0 to 255, a float32 number."""
    root = code * float_of(SECOND_UNIT)
    square = root * root
    return multiply(square * square, scale)


def code_below(root: Any, most: Any) -> Any:
    """Return the code at or below a root in units of codes, and below the largest code; 0 for a NaN."""
    # Processors convert a NaN to different integers.
    number = root if root == root else float_of(0)
    return min(np.float32(np.int32(number)), most - float_of(ONE))


def code_between(size: Any, below: Any, above: Any, code: Any, chance: Any) -> Any:
    """Return `code`, whose value is `below`, or the next, `above`: so that the mean of both is `size`."""
    # Where the values are not apart the lower stays.
    up = np.float32(np.int32(chance)) * (above - below) < (size - below) * float_of(0x4780_0000)
    return code + float_of(ONE) if up else code


def code_of_first(m: Any, scale: Any, inverse: Any, chance: Any) -> Any:
    """Return the code of a first moment, at most `scale` in size; `chance` is 16 random bits.

    `inverse` is one over the scale.
    """
    size, most = abs(m), float_of(FIRST_MOST)
    code = code_below(math.sqrt(size * inverse) * most, most)
    below, above = first_from_code(code, scale), first_from_code(code + float_of(ONE), scale)
    found = code_between(size, below, above, code, chance)
    # Not minus 0, which a byte does not tell from 0.
    return float_of(0) - found if m < 0 else found


def code_of_second(v: Any, scale: Any, inverse: Any, chance: Any) -> Any:
    """Do `code_of_first` for a second moment; where it is positive, the code is not 0."""
    most = float_of(SECOND_MOST)
    code = code_below(math.sqrt(math.sqrt(v * inverse)) * most, most)
    below, above = second_from_code(code, scale), second_from_code(code + float_of(ONE), scale)
    found = code_between(v, below, above, code, chance)
    return float_of(ONE) if found == 0 and v > 0 else found
