"""Every recorded schedule and table of MindSpore, mindformers and Paddle v1."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from numba_lamb import schedules

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name):
    return json.loads((GOLDEN / name).read_text())


def label(record, name):
    arguments = record["kwargs"].items()
    return record[name] + "-" + ",".join(f"{key}={value}" for key, value in arguments).replace(" ", "")


SCHEDULES = load("schedules.json")["schedules"]
TABLES = load("schedules.json")["tables"]
ANNEALINGS = load("paddle_v1_annealing.json")


def build(record):
    arguments = dict(record["kwargs"])
    if "base" in arguments:
        name, base = arguments.pop("base")
        arguments["base_lr"] = getattr(schedules, name)(**base)
    return getattr(schedules, record["cls"])(**arguments)


@pytest.mark.parametrize("record", SCHEDULES, ids=lambda record: label(record, "cls"))
def test_schedule_agrees_with_float32_source(record):
    assert None not in record["values_f32"]
    expected = np.array(record["values_f32"])
    rates = build(record)(record["steps"])
    assert np.abs(rates - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("record", TABLES, ids=lambda record: label(record, "fn"))
def test_table_is_the_source_s(record):
    table = getattr(schedules, record["fn"])(**record["kwargs"])
    assert type(table) is list
    assert {type(rate) for rate in table} == {float}
    assert table == pytest.approx(record["values"], rel=1e-15, abs=0)


@pytest.mark.parametrize("record", ANNEALINGS, ids=lambda r: f"{r['kind']}-{r['decay_a']}-{r['decay_b']}")
def test_annealing_is_the_source_s(record):
    schedule = schedules.annealing(
        record["learning_rate"],
        batch_size=1,
        learning_rate_schedule=record["kind"],
        learning_rate_decay_a=record["decay_a"],
        learning_rate_decay_b=record["decay_b"],
        learning_rate_args=record["args"],
        samples_per_pass=3 if record["kind"] == "pass_manual" else None,
    )
    if record["kind"] == "pass_manual":
        rates = [schedule.at_pass(number) for number in record["passes"]]
        assert [schedule(3 * number + 2) for number in record["passes"]] == rates
    else:
        rates = [schedule.at_samples(samples) for samples in record["samples"]]
        assert [schedule(samples - 1) for samples in record["samples"] if samples] == rates[1:]
    assert rates == record["value_real_double"]


def test_every_record_is_here():
    assert (len(SCHEDULES), len(TABLES), len(ANNEALINGS)) == (32, 12, 10)


def test_samples_include_the_current_batch():
    linear = schedules.LinearAnnealingLR(1.0, 0.01, 0.0, batch_size=8)
    assert linear(0) == linear.at_samples(8) == 1.0 - 0.01 * 8
    assert linear(4) == linear.at_samples(40)


def test_a_short_last_batch_ends_the_pass():
    rates = schedules.PassManualAnnealingLR(1.0, "0:1.0,1:0.5,2:0.25", batch_size=4, samples_per_pass=10)
    assert rates(range(10)).tolist() == [1.0] * 3 + [0.5] * 3 + [0.25] * 4


@pytest.mark.parametrize(
    ("call", "table", "steps_per_epoch"),
    [
        (schedules.WarmUpLR(0.3, 3), schedules.warmup_lr(0.3, 20, 4, 3), 4),
        (schedules.CosineDecayLR(0.1, 0.7, 5), schedules.cosine_decay_lr(0.1, 0.7, 20, 3, 5), 3),
        (schedules.InverseDecayLR(0.3, 0.7, 3), schedules.inverse_decay_lr(0.3, 0.7, 20, 1, 3), 1),
    ],
)
def test_tables_and_schedules_share_their_bits(call, table, steps_per_epoch):
    assert [call(step // steps_per_epoch) for step in range(20)] == table


def test_too_large_for_a_float_is_infinite_not_an_exception():
    assert schedules.ExponentialDecayLR(0.1, 10.0, 1)(1000) == math.inf
    assert schedules.ExpAnnealingLR(0.1, 10.0, 1, 1)(1000) == math.inf
    odd = schedules.PolynomialWithWarmUpLR(1.0, 1000, 0, lr_end=0.0, power=1001, decay_steps=1)
    assert odd(999) == -math.inf


@pytest.mark.parametrize("t_mult", [2, 3, 7])
def test_warm_restarts_start_at_the_top(t_mult):
    schedule = schedules.CosineAnnealingWarmRestarts(0.5, 3, t_mult, eta_min=0.1)
    start = 0
    for cycle in range(20):
        assert schedule(start) == 0.5
        assert start == 0 or schedule(start - 1) < 0.5
        start += 3 * t_mult**cycle


def test_layer_wise_cosine_is_the_page_s_formula():
    schedule = schedules.LayerWiseCosineAnnealingLR(0.4, 0.25, 10, eta_end=0.02)
    for step in range(30):
        cosine = math.cos((step % 10) / 10 * math.pi)
        assert schedule(step) == pytest.approx(0.02 + 0.5 * (0.4 * 0.25 - 0.02) * (1 + cosine), rel=1e-14)


def test_ratios_are_rounded_down():
    assert schedules.ConstantWarmUpLR(1.0, warmup_ratio=0.39, total_steps=10)([2, 3]).tolist() == [2 / 3, 1.0]
    assert schedules.CosineWithWarmUpLR(1.0, 0, 10, decay_ratio=0.39, lr_end=0.5)(3) == 0.5
    falling = schedules.WarmUpStableDecayLR(1.0, 0.0, 0, total_steps=10, decay_start_ratio=0.39)
    assert falling([3, 4]).tolist() == [1.0, 1.0 - 1 / 7]


def test_a_cut_comes_before_the_warmup():
    assert schedules.CosineWithWarmUpLR(1.0, 5, 10, lr_end=0.25, decay_steps=3)([2, 3]).tolist() == [
        0.4,
        0.25,
    ]
    late = schedules.PolynomialWithWarmUpLR(1.0, 3, 5, lr_end=0.25)
    assert late([3, 4]).tolist() == [0.6, 0.25]


def test_no_warmup_starts_at_the_plateau():
    assert schedules.WarmUpStableDecayLR(1.0, 0.0, 0, total_steps=10, decay_start_steps=5)(0) == 1.0


def test_a_second_end_of_zero_means_the_first():
    cool = schedules.ConstantWithCoolDownLR(1.0, 0, decay_steps=2, lr_end1=0.25, final_steps=1, lr_end2=0)
    assert cool([2, 3, 99]).tolist() == [0.25, 0.25, 0.25]
