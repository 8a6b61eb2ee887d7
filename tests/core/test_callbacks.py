"""The callback that sets constant rates after each step."""

import math

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.callbacks import LearningRateScheduler
from tests.helpers import golden_json, snapshot


def ones(size=2):
    return np.ones(size, np.float32)


def momentum(rate):
    return nl.Momentum({"w": ones()}, rate, 0.9)


def test_the_function_gets_rate_and_step_and_its_result_holds_from_the_next_step_on():
    seen, used = [], []
    opt = momentum(1.0)

    def record(rate, step):
        seen.append((rate, step))
        return rate / 2

    scheduler = LearningRateScheduler(record)
    for _ in range(4):
        used.append(opt.get_lr())
        opt.step([ones()])
        scheduler(opt)
    assert seen == [(1.0, 1), (0.5, 2), (0.25, 3), (0.125, 4)]
    assert used == [1.0, 0.5, 0.25, 0.125]
    assert opt.learning_rate == opt.get_lr() == 0.0625


ROWS = golden_json("misc.json")["lr_scheduler_callback"]["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]:g}")
def test_the_rate_is_seen_in_full_where_the_source_shows_eight_digits(row):
    initial, shown, halved = row
    seen = []
    opt = momentum(initial)
    LearningRateScheduler(lambda rate, step: seen.append(rate) or rate / 2)(opt)
    assert seen == [initial]
    assert opt.get_lr() == initial / 2
    assert seen[0] == pytest.approx(shown, rel=1e-7)
    assert opt.get_lr() == pytest.approx(halved, rel=1e-7)


def test_any_difference_is_assigned():
    opt = momentum(0.1)
    LearningRateScheduler(lambda rate, step: math.nextafter(rate, 1.0))(opt)
    assert opt.get_lr() == math.nextafter(0.1, 1.0)


def test_an_equal_rate_leaves_the_given_object():
    given = np.float32(0.1)
    opt = momentum(given)
    LearningRateScheduler(lambda rate, step: rate)(opt)
    assert opt.learning_rate is given


@pytest.mark.parametrize("given", [1, np.float32(0.5), np.float64(0.5), np.array(0.5)], ids=repr)
def test_constants_of_every_kind(given):
    opt = momentum(given)
    LearningRateScheduler(lambda rate, step: np.float32(rate / 2))(opt)
    assert opt.get_lr() == float(given) / 2


def test_groups_each_give_their_rate():
    seen = []
    opt = nl.Lamb(
        [
            {"params": {"a": ones()}, "lr": 0.5},
            {"params": {"b": ones()}},
            {"params": {"c": ones()}},
            {"params": {"d": ones()}, "lr": 0.25},
        ],
        learning_rate=0.125,
    )
    opt.step([ones()] * 4)
    LearningRateScheduler(lambda rate, step: seen.append((rate, step)) or rate * 2)(opt)
    assert seen == [(0.5, 1), (0.125, 1), (0.125, 1), (0.25, 1)]
    assert opt.get_lr() == (1.0, 0.25, 0.25, 0.5)
    assert opt.learning_rate == 0.25
    opt.add_param_group({"params": {"e": ones()}})
    assert opt.get_lr() == (1.0, 0.25, 0.25, 0.5, 0.25)
    opt.learning_rate = 0.0
    assert opt.get_lr() == (1.0, 0.0, 0.0, 0.5, 0.0)


def test_a_wrapped_momentum_and_its_lars_share_the_new_rate():
    inner = momentum(0.5)
    opt = nl.Lars(inner)
    opt.step([ones()])
    LearningRateScheduler(lambda rate, step: rate / 2)(opt)
    assert opt.get_lr() == inner.get_lr() == 0.25


def test_a_step_left_out_is_not_counted():
    seen = []
    opt = nl.Lamb({"w": ones()}, 0.5, nonfinite="skip")
    scheduler = LearningRateScheduler(lambda rate, step: seen.append(step) or rate)
    for value in (1.0, math.nan, 1.0):
        opt.step([np.full(2, value, np.float32)])
        scheduler(opt)
    assert seen == [1, 1, 2]


DYNAMIC = {
    "schedule": nl.schedules.WarmUpLR(0.1, 5),
    "function": lambda step: 0.1,
    "table": [0.1, 0.2],
    "array": np.array([0.1, 0.2]),
}


@pytest.mark.parametrize("given", DYNAMIC.values(), ids=DYNAMIC)
def test_schedules_and_tables_are_refused_and_nothing_changes(given):
    calls = []
    opt = nl.Lamb([{"params": {"a": ones()}, "lr": 0.5}, {"params": {"b": ones()}}], learning_rate=given)
    before = snapshot(opt)
    with pytest.raises(TypeError, match="sets constant rates, but lr of group 1 is a schedule or table"):
        LearningRateScheduler(lambda rate, step: calls.append(rate))(opt)
    assert not calls
    assert snapshot(opt) == before


BAD = [
    (None, TypeError),
    (True, TypeError),
    ("0.1", TypeError),
    (1j, TypeError),
    (-0.1, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
]


@pytest.mark.parametrize(("returned", "kind"), BAD, ids=[repr(bad[0]) for bad in BAD])
def test_what_is_no_rate_is_refused_and_nothing_changes(returned, kind):
    opt = nl.Lamb([{"params": {"a": ones()}, "lr": 0.5}, {"params": {"b": ones()}, "lr": 0.25}], 0.1)
    opt.step([ones()] * 2)
    before = snapshot(opt)
    results = iter([0.75, returned])
    with pytest.raises(kind, match=r"learning_rate_function must return .* after step 1"):
        LearningRateScheduler(lambda rate, step: next(results))(opt)
    assert snapshot(opt) == before


def test_a_rate_below_0_by_rounding_is_0():
    opt = nl.Lamb({"a": ones()}, 0.5)
    opt.step([ones()])
    LearningRateScheduler(lambda rate, step: -2.96e-20)(opt)
    assert opt.learning_rate == opt.get_lr() == 0.0


def test_the_function_must_be_one():
    with pytest.raises(TypeError, match=r"learning_rate_function must be a callable .* not float"):
        LearningRateScheduler(0.1)
