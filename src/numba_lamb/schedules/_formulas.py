"""The curves that the schedules share, each written once, in the order of operations of the sources.

The order matters: with it the tables, the annealing by samples and the warm-booting cosine have the bits of
their sources.
"""

import math


def power(base: float, exponent: float) -> float:
    """Return ``base ** exponent``, infinite where it is too large for a float, as C's ``pow`` has it."""
    try:
        return float(base**exponent)
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf


def ramp(start: float, end: float, t: float, length: float) -> float:
    """Return the straight line from ``start`` at ``t = 0`` to ``end`` at ``t = length``."""
    return start + (end - start) * t / length


def half_cosine(start: float, end: float, t: float, length: float) -> float:
    """Return the half cosine wave from ``start`` at ``t = 0`` to ``end`` at ``t = length``."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * t / length))


def polynomial(start: float, end: float, t: float, length: float, exponent: float) -> float:
    """Return ``end`` plus the part of ``start - end`` that ``(1 - t / length) ** exponent`` leaves."""
    return (start - end) * power(1 - t / length, exponent) + end
