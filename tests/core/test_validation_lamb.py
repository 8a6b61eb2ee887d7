"""MindSpore's own answer to what Lamb and its groups are given, compared with ours."""

from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb import schedules
from tests.helpers import golden_json


def p(name: str, *shape: int) -> tuple[str, np.ndarray]:
    return name, np.ones(shape or (2,), np.float32)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape or (2,), np.float32)


def namespace() -> dict[str, Any]:
    """What the expressions may use; arrays are new each time."""
    return {
        "np": np,
        "p": p,
        "T": lambda values: np.array(values, np.float32),
        "ones": ones,
        "w": p("w"),
        "b": p("b"),
        "Lamb": nl.Lamb,
        "WarmUpLR": schedules.WarmUpLR,
    }


PREFIXES = ("Lamb(",)
"""Which expressions are ours to answer."""

CASES = {
    case["expr"]: case["result"]
    for case in golden_json("validation.json")["cases"]
    if case["expr"].startswith(PREFIXES)
}

DIFFERENT = {
    "Lamb([p('w')], np.float32(0.1))": ("ok", "a rate is any real number"),
    "Lamb([p('w')], np.array(0.1))": ("ok", "a 0-d array is a rate"),
    "Lamb([p('w')], np.array([[0.1, 0.2]]))": (
        "ValueError",
        "refused at construction, there at the first call",
    ),
    "Lamb([p('w')], 0.1, weight_decay=[0.1])": ("ok", "decay takes the forms of a rate"),
    "Lamb([p('w')], 0.1, weight_decay='0.1')": ("ValueError", "the same error as for a rate"),
    "Lamb([ones()], 0.1)": ("ok", "plain arrays are parameters here"),
    "Lamb([{'params': [w]}, {'order_params': ['w']}], 0.1)": ("ok", "order_params takes names"),
    "Lamb([p('w')], 0.1).get_lr_parameter(p('zz'))": ("AttributeError", "get_lr_parameter is not offered"),
}
"""Expressions that we answer otherwise on purpose: our answer and the reason."""


def answer(expression: str) -> str:
    try:
        eval(expression, namespace())
    except Exception as error:
        return type(error).__name__
    return "ok"


@pytest.mark.parametrize("expression", CASES)
def test_answers_as_the_source(expression: str) -> None:
    ours, _ = DIFFERENT.get(expression, (CASES[expression], ""))
    assert answer(expression) == ours


def test_every_difference_is_one() -> None:
    assert len(CASES) == 66
    assert all(CASES[expression] != ours for expression, (ours, _) in DIFFERENT.items())


def test_a_negative_entry_of_a_table_is_refused_when_it_is_used() -> None:
    opt = nl.Lamb([p("w")], [0.1, -0.2])
    opt.step([ones()])
    with pytest.raises(
        ValueError, match=r"learning_rate at step 1 must be a number >= 0 and finite, got -0.2"
    ):
        opt.step([ones()])
