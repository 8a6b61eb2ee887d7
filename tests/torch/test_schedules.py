"""This package's schedules with PyTorch's optimizers: ScheduleLR, and schedules in PyTorch's own schedulers."""

import copy
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import numba_lamb as nl
from numba_lamb.schedules import CosineWithWarmUpLR, WarmUpLR, clamp, hold_last, sequence
from numba_lamb.torch import Lamb, Lars, Momentum, ScheduleLR
from tests.helpers import run_python

SCHEDULE = CosineWithWarmUpLR(0.1, warmup_steps=4, total_steps=20)
OPTIMIZERS = {
    "Lamb": Lamb,
    "Lars": lambda params, **given: Lars(params, momentum=0.5, **given),
    "Momentum": Momentum,
    "torch.AdamW": torch.optim.AdamW,
    "torch.SGD": lambda params, **given: torch.optim.SGD(params, momentum=0.5, **given),
}


def parameter(size: int = 3) -> Any:
    return torch.nn.Parameter(torch.linspace(1.0, 2.0, size))


def advance(opt: Any, scheduler: Any, start: int, count: int) -> list[float]:
    """Take steps with gradients that depend on the step; return the rates they had."""
    rates = []
    for step in range(start, start + count):
        rates.append(float(opt.param_groups[-1]["lr"]))
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.cos(p.detach() * 3 + step)
        opt.step()
        scheduler.step()
    return rates


def through_a_file(*states: Any) -> Any:
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_rates_are_the_schedules(make: Any, tensor: bool) -> None:
    p = parameter()
    given = torch.tensor(0.5) if tensor else 0.5
    opt = make([p], lr=given)
    scheduler = ScheduleLR(opt, SCHEDULE)
    found = advance(opt, scheduler, 0, 20)
    expected = [SCHEDULE(step) for step in range(20)]
    assert found == (np.float32(expected).tolist() if tensor else expected)
    assert scheduler.get_last_lr() == [opt.param_groups[0]["lr"]]
    assert not tensor or (opt.param_groups[0]["lr"] is given and scheduler.get_last_lr()[0] is not given)
    by_hand = make([parameter()], lr=0.5)
    for step, rate in enumerate(found):
        by_hand.param_groups[0]["lr"] = rate
        (q,) = by_hand.param_groups[0]["params"]
        q.grad = torch.cos(q.detach() * 3 + step)
        by_hand.step()
    assert torch.equal(p, by_hand.param_groups[0]["params"][0])


