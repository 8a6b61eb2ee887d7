"""Pieces of every kind, tables that end, text that is no schedule, and plots."""

import math
import re
import sys

import numpy as np
import pytest

from numba_lamb import schedules
from numba_lamb._install import how_to_install
from numba_lamb.schedules import WarmUpLR, clamp, hold_last, parse, scale, sequence


def half(step):
    return 0.5 / (1 + step)


def test_pieces_of_every_kind():
    joined = sequence([0.1, np.array([0.2, 0.3]), half, WarmUpLR(0.4, 2), np.float32(0.5)], (1, 3, 5, 8))
    assert joined(range(10)).tolist() == [0.1, 0.2, 0.3, 0.5, 0.25, 0.0, 0.2, 0.4, 0.5, 0.5]
    assert joined == sequence([0.1, (0.2, 0.3), half, WarmUpLR(0.4, 2), 0.5], [1, 3, 5, 8])


def test_a_table_has_an_end():
    table = sequence([WarmUpLR(0.1, 4), [0.2, 0.1]], [4])
    assert table(5) == 0.1
    with pytest.raises(IndexError, match=r"the table has 2 values, none for step 2; hold_last"):
        table(6)
    assert sequence([WarmUpLR(0.1, 4), hold_last([0.2, 0.1])], [4])(600) == 0.1


def test_what_is_given_is_copied():
    table = [0.1, 0.2]
    held = hold_last(table)
    table[1] = 0.9
    assert held(1) == 0.2


def test_nan_is_not_hidden():
    assert math.isnan(clamp(lambda step: math.nan, 0.1, 0.2)(0))


@pytest.mark.parametrize("value", [None, "0.1", True])
def test_a_callable_must_return_a_number(value):
    with pytest.raises(TypeError, match=rf"returned {value!r} for step 3, not a number"):
        scale(lambda step: value, 1.0)(3)


def test_a_numpy_result_becomes_a_float():
    assert type(scale(lambda step: np.float32(0.5), 1.0)(0)) is float


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("WarmUpLR(0.1, 5)", WarmUpLR(0.1, 5)),
        ("  WarmUpLR(learning_rate=1e-1,\n  warmup_steps=5)\n", WarmUpLR(0.1, 5)),
        ("scale(hold_last(warmup_lr(0.1, 4, 1, 2)), 0.5)", scale(hold_last([0.0, 0.05, 0.1, 0.1]), 0.5)),
        ("sequence([WarmUpLR(0.1, 5), (0.1, 0.2)], [5])", sequence([WarmUpLR(0.1, 5), (0.1, 0.2)], [5])),
        ("clamp(0.1, -1.0, 1)", clamp(0.1, -1.0, 1.0)),
        ("annealing(0.1, 32, 'linear', 1e-4)", schedules.LinearAnnealingLR(0.1, 1e-4, 0, 32)),
        ("annealing(1, 8, 'manual', learning_rate_args='9:1')", schedules.ManualAnnealingLR(1, "9:1", 8)),
        ("ConstantWarmUpLR(0.1, None, 0, 0.5, 10)", schedules.ConstantWarmUpLR(0.1, 5)),
    ],
)
def test_parse(text, schedule):
    assert parse(text)([0, 1, 5]).tolist() == schedule([0, 1, 5]).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("WarmupLR(0.1, 5)", "unknown schedule 'WarmupLR': did you mean WarmUpLR"),
        ("scale(CosinDecayLR(0, 1, 5), 1)", "unknown schedule 'CosinDecayLR': did you mean CosineDecayLR"),
        ("zzz(1)", "unknown schedule 'zzz': known are .*WarmUpLR"),
        ("CosineAnnealingWarmbootingLR(None)", "unknown schedule 'CosineAnnealingWarmbootingLR'"),
        ("LearningRateSchedule()", "unknown schedule"),
        ("parse('WarmUpLR(0.1, 5)')", "unknown schedule 'parse'"),
        ("__import__('os').system('true')", r"\"__import__\('os'\).system\('true'\)\" is neither a literal"),
        ("WarmUpLR(0.1, 2 % 3)", r"'2 % 3' is neither"),
        ("WarmUpLR(0.1, [s for s in (1,)])", "is neither"),
        ("WarmUpLR(0.1, {})", "'{}' is neither"),
        ("WarmUpLR(0.1, b'5')", "is neither"),
        ("WarmUpLR(0.1, -True)", "'-True' is neither"),
        ("WarmUpLR(0.1, 1j)", "'1j' is neither"),
        ("WarmUpLR(0.1, ...)", "is neither"),
        ("WarmUpLR(*(0.1, 5))", r"'\*\(0.1, 5\)' is neither"),
        ("WarmUpLR(**{})", r"\*\* cannot be used"),
        ("WarmUpLR(0.1, warmup_steps=5, warmup_steps=6)", "given twice|repeated"),
        ("WarmUpLR(0.1, 0)", r"'WarmUpLR\(0.1, 0\)': warmup_steps must be >= 1, got 0"),
        ("WarmUpLR(0.1, 5, 6)", r"'WarmUpLR\(0.1, 5, 6\)': .*positional"),
        ("WarmUpLR(1e999, 5)", "learning_rate must be finite"),
        ("WarmUpLR", r"'WarmUpLR' needs its arguments: WarmUpLR\(...\)"),
        ("scale(WarmUpLR, 0.5)", "'WarmUpLR' needs its arguments"),
        ("0.1", "'0.1' is not a schedule: a call such as"),
        ("'WarmUpLR(0.1, 5)'", "is not a schedule"),
        ("[WarmUpLR(0.1, 5)]", "is not a schedule"),
        ("warmup_lr(0.1, 4, 1, 2)", r"is a table: hold_last\(warmup_lr\(0.1, 4, 1, 2\)\) is a schedule"),
        ("WarmUpLR(0.1, 5", "cannot read"),
        ("", "cannot read"),
        ("WarmUpLR(0.1, 5); 1", "cannot read"),
        ("WarmUpLR(0.1,\0 5)", "cannot read|null"),
        ("scale(" * 500, "cannot read"),
        ("-" * 100_000 + "1", "cannot read|neither"),
    ],
    ids=lambda text: text[:40].replace("\0", "NUL"),
)
def test_parse_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_parse_wants_text():
    with pytest.raises(TypeError, match="expression must be a string"):
        parse(0.1)


