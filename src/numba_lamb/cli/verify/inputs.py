"""The weights and gradients of ``numba-lamb verify``: a hash of counters, made floats by exact arithmetic.

Stored digests need inputs that no release and no machine can change. NumPy keeps the streams of its bit
generators, but not what ``Generator`` makes of them; ``sin`` and ``exp`` differ from one C library to the next.
Element ``i`` of stream ``s`` (0: weights, ``t``: gradients of step ``t``) is therefore SplitMix64's hash of the
counter ``2^32 s + i``: integers modulo 2^64. Floats are made of its bits by powers of two, without rounding.

References
----------
G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Arrays: TypeAlias = dict[str, NDArray[Any]]

DTYPES = ("float32", "float64")
SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "one": (1,),
    "bias": (7,),
    "few": (33,),
    "below a row": (127,),
    "row": (128,),
    "above a row": (129,),
    "two rows": (255,),
    "matrix": (40, 30),
    "kernel": (5, 3, 2, 2),
    "above a chunk": (4097,),
    "three chunks": (9000,),
    "zeros": (40,),
}
"""One layer of each dtype: 16 chunks, which is where threads begin. ``bias`` is what LARS leaves alone."""
SUBNORMAL = "row"
"""The layer whose gradients are subnormal numbers."""
ZERO_STEPS = 8
"""Steps in which the layer of zeros has gradients of 0: it has norms of 0, and then a first step of its own."""
_POWERS = 0.5 ** np.arange(8)


def hashed(counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits for each counter: SplitMix64's increment and finalizer."""
    z = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def weights() -> Arrays:
    """Return the weights before the first step: in (-1, 1), over 8 binary orders; one layer of zeros."""
    found = {}
    for dtype in DTYPES:
        layers = _cut(_floats(_bits(0), dtype))
        layers["zeros"] = np.zeros(SHAPES["zeros"], dtype)
        found.update({f"{dtype} {name}": values for name, values in layers.items()})
    return found


def gradients(step: int) -> Arrays:
    """Return the gradients of the 1-based `step`: as `weights`, times 1, 1/2, 1/4 and 1/8 by turns."""
    found, bits = {}, _bits(step)
    for dtype in DTYPES:
        layers = _cut(_floats(bits, dtype) * np.dtype(dtype).type(_POWERS[step % 4]))
        layers[SUBNORMAL] = _subnormal(_cut(bits)[SUBNORMAL], dtype)
        if step <= ZERO_STEPS:
            layers["zeros"] = np.zeros(SHAPES["zeros"], dtype)
        found.update({f"{dtype} {name}": values for name, values in layers.items()})
    return found


def _bits(stream: int) -> NDArray[np.uint64]:
    count = sum(map(prod, SHAPES.values()))
    return hashed(np.arange(count, dtype=np.uint64) + np.uint64(stream << 32))


def _floats(bits: NDArray[np.uint64], dtype: str) -> NDArray[Any]:
    """Return an odd integer of 24 or 53 bits for each 64, as a fraction, times 2^-k with k below 8."""
    digits = 24 if dtype == "float32" else 53
    # The dtype holds the integer, and odd ones are not 0; k is from the bits at the other end.
    odd = (bits >> np.uint64(63 - digits)).astype(np.int64) | 1
    scale = _POWERS[(bits & np.uint64(7)).astype(np.intp)] * 0.5**digits
    numbers: NDArray[Any] = (odd - (1 << digits)).astype(dtype) * scale.astype(dtype)
    return numbers


def _subnormal(bits: NDArray[np.uint64], dtype: str) -> NDArray[Any]:
    """Return subnormal numbers of either sign, whose fraction is all that their bits hold."""
    fraction, sign = (41, 31) if dtype == "float32" else (12, 63)
    found = (bits >> np.uint64(fraction)) | ((bits & np.uint64(1)) << np.uint64(sign))
    numbers: NDArray[Any] = found.astype(np.uint32 if dtype == "float32" else np.uint64).view(dtype)
    return numbers


def _cut(flat: NDArray[Any]) -> Arrays:
    layers, start = {}, 0
    for name, shape in SHAPES.items():
        layers[name] = flat[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return layers
