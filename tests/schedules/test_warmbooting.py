"""The cosine with warm boots: the recorded runs of its source, bit for bit, and what differs."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from numba_lamb.schedules import CosineAnnealingWarmbootingLR, WarmbootingCosineLR

RECORDS = json.loads((Path(__file__).parents[1] / "golden" / "cawb.json").read_text())["records"]
CURVES = {
    "cos8": lambda x, y: ((1 + math.cos(x * math.pi / y)) / 2) * 0.8 + 0.2,
    "lin": lambda x, y: (1 - x / y) * 0.9 + 0.1,
}
DIVIDES_BY_ZERO = "ZeroDivisionError"


def label(record):
    return record["how"] + "-" + ",".join(f"{key}={value}" for key, value in record["config"].items())


def options(record):
    config = copy.deepcopy(record["config"])
    if "lf" in config:
        config["lf"] = CURVES[config["lf"]]
    return config.pop("lrs"), config


def make(record):
    lrs, config = options(record)
    optimizer = SimpleNamespace(param_groups=[{"lr": lr} for lr in lrs])
    return CosineAnnealingWarmbootingLR(optimizer, **config), optimizer


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("record", RECORDS, ids=label)
def test_steps_are_the_source_s(record):
    scheduler, optimizer = make(record)
    if record["how"] == "resume":
        scheduler.last_epoch = 4
    for call, expected in zip(record["calls"], record["lrs"], strict=True):
        if expected == DIVIDES_BY_ZERO:
            before = dict(vars(scheduler)), rates(optimizer)
            with pytest.raises(ValueError, match="zero epochs: epochs must be above warmup_epoch"):
                scheduler.step(call)
            assert (vars(scheduler), rates(optimizer)) == before
        else:
            assert scheduler.step(call) == expected[0]
            assert rates(optimizer) == expected


@pytest.mark.parametrize("record", [one for one in RECORDS if "step_batch" in one], ids=label)
def test_batches_are_the_source_s(record):
    scheduler, optimizer = make(record)
    for returned, expected in record["step_batch"]:
        assert scheduler.step_batch() == returned
        assert rates(optimizer) == expected


@pytest.mark.parametrize("record", RECORDS, ids=label)
def test_the_function_has_the_same_rates(record):
    lrs, config = options(record)
    config.pop("batchs", None)
    epochs = [4 + i for i in range(len(record["calls"]))]
    if record["how"] != "resume":
        epochs, iters = [], -1
        for call in record["calls"]:
            iters = iters + 1 if call is None else call
            epochs.append(iters)
    for k, lr in enumerate(lrs):
        if DIVIDES_BY_ZERO in record["lrs"]:
            with pytest.raises(ValueError, match="epochs must be >= 1"):
                WarmbootingCosineLR(lr, **config)
        else:
            schedule = WarmbootingCosineLR(lr, **config)
            assert [schedule(epoch) for epoch in epochs] == [expected[k] for expected in record["lrs"]]


def test_every_record_is_here():
    assert len(RECORDS) == 21
    assert sum("step_batch" in record for record in RECORDS) == 7


def test_the_caller_s_steps_and_groups_are_left_alone():
    steps = [30, 10, 20]
    groups = [{"lr": 0.1}]
    CosineAnnealingWarmbootingLR(SimpleNamespace(param_groups=groups), 40, steps=steps)
    assert steps == [30, 10, 20]
    assert groups == [{"lr": 0.1}]


def test_a_repeated_step_scales_twice():
    once, twice = (WarmbootingCosineLR(1.0, 8, steps=steps) for steps in ([4], [4, 4]))
    assert twice(4) == once(4)
    assert twice(5) == pytest.approx(0.8 * once(5))


def test_past_the_end_without_a_step_before():
    scheduler = CosineAnnealingWarmbootingLR(SimpleNamespace(param_groups=[{"lr": 0.1}]), 5)
    with pytest.raises(ValueError, match="zero epochs"):
        scheduler.step(6)
    assert scheduler.step() == 0.1


def test_a_group_added_later_is_an_error():
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    scheduler = CosineAnnealingWarmbootingLR(optimizer, 5, batchs=3, warmup_epoch=1)
    optimizer.param_groups.append({"lr": 0.2})
    for advance in (scheduler.step, scheduler.step_batch):
        with pytest.raises(ValueError, match="has 2 groups, it had 1"):
            advance()
    assert rates(optimizer) == [0.1, 0.2]
    assert (scheduler.iters, scheduler.iters_batch) == (-1, -1)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"epochs": 5.0}, TypeError, "epochs must be an integer"),
        ({"epochs": -1}, ValueError, "epochs must be >= 0"),
        ({"steps": "12"}, TypeError, "steps must be a list or tuple"),
        ({"steps": [1.5]}, TypeError, r"steps\[0\] must be an integer"),
        ({"eta_min": -0.1}, ValueError, "eta_min must be >= 0"),
        ({"lf": 3}, TypeError, "lf must be None or a function"),
        ({"batchs": True}, TypeError, "batchs must be an integer"),
        ({"step_scale": math.inf}, ValueError, "step_scale must be finite"),
    ],
)
def test_arguments_are_checked(arguments, kind, message):
    with pytest.raises(kind, match=message):
        CosineAnnealingWarmbootingLR(SimpleNamespace(param_groups=[{"lr": 0.1}]), **arguments)


def test_a_rate_that_is_no_number_is_refused():
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}, {"lr": [0.1, 0.2]}])
    with pytest.raises(TypeError, match=r"param_groups\[1\]\['lr'\] must be a number"):
        CosineAnnealingWarmbootingLR(optimizer, 5)
    with pytest.raises(ValueError, match="external_iter must be >= 0"):
        CosineAnnealingWarmbootingLR(SimpleNamespace(param_groups=[{"lr": 0.1}]), 5).step(-1)


def test_drives_a_pytorch_optimizer():
    torch = pytest.importorskip("torch")
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.01}], lr=0.1)
    scheduler = CosineAnnealingWarmbootingLR(optimizer, epochs=4, eta_min=0.0)
    for epoch in range(5):
        scheduler.step()
        assert rates(optimizer) == [WarmbootingCosineLR(lr, 4, 0.0)(epoch) for lr in (0.1, 0.01)]