def test_parse_knows_every_public_schedule():
    for name in schedules.__all__:
        if name not in ("CosineAnnealingWarmbootingLR", "LearningRateSchedule", "Schedule", "parse"):
            with pytest.raises(ValueError, match=rf"'{name}\(\)': .*missing"):
                parse(f"{name}()")


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_plot(pyplot):
    schedule = WarmUpLR(0.1, 5)
    ax = schedule.plot()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "learning rate")
    (line,) = ax.get_lines()
    assert line.get_xdata().tolist() == list(range(10))
    assert line.get_ydata().tolist() == schedule(range(10)).tolist()
    assert scale(schedule, 0.5).plot(ax, steps=[0, 8]) is ax
    assert ax.get_lines()[1].get_xdata().tolist() == [0, 8]
    assert len(schedule.plot(steps=3).get_lines()[0].get_xdata()) == 3
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        schedule.plot(steps=0)


def test_plot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=re.escape(how_to_install("demo"))):
        WarmUpLR(0.1, 5).plot()


@pytest.mark.parametrize(
    ("schedule", "horizon"),
    [
        (schedules.CosineDecayLR(0.0, 0.1, 7), 7),
        (schedules.LinearWithWarmUpLR(0.1, 20, 5), 20),
        (schedules.ConstantWarmUpLR(0.1, 0), 1),
        (schedules.CosineWithWarmUpLR(0.1, 0, 20, decay_ratio=0.5), 10),
        (schedules.PolyAnnealingLR(0.1, 1, 1, 8), 1000),
        (schedules.ManualAnnealingLR(0.1, "100:1.0", 8), 13),
        (sequence([0.1, half], [5]), 1005),
        (sequence([0.1, [0.1, 0.2]], [5]), 7),
        (clamp(hold_last([0.1] * 4), 0, 1), 4),
        (scale(0.1, 0.5), 1),
    ],
    ids=repr,
)
def test_horizon(schedule, horizon):
    assert schedule.horizon == horizon
