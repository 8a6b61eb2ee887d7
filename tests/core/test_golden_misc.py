"""What MindSpore does around the update, from golden/misc.json: agreed with, or differed from on purpose."""

import numpy as np
import pytest

import numba_lamb as nl
from tests.helpers import golden_json

MISC = golden_json("misc.json")
USED_ELSEWHERE = {"lr_scheduler_callback": "tests/core/test_callbacks.py"}


def one(name: str = "w") -> dict[str, np.ndarray]:
    return {name: np.ones(3)}


@pytest.mark.parametrize(("name", "decayed"), MISC["decay_flags"].items())
def test_decay_by_name_is_the_sources(name: str, decayed: bool) -> None:
    params = one(name)
    nl.Lamb(params, 0.5, weight_decay=0.5).step([np.zeros(3)])
    assert (params[name] < 1).all() == decayed


@pytest.mark.parametrize(("name", "adapted"), MISC["lars_default_filter"].items())
def test_the_lars_filter_is_the_sources(name: str, adapted: bool) -> None:
    opt = nl.Lars(nl.Momentum(one(name), 0.5, 0.9))
    opt.step([np.ones(3)])
    assert (opt.stats()[f"trust_ratio/{name}"] != 1) == adapted


@pytest.mark.parametrize(("given", "sources"), MISC["mixed_group_constant_rate"]["rows"])
def test_a_constant_beside_a_schedule_keeps_its_value(given: float, sources: float) -> None:
    # The source evaluates it as (lr + 1) - 1 in float32, which is not reproduced.
    assert np.float32(np.float32(given) + np.float32(1)) - np.float32(1) == np.float32(sources)
    groups = [{"params": one("a"), "lr": given}, {"params": one("b"), "lr": lambda step: 0.5}]
    assert nl.Momentum(groups, 0.1, 0.9).get_lr() == (given, 0.5)


MAKERS = {
    "momentum": lambda: nl.Momentum(one(), 0.1, 0.9),
    "momentum_dynamic_lr": lambda: nl.Momentum(one(), [0.1] * 5, 0.9),
    "momentum_dynamic_wd": lambda: nl.Momentum(one(), 0.1, 0.9, weight_decay=lambda step: 0.1),
    "lars": lambda: nl.Lars(nl.Momentum(one(), 0.1, 0.9)),
    "lars_dynamic_lr": lambda: nl.Lars(nl.Momentum(one(), [0.1] * 5, 0.9)),
    "lars_dynamic_wd": lambda: nl.Lars(nl.Momentum(one(), 0.1, 0.9, weight_decay=lambda step: 0.1)),
    "lars_dynamic_wd_and_lr": lambda: nl.Lars(nl.Momentum(one(), [0.1] * 5, 0.9, weight_decay=[0.1] * 5)),
}
COUNTED_TWICE = {"lars_dynamic_wd": "the source advances its counter twice per call; ours counts steps"}


@pytest.mark.parametrize(("name", "sources"), MISC["global_step_after_5_calls"].items())
def test_the_counter_counts_steps(name: str, sources: int) -> None:
    opt = MAKERS[name]()
    for _ in range(5):
        opt.step([np.ones(3)])
    assert opt.global_step == 5
    assert (sources == 5) != (name in COUNTED_TWICE)


def test_weight_decay_is_told_as_it_was_given() -> None:
    recorded = MISC["loss_scale"]
    opt = nl.Momentum(
        one(), 0.1, 0.9, weight_decay=recorded["configured_wd"], loss_scale=recorded["loss_scale"]
    )
    assert 1 / opt.loss_scale == recorded["reciprocal"]
    # The source stores it multiplied by the loss scale.
    assert opt.get_weight_decay() == recorded["configured_wd"] != recorded["stored_wd"]


def test_every_record_is_used() -> None:
    here = {"decay_flags", "lars_default_filter", "mixed_group_constant_rate", "global_step_after_5_calls"}
    assert set(MISC) == {*here, "loss_scale", *USED_ELSEWHERE}
