"""What holds for every schedule: arrays are single calls, text and pickles come back, bounds hold."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_lamb import schedules
from numba_lamb.schedules import parse

NAMES = {name: getattr(schedules, name) for name in schedules.__all__}

rate = st.floats(1e-6, 10.0)
rate_or_zero = st.one_of(st.just(0.0), rate)
count = st.integers(1, 60)
count_or_zero = st.integers(0, 60)


def two(first=rate, second=rate):
    return st.tuples(first, second).filter(lambda pair: pair[0] < pair[1])


def build(name, *arguments, **keywords):
    return st.builds(NAMES[name], *arguments, **keywords)


decay = [
    build(name, rate, st.floats(0.01, 1.5), count, st.booleans())
    for name in ("ExponentialDecayLR", "NaturalExpDecayLR", "InverseDecayLR")
]
cosine = st.tuples(two(rate_or_zero), count).map(lambda t: schedules.CosineDecayLR(*t[0], t[1]))
polynomial = build("PolynomialDecayLR", rate, rate_or_zero, count, st.floats(0.1, 4.0), st.booleans())
warm = {"warmup_steps": count_or_zero, "warmup_lr_init": rate_or_zero}
linear = build("LinearWithWarmUpLR", rate, count, **warm)
cosine_warm = build("CosineWithWarmUpLR", rate, total_steps=count, lr_end=rate_or_zero, **warm)
restarts = build("CosineAnnealingWarmRestarts", rate, count, st.integers(1, 4), rate_or_zero)
boots = build(
    "WarmbootingCosineLR",
    rate,
    st.integers(30, 60),
    st.floats(0, 1),
    st.lists(count_or_zero, max_size=5),
    st.floats(0, 1),
    warmup_epoch=st.integers(0, 29),
)
simple = st.one_of(
    *decay,
    cosine,
    polynomial,
    linear,
    cosine_warm,
    restarts,
    boots,
    build("WarmUpLR", rate_or_zero, count),
    build("ConstantWarmUpLR", rate_or_zero, **warm),
    build("ConstantWarmUpLR", rate, warmup_ratio=st.floats(0, 1), total_steps=count),
    build("CosineWithRestartsAndWarmUpLR", rate, total_steps=count, num_cycles=st.floats(0, 5), **warm),
    build("PolynomialWithWarmUpLR", st.floats(0.1, 1.0), count, power=st.floats(0, 4), **warm),
    build(
        "WarmUpStableDecayLR", rate, st.just(0.0), total_steps=st.just(61), decay_start_steps=count, **warm
    ),
    build("ConstantWithCoolDownLR", rate, keep_steps=count_or_zero, decay_steps=count_or_zero, **warm),
    build("CosineAnnealingLR", rate, count, rate_or_zero),
    build("LayerWiseCosineAnnealingLR", rate, rate, count, rate_or_zero),
    build("ConstantAnnealingLR", rate, count),
    build("PolyAnnealingLR", rate, rate_or_zero, rate_or_zero, count),
    build("CaffePolyAnnealingLR", rate, st.integers(1, 1000), rate_or_zero, count),
    build("ExpAnnealingLR", rate, st.floats(0.1, 1.5), st.integers(1, 1000), count),
    build("DiscExpAnnealingLR", rate, st.floats(0.1, 1.5), st.integers(1, 1000), count),
    build("LinearAnnealingLR", rate, st.floats(0, 0.1), rate_or_zero, count),
    build("ManualAnnealingLR", rate, st.just("10:1.0,500:0.5,600:0.1"), count),
    build("PassManualAnnealingLR", rate, st.just("1:1.0,3:0.5,4:0.1"), count, count),
)
long_table = st.lists(rate, min_size=201, max_size=203)
piece = st.one_of(rate, long_table, simple)
composed = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(schedules.scale, st.one_of(piece, inner), rate_or_zero),
        st.builds(lambda s, pair: schedules.clamp(s, *pair), st.one_of(piece, inner), two()),
        st.builds(lambda a, b, c, n: schedules.sequence([a, b, c], [n, 2 * n]), piece, inner, piece, count),
        st.builds(schedules.hold_last, st.lists(rate, min_size=1, max_size=9)),
    ),
    max_leaves=4,
)
steps = st.lists(st.integers(0, 200), max_size=20)


@given(composed, steps)
def test_an_array_holds_the_bits_of_the_single_calls(schedule, chosen):
    singles = [schedule(step) for step in chosen]
    assert {type(single) for single in singles} <= {float}
    expected = np.array(singles, dtype=np.float64)
    for form in (
        chosen,
        tuple(chosen),
        np.array(chosen, dtype=np.int32),
        np.array([chosen], dtype=np.uint64),
    ):
        got = schedule(form)
        assert got.dtype == np.float64
        assert got.shape == np.shape(form)
        assert got.tobytes() == expected.tobytes()


@given(composed, st.integers(0, 200))
def test_every_kind_of_integer_is_the_same_step(schedule, step):
    expected = schedule(step)
    for form in (np.int64(step), np.uint8(step), np.array(step)):
        assert schedule(form) == expected
        assert type(schedule(form)) is float


@given(composed)
def test_text_and_pickle_come_back_equal(schedule):
    for copy in (
        eval(repr(schedule), dict(NAMES)),
        parse(repr(schedule)),
        pickle.loads(pickle.dumps(schedule)),
    ):
        assert copy == schedule
        assert hash(copy) == hash(schedule)
        assert repr(copy) == repr(schedule)
        assert copy(7) == schedule(7)


@given(composed)
def test_nothing_can_be_changed(schedule):
    field = next(iter(type(schedule).__dataclass_fields__))
    with pytest.raises((AttributeError, TypeError)):
        setattr(schedule, field, 1.0)
    with pytest.raises((AttributeError, TypeError)):
        schedule.extra = 1.0


@given(composed)
def test_the_horizon_can_be_drawn(schedule):
    assert schedule.horizon >= 1
    assert np.isfinite(schedule(min(schedule.horizon, 5000) - 1))


@given(cosine, st.integers(0, 200))
def test_cosine_falls_and_stays_in_bounds(schedule, step):
    ulp = np.spacing(schedule.max_lr)
    assert schedule.min_lr <= schedule(step + 1) <= schedule(step) + ulp <= schedule.max_lr + 2 * ulp
    assert schedule(schedule.decay_steps) == schedule.min_lr


@given(build("ExponentialDecayLR", rate, st.floats(0.1, 0.99), count, st.booleans()), st.integers(0, 200))
def test_exponential_falls(schedule, step):
    assert 0 < schedule(step + 1) <= schedule(step) <= schedule.learning_rate


@given(linear, st.integers(0, 200))
def test_linear_peaks_after_the_warmup(schedule, step):
    top = max(schedule.learning_rate, schedule.warmup_lr_init)
    assert 0 <= schedule(step) <= top * (1 + 1e-15)
    if step >= schedule.warmup_steps:
        assert schedule(step + 1) <= schedule(step)
    assert schedule(max(schedule.total_steps, schedule.warmup_steps)) == 0


@given(build("WarmUpLR", rate, count), st.integers(0, 200))
def test_warmup_rises_and_holds(schedule, step):
    assert schedule(0) == 0
    assert schedule(step) <= schedule(step + 1) <= schedule.learning_rate * (1 + 1e-15)


@given(composed, two(), st.integers(0, 200))
def test_clamp_keeps_the_bounds(schedule, bounds, step):
    clamped = schedules.clamp(schedule, *bounds)(step)
    if math.isnan(schedule(step)):
        assert math.isnan(clamped), "infinity times 0 is in no bounds"
        return
    assert bounds[0] <= clamped <= bounds[1]
    assert clamped in (*bounds, schedule(step))


@given(simple, simple, count, st.integers(0, 200))
def test_sequence_counts_each_piece_from_its_start(first, second, boundary, step):
    joined = schedules.sequence([first, second], [boundary])
    assert joined(step) == (first(step) if step < boundary else second(step - boundary))


@given(composed, rate_or_zero, st.integers(0, 200))
def test_scale_multiplies(schedule, factor, step):
    assert schedules.scale(schedule, factor)(step) == factor * schedule(step)
    assert schedules.scale(schedule, factor) == schedules.LearningRateWiseLayer(schedule, factor)


@given(st.integers(0, 10**12), st.integers(1, 50), st.integers(2, 5))
def test_warm_restarts_find_their_cycle(step, t_0, t_mult):
    start, length = 0, t_0
    while start + length <= step:
        start, length = start + length, length * t_mult
    expected = 0.5 * (1 + np.cos(np.pi * ((step - start) / length)))
    assert schedules.CosineAnnealingWarmRestarts(1.0, t_0, t_mult)(step) == pytest.approx(expected, abs=1e-12)
