"""Momentum and LARS: which arguments are refused, compared with the sources' own answers."""

import re
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb import schedules
from tests.helpers import golden_json

CASES = golden_json("validation.json")["cases"]
OURS = [case for case in CASES if re.match(r"(Momentum|LARS)\(", case["expr"])]


class SGD:
    """The source's plain gradient descent, which this package does not have."""

    def __init__(self, params: Any, learning_rate: float) -> None:
        pass


def p(name: str, *shape: int) -> tuple[str, np.ndarray]:
    return name, np.ones(shape or (2,), np.float32)


def namespace() -> dict[str, Any]:
    return {
        **{name: getattr(schedules, name) for name in schedules.__all__},
        "Momentum": nl.Momentum,
        "LARS": nl.LARS,
        "SGD": SGD,
        "np": np,
        "p": p,
        "T": lambda values: np.array(values, np.float32),
        "ones": lambda *shape: np.ones(shape or (2,), np.float32),
        "w": p("w"),
        "b": p("b"),
    }


DIFFERENCES = {
    # Lars and Momentum are one fused kernel; the message says so and names the way out.
    "LARS(SGD([p('w')], 0.1))": ("TypeError", "must be a numba_lamb.Momentum, .* got a .*SGD; write"),
    # Trust ratios of trust ratios are nobody's algorithm.
    "LARS(LARS(Momentum([p('w')], 0.1, 0.9)))": (
        "TypeError",
        "must be a numba_lamb.Momentum, .* got a .*Lars; write",
    ),
    # The source means to raise TypeError too, but its record of arguments fails first.
    "LARS('x')": ("TypeError", "must be a numba_lamb.Momentum, .* got a str; write"),
    # A wrong count is a wrong argument, as wrong shapes are.
    "Momentum([p('w'), p('b')], 0.1, 0.9)((ones(2),))": ("ValueError", "1 .* 2|2 .* 1"),
}
"""Where we answer otherwise, on purpose: our answer and what it says."""


@pytest.mark.parametrize("case", OURS, ids=lambda case: case["expr"])
def test_answers_as_the_source(case: dict[str, str]) -> None:
    expected, message = DIFFERENCES.get(case["expr"], (case["result"], "."))
    if expected == "ok":
        eval(case["expr"], namespace())
        return
    with pytest.raises(Exception, match=message) as caught:
        eval(case["expr"], namespace())
    assert caught.type.__name__ == expected


def test_every_case_and_difference_is_used() -> None:
    assert len(OURS) == 22
    by_name = {case["expr"]: case["result"] for case in OURS}
    assert all(by_name[expression] != result for expression, (result, _) in DIFFERENCES.items())


PREFIXES = {
    "test_schedules_validation.py": set(schedules.__all__),
    "test_validation_lamb.py": {"Lamb"},
    "test_validation_others.py": {"Momentum", "LARS"},
}
"""Which file of tests answers for which calls."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["expr"])
def test_each_case_belongs_to_one_file(case: dict[str, str]) -> None:
    called = re.match(r"(?:mf\.)?(\w+)\(", case["expr"])[1]
    assert sum(called in names for names in PREFIXES.values()) == 1