FORMS = {
    "function": lambda step: 1 / (step + 1),
    "list": [1.0, 0.5, 0.25],
    "tuple": (1, 0.5, 0.25),
    "array": np.array([1.0, 0.5, 0.25], np.float32),
    "tensor": torch.tensor([1.0, 0.5, 0.25]),
    "schedule": hold_last([1.0, 0.5, 0.25]),
    "number": 0.5,
    "0-d tensor": torch.tensor(0.5),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_schedule_has_any_form_of_a_rate(form: Any) -> None:
    opt, twin = torch.optim.SGD([parameter()]), nl.Momentum([np.ones(3)], 0.0, 0.9)
    twin.learning_rate = form.numpy() if isinstance(form, torch.Tensor) else form
    expected = []
    for _ in range(3):
        expected.append(twin.get_lr())
        twin.step([np.zeros(3)])
    assert advance(opt, ScheduleLR(opt, form), 0, 3) == expected


@pytest.mark.parametrize("make", [list, iter], ids=["list", "iterator"])
def test_a_table_serves_as_many_steps_as_it_has_values(make: Any) -> None:
    opt = torch.optim.SGD([parameter()])
    scheduler = ScheduleLR(opt, make([1.0, 0.5]))
    assert advance(opt, scheduler, 0, 2) == [1.0, 0.5]
    with pytest.raises(IndexError, match=r"^schedule is a table of 2 values and has none for step 3"):
        advance(opt, scheduler, 2, 1)


def test_one_for_each_group_or_one_for_all() -> None:
    first, second = {"params": [parameter()]}, {"params": [parameter()]}
    opt = Lamb([first, second])
    scheduler = ScheduleLR(opt, [WarmUpLR(0.5, 2), 0.25])
    advance(opt, scheduler, 0, 1)
    assert scheduler.get_last_lr() == [0.25, 0.25]
    advance(opt, scheduler, 1, 1)
    assert scheduler.get_last_lr() == [0.5, 0.25]
    opt = Lamb([first, second])
    scheduler = ScheduleLR(opt, [[1.0, 0.5], [0.25, 0.125]])
    assert scheduler.get_last_lr() == [1.0, 0.25]
    scheduler = ScheduleLR(opt, [1.0, 0.5])
    assert scheduler.get_last_lr() == [1.0, 1.0]
    opt.add_param_group({"params": [parameter()]})
    advance(opt, scheduler, 0, 1)
    assert scheduler.get_last_lr() == [0.5] * 3
    scheduler = ScheduleLR(opt, [WarmUpLR(0.5, 2)] * 3)
    opt.add_param_group({"params": [parameter()]})
    with pytest.raises(ValueError, match="one for all groups or a list of 4, one for each, got 3"):
        scheduler.step()


REFUSED = {
    "NumPy's optimizer": (
        lambda: ScheduleLR(nl.Lamb([np.ones(2)], 0.1), SCHEDULE),
        TypeError,
        "optimizer must be a torch.optim.Optimizer, got a numba_lamb.optimizers.lamb.Lamb; it takes a schedule as "
        "learning_rate",
    ),
    "class": (
        lambda: ScheduleLR(MADE, WarmUpLR),
        TypeError,
        "schedule must be a rate or an instance of a schedule, got the class WarmUpLR; give it its arguments",
    ),
    "negative": (
        lambda: ScheduleLR(MADE, lambda step: -1.0),
        ValueError,
        "schedule at step 0 must be a number >= 0 and finite, got -1.0",
    ),
    "second group": (
        lambda: ScheduleLR(MADE, [0.1, lambda step: "x"]),
        ValueError,
        "schedule must be one for all groups or a list of 1, one for each, got 2",
    ),
    "value": (
        lambda: ScheduleLR(MADE, [lambda step: "x"]),
        TypeError,
        "schedule of group 0 at step 0 must be a",
    ),
    "last_epoch": (
        lambda: ScheduleLR(MADE, 0.1, last_epoch=-2),
        ValueError,
        "last_epoch must be an int >= -1, got -2",
    ),
    "text": (
        lambda: ScheduleLR(MADE, "cosine"),
        ValueError,
        "schedule must be a number, an array, an iterable with one value per step, or a callable",
    ),
    "no values": (lambda: ScheduleLR(MADE, []), IndexError, "schedule is a table of 0 values"),
}
MADE = torch.optim.SGD([parameter()], lr=0.125)


@pytest.mark.parametrize(("make", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_changes(make: Any, error: Any, text: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(text)
    assert MADE.param_groups[0]["lr"] == 0.125
    assert "initial_lr" not in MADE.param_groups[0]


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from tests.torch.test_schedules import *
half, resumed = torch.load({half!r}, weights_only=True), {{}}
for name, (weights, state, rates) in half.items():
    p, opt, scheduler = made(name)
    p.data.copy_(weights)
    opt.load_state_dict(state)
    scheduler.load_state_dict(rates)
    advance(opt, scheduler, 10, 10)
    resumed[name] = [p.detach(), opt.state_dict(), scheduler.state_dict()]
torch.save(resumed, {half!r})
"""


def made(name: str) -> tuple[Any, Any, Any]:
    p = parameter()
    opt = OPTIMIZERS[name]([p], weight_decay=0.01)
    return p, opt, ScheduleLR(opt, SCHEDULE)


@pytest.mark.slow
def test_a_run_goes_on_in_another_process_bit_for_bit(tmp_path: Path) -> None:
    path, saved, straight = str(tmp_path / "half.pt"), {}, {}
    for name in OPTIMIZERS:
        p, opt, scheduler = straight[name] = made(name)
        advance(opt, scheduler, 0, 10)
        saved[name] = [p.detach().clone(), copy.deepcopy(opt.state_dict()), scheduler.state_dict()]
        advance(opt, scheduler, 10, 10)
    torch.save(saved, path)
    run_python(PROGRAM.format(root=str(Path(__file__).parents[2]), half=path))
    resumed = torch.load(path, weights_only=True)
    for name, (p, opt, scheduler) in straight.items():
        weights, state, rates = resumed[name]
        assert torch.equal(weights, p)
        assert rates == scheduler.state_dict()
        for key, value in opt.state_dict()["state"][0].items():
            assert torch.equal(state["state"][0][key], value) if torch.is_tensor(value) else value is None


@pytest.mark.parametrize("late", [False, True], ids=["scheduler first", "scheduler last"])
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_the_order_of_loading_does_not_matter(late: bool, tensor: bool) -> None:
    """PyTorch's own schedulers, made after the optimizer was loaded, leave it one step at the first rate."""
    p = parameter()
    opt = torch.optim.AdamW([p], lr=torch.tensor(0.5) if tensor else 0.5)
    scheduler = ScheduleLR(opt, SCHEDULE)
    advance(opt, scheduler, 0, 10)
    weights, state, rates = through_a_file(p.detach(), opt.state_dict(), scheduler.state_dict())
    assert all(type(value) in (int, float) or set(map(type, value)) == {float} for value in rates.values())
    q = parameter()
    q.data.copy_(weights)
    twin = torch.optim.AdamW([q], lr=torch.tensor(0.5) if tensor else 0.5)
    if late:
        twin.load_state_dict(state)
    other = ScheduleLR(twin, SCHEDULE)
    other.load_state_dict(rates)
    if not late:
        twin.load_state_dict(state)
    assert other.get_last_lr() == scheduler.get_last_lr()
    assert advance(twin, other, 10, 10) == advance(opt, scheduler, 10, 10)
    assert torch.equal(p, q)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    opt = torch.optim.SGD([parameter()], lr=0.1)
    scheduler = ScheduleLR(opt, SCHEDULE)
    advance(opt, scheduler, 0, 3)
    good = scheduler.state_dict()
    others = lr_scheduler.LambdaLR(torch.optim.SGD([parameter()], lr=0.1), lambda step: 1.0).state_dict()
    bad = [
        (others, "state_dict must be that of a ScheduleLR"),
        (3, "state_dict must be that of a ScheduleLR"),
        (
            {**good, "lr": [0.1, 0.2]},
            r"state_dict\['lr'\] must be a list of 1 finite floats >= 0, one for each group, got \[0.1, 0.2\]",
        ),
        *(
            ({**good, key: rates}, rf"state_dict\['{key}'\] must be a list of 1 finite floats")
            for key in ("lr", "_last_lr")
            for rates in ([None], [math.nan], [math.inf], [-0.1], 0.1, None)
        ),
        ({**good, "last_epoch": "3"}, r"state_dict\['last_epoch'\] must be an int >= -1, got '3'"),
    ]
    for state, text in bad:
        with pytest.raises((TypeError, ValueError), match=text):
            scheduler.load_state_dict(state)
        assert scheduler.state_dict() == good


def test_step_order_and_text_are_as_with_other_schedulers() -> None:
    opt = torch.optim.SGD([parameter()])
    scheduler = ScheduleLR(opt, SCHEDULE)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()
    assert repr(scheduler) == f"ScheduleLR(SGD, {SCHEDULE!r}, last_epoch=1)"
    assert len(repr(ScheduleLR(opt, np.arange(1000.0).tolist()))) < 260


def sequential(opt: Any) -> Any:
    return lr_scheduler.SequentialLR(
        opt,
        [
            ScheduleLR(opt, WarmUpLR(0.5, 4)),
            ScheduleLR(opt, SCHEDULE),
            lr_scheduler.ConstantLR(opt, factor=0.25, total_iters=3),
        ],
        milestones=[3, 8],
    )


def chained(opt: Any) -> Any:
    return lr_scheduler.ChainedScheduler([ScheduleLR(opt, SCHEDULE), lr_scheduler.ExponentialLR(opt, 0.5)])


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_inside_of_pytorchs_composed_schedulers() -> None:
    joined = sequence([WarmUpLR(0.5, 4), SCHEDULE], [3])
    opt = torch.optim.SGD([parameter()], lr=0.125)
    expected = [joined(step) for step in range(8)] + [0.03125] * 3 + [0.125]
    assert advance(opt, sequential(opt), 0, 12) == expected
    opt = torch.optim.SGD([parameter()], lr=0.125)
    # Each step begins at the schedule's rate, so that the factor is there once.
    assert advance(opt, chained(opt), 0, 4)[1:] == [SCHEDULE(step) / 2 for step in range(1, 4)]


@pytest.mark.parametrize("make", [sequential, chained])
@pytest.mark.parametrize("stop", [2, 3, 5, 9])
def test_composed_schedulers_resume(make: Any, stop: int) -> None:
    opt, twin = (torch.optim.SGD([parameter()], lr=0.125) for _ in range(2))
    scheduler = make(opt)
    advance(opt, scheduler, 0, stop)
    state, rates = through_a_file(opt.state_dict(), scheduler.state_dict())
    other = make(twin)
    twin.load_state_dict(state)
    other.load_state_dict(rates)
    assert advance(twin, other, stop, 4) == advance(opt, scheduler, stop, 4)


FROZEN = [WarmUpLR(0.5, 2), SCHEDULE, clamp(SCHEDULE, 0.0, 0.05), hold_last([1.0, 0.5])]


@pytest.mark.parametrize("kind", [lr_scheduler.LambdaLR, lr_scheduler.MultiplicativeLR])
def test_pytorchs_own_schedulers_save_and_load_ours(kind: Any) -> None:
    for schedule in FROZEN:
        runs = []
        for _ in range(2):
            opt = torch.optim.SGD([parameter()], lr=0.5)
            runs.append((opt, kind(opt, schedule)))
        (opt, scheduler), (twin, other) = runs
        advance(opt, scheduler, 0, 3)
        state, rates = through_a_file(opt.state_dict(), scheduler.state_dict())
        twin.load_state_dict(state)
        other.load_state_dict(rates)
        assert advance(twin, other, 3, 5) == advance(opt, scheduler, 3, 5)
        rates["lr_lambdas"] = [{"factor": 2.0}]
        with pytest.raises(
            ValueError, match=r"a schedule must be given no state, since it is frozen, got .*factor"
        ):
            other.load_state_dict(rates)


@pytest.mark.parametrize("schedule", FROZEN, ids=lambda schedule: type(schedule).__name__)
def test_schedules_are_as_frozen_as_before(schedule: Any) -> None:
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), copy.copy(schedule)):
        assert twin == schedule
        assert (hash(twin), repr(twin)) == (hash(schedule), repr(schedule))
    assert vars(schedule) == {}
    with pytest.raises((AttributeError, TypeError)):
        schedule.anything = 3
    with pytest.raises((AttributeError, TypeError)):
        schedule.__dict__ = {}
    vars(schedule)["learning_rate"] = 3.0
    assert vars(schedule) == {}


def test_a_schedule_as_rate_names_the_way() -> None:
    way = r"; numba_lamb.torch.ScheduleLR\(opt, schedule\) sets it at each step$"
    for kind in (Lamb, Lars, Momentum):
        for given in (SCHEDULE, lambda step: 0.1, [0.1, 0.2], torch.tensor([0.1, 0.2])):
            with pytest.raises((TypeError, ValueError), match=f"^lr .*{way}"):
                kind([parameter()], lr=given)
        opt = kind([parameter()], lr=0.1)
        opt.param_groups[0]["lr"] = SCHEDULE
        with pytest.raises(TypeError, match=f"^lr must be a number, .*CosineWithWarmUpLR{way}"):
            opt.step()
        with pytest.raises(TypeError, match=r"^weight_decay must be a number, .*CosineWithWarmUpLR$"):
            kind([parameter()], lr=0.1, weight_decay=SCHEDULE)
