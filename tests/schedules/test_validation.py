"""Which arguments are refused, and how: the sources' own answers, then ours where the sources have none."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from numba_lamb import schedules

CASES = json.loads((Path(__file__).parents[1] / "golden" / "validation.json").read_text())["cases"]
NAMES = {name: getattr(schedules, name) for name in schedules.__all__}
NAMES["mf"] = SimpleNamespace(**NAMES)
OURS = [case for case in CASES if re.match(r"(mf\.)?(\w+)\(", case["expr"])[2] in NAMES]

# Where we answer otherwise, on purpose.
DIFFERENCES = {
    # An integer is a number.
    "ExponentialDecayLR(1, 0.9, 4)": "ok",
    "ExponentialDecayLR(0.1, 1, 4)": "ok",
    "WarmUpLR(1, 5)": "ok",
    "inverse_decay_lr(0.1, 1, 6, 2, 1)": "ok",
    "cosine_decay_lr(0, 0.1, 6, 2, 2)": "ok",
    "cosine_decay_lr(0.01, 1, 6, 2, 2)": "ok",
    "polynomial_decay_lr(0.1, 0.01, 6, 2, 2, 1)": "ok",
    "warmup_lr(1, 6, 2, 2)": "ok",
    # Refused when made, where the source fails at the first call.
    "mf.LearningRateWiseLayer(WarmUpLR(0.1, 5), '0.5')": "TypeError",
}


@pytest.mark.parametrize("case", OURS, ids=lambda case: case["expr"])
def test_answers_as_the_source(case):
    expected = DIFFERENCES.get(case["expr"], case["result"])
    try:
        eval(case["expr"], dict(NAMES))
        result = "ok"
    except Exception as error:
        result = type(error).__name__
    assert result == expected


def test_every_case_and_difference_is_used():
    assert len(OURS) == 60
    by_name = {case["expr"]: case["result"] for case in OURS}
    assert all(by_name[expression] != result for expression, result in DIFFERENCES.items())


BAD = [
    ("ExponentialDecayLR(True, 0.9, 4)", TypeError, "learning_rate must be a number, got True"),
    ("ExponentialDecayLR(np.True_, 0.9, 4)", TypeError, "learning_rate must be a number"),
    ("ExponentialDecayLR('0.1', 0.9, 4)", TypeError, "learning_rate must be a number, got '0.1'"),
    ("ExponentialDecayLR(float('nan'), 0.9, 4)", ValueError, "learning_rate must be finite, got nan"),
    ("ExponentialDecayLR(10**400, 0.9, 4)", ValueError, "learning_rate must be finite"),
    ("ExponentialDecayLR(0.1, 0.0, 4)", ValueError, "decay_rate must be > 0, got 0.0"),
    ("ExponentialDecayLR(0.1, 0.9, True)", TypeError, "decay_steps must be an integer, got True"),
    ("InverseDecayLR(0.1, 0.9, 0)", ValueError, "decay_steps must be >= 1, got 0"),
    ("CosineDecayLR(0.1, 0.1, 4)", ValueError, "min_lr must be < max_lr"),
    ("WarmUpLR(0.1, 5, 6)", TypeError, "positional"),
    ("WarmUpLR(0.1, 5, foo=6)", TypeError, "foo"),
    ("ConstantWarmUpLR(0.1)", TypeError, "warmup_steps must be an integer, got None"),
    ("ConstantWarmUpLR(-0.1, 5)", ValueError, "learning_rate must be >= 0, got -0.1"),
    ("ConstantWarmUpLR(0.1, 5, foo=1)", TypeError, "foo"),
    (
        "LinearWithWarmUpLR(0.1, 10, 5, warmup_ratio=0.1)",
        ValueError,
        "warmup_steps or warmup_ratio, not both",
    ),
    ("CosineWithWarmUpLR(0.1, decay_steps=5)", TypeError, "total_steps must be an integer"),
    ("CosineWithWarmUpLR(0.1, 0, 10, decay_steps=5, decay_ratio=0.5)", ValueError, "not both"),
    ("CosineWithWarmUpLR(0.1, 0, 10, decay_ratio=1.5)", ValueError, "decay_ratio must be <= 1, got 1.5"),
    ("PolynomialWithWarmUpLR(0.1, 10, 2, power=0.5, decay_steps=7)", ValueError, "decay_steps must be >= 8"),
    ("PolynomialWithWarmUpLR(0.1, 10, 2, power=-1.0)", ValueError, "power must be >= 0"),
    ("WarmUpStableDecayLR(0.1, warmup_steps=2, total_steps=9)", TypeError, "decay_start_steps must be"),
    ("WarmUpStableDecayLR(0.1, 0.0, 2, total_steps=9, decay_start_steps=9)", ValueError, "must start before"),
    ("ConstantWithCoolDownLR(0.1, 5, decay_ratio=0.5)", ValueError, "decay_ratio=0.5 needs total_steps"),
    ("LearningRateWiseLayer(WarmUpLR, 0.5)", TypeError, "the class WarmUpLR"),
    ("LearningRateWiseLayer(None, 0.5)", TypeError, "base_lr must be a number, a table of numbers or a call"),
    ("LearningRateWiseLayer(True, 0.5)", TypeError, "base_lr must be a number"),
    ("LearningRateWiseLayer(0.1, -0.5)", ValueError, "lr_scale must be >= 0"),
    ("ExpAnnealingLR(0.1, 0.9, 0, 1)", ValueError, "learning_rate_decay_b must be > 0"),
    ("CaffePolyAnnealingLR(0.1, 0, 1, 1)", ValueError, "learning_rate_decay_a must be > 0"),
    ("PolyAnnealingLR(0.1, -1, 1, 1)", ValueError, "learning_rate_decay_a must be >= 0"),
    ("ManualAnnealingLR(0.1, '10', 1)", ValueError, "'10' in '10'"),
    ("ManualAnnealingLR(0.1, '10:1,5:1', 1)", ValueError, "must increase"),
    ("ManualAnnealingLR(0.1, '10:-1', 1)", ValueError, "learning_rate_args"),
    ("ManualAnnealingLR(0.1, 10, 1)", TypeError, "learning_rate_args must be a string"),
    ("annealing(0.1, 1, 'polly')", ValueError, "must be one of caffe_poly, constant, .* got 'polly'"),
    ("annealing(0.1, 1, None)", TypeError, "learning_rate_schedule must be a string"),
    ("annealing(0.1, 1, 'constant', 0.5)", ValueError, "learning_rate_decay_a has no effect"),
    ("annealing(0.1, 1, 'poly', learning_rate_args='1:1')", ValueError, "learning_rate_args has no effect"),
    ("annealing(0.1, 1, 'manual', 0, 0, '1:1', 5)", ValueError, "samples_per_pass has no effect"),
    ("annealing(0.1, 1, 'pass_manual', 0, 0, '1:1')", TypeError, "samples_per_pass must be an integer"),
    ("piecewise_constant_lr([2], [0.1, 0.2])", ValueError, "got 1 and 2"),
    ("piecewise_constant_lr(2, [0.1])", TypeError, "milestone must be a list or tuple"),
    ("warmup_lr(0.1, 6, 2, 0)", ValueError, "warmup_epoch must be >= 1"),
    ("cosine_decay_lr(0.0, 0.1, 6, 0, 2)", ValueError, "step_per_epoch must be >= 1"),
    ("polynomial_decay_lr(0.1, 0.0, 6, 1, 2, 1.0, 1)", TypeError, "update_decay_epoch must be True or False"),
    ("sequence([], [])", ValueError, "pieces must hold at least one"),
    ("sequence([0.1, 0.2], [])", ValueError, "one fewer than pieces, got 0 and 2"),
    ("sequence([0.1, 0.2, 0.3], [5, 5])", ValueError, r"must increase, got \[5, 5\]"),
    ("sequence([0.1, 0.2], [0])", ValueError, r"boundaries\[0\] must be >= 1"),
    ("sequence([0.1, 'x'], [1])", TypeError, r"pieces\[1\] must be a number"),
    ("sequence([[0.1, 0.2], 0.1], [3])", ValueError, r"pieces\[0\] has 2 values for the 3 steps"),
    ("sequence(0.1, [])", TypeError, "pieces must be a list or tuple"),
    ("sequence([0.1], 1)", TypeError, "boundaries must be a list or tuple"),
    ("hold_last([])", ValueError, "at least one value"),
    ("hold_last([[0.1]])", TypeError, r"table\[0\] must be a number"),
    ("hold_last(np.ones((2, 2)))", ValueError, r"one dimension, got shape \(2, 2\)"),
    ("hold_last('12')", TypeError, "table must be a list"),
    ("hold_last([0.1, float('inf')])", ValueError, r"table\[1\] must be finite"),
    ("clamp(0.1, 0.2, 0.1)", ValueError, "low must be <= high"),
    ("clamp(0.1, None, 0.1)", TypeError, "low must be a number"),
    ("WarmbootingCosineLR(0.1, 5, warmup_epoch=5)", ValueError, "epochs must be > warmup_epoch"),
    ("WarmbootingCosineLR(0.1, 9, steps=[4], epoch_scale=-4)", ValueError, "cancels the segment"),
    ("WarmbootingCosineLR(0.1, 9, steps=4)", TypeError, "steps must be a list or tuple"),
    ("WarmbootingCosineLR(0.1, 9, lf=0.5)", TypeError, "lf must be None or a function"),
]


@pytest.mark.parametrize(("expression", "kind", "message"), BAD, ids=[bad[0] for bad in BAD])
def test_refused_with_a_message(expression, kind, message):
    with pytest.raises(kind, match=message):
        eval(expression, {**NAMES, "np": np})


BAD_STEPS = [
    *((step, TypeError) for step in (1.0, True, np.True_, "1", None, [0, 1.0], {1})),
    *((np.array(step), TypeError) for step in (1.5, [0.5], [True])),
    *((step, ValueError) for step in (-1, [0, -1], np.array([-1]))),
]


@pytest.mark.parametrize(("step", "kind"), BAD_STEPS, ids=repr)
def test_steps_are_integers_from_zero(step, kind):
    with pytest.raises(kind, match="step must be"):
        schedules.WarmUpLR(0.1, 5)(step)


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        schedules.LearningRateSchedule()


def test_the_names_are_sorted():
    assert schedules.__all__ == sorted(schedules.__all__)
    assert all(hasattr(schedules, name) for name in schedules.__all__)
