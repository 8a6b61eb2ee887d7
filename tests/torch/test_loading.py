"""State that cannot be what it seems: counts that are none, and tensors in memory that processes share."""

import copy
from typing import Any

import pytest
import torch

from tests.torch.helpers import MOMENTS, OURS, assert_same, fill, ours, parameter, snapshot, steps

NO_COUNTS = [
    *(-1, -0.5, float("nan"), float("inf"), -float("inf"), 0.5, 2**63 - 1, 10**400, 1e300, "3", None, [1]),
    *(
        torch.ones(2),
        torch.tensor(float("nan")),
        torch.tensor(2.5),
        torch.tensor(2**62 + 2**40),
        torch.tensor(1j),
    ),
]


def trained(make: Any) -> tuple[Any, list[Any]]:
    params = [parameter(4, 3), parameter(5, seed=1)]
    opt = make([{"params": [("v", params[0])]}, {"params": [("w", params[1])]}])
    steps(opt, params)
    return opt, params


@ours
@pytest.mark.parametrize("count", NO_COUNTS, ids=repr)
def test_loading_a_count_that_is_none_is_refused(make: Any, count: Any) -> None:
    opt, params = trained(make)
    before, saved = snapshot(opt), opt.state_dict()
    saved["state"][1]["step"] = count
    saved["param_groups"][0]["lr"] = 0.5
    with pytest.raises(
        ValueError, match=r"^state 'step' of parameter 'w' must be a number >= 0, whole and at most"
    ):
        opt.load_state_dict(saved)
    assert_same(snapshot(opt), before)
    assert opt.param_groups[0]["lr"] == 0.1
    steps(opt, params)


@ours
@pytest.mark.parametrize("count", [0, 7.0, torch.tensor(7.0), torch.tensor([7]), 2**24, 2**62], ids=repr)
def test_counts_that_can_be_loaded(make: Any, count: Any) -> None:
    opt, params = trained(make)
    saved = opt.state_dict()
    saved["state"][1]["step"] = count
    opt.load_state_dict(saved)
    steps(opt, params)
    assert all(torch.isfinite(p).all() for p in params)


def share_all(opt: Any, key: str) -> None:
    for state in opt.state.values():
        state[key].share_memory_()


def put_shared(opt: Any, key: str) -> None:
    for state in opt.state.values():
        state[key] = state[key].clone().share_memory_()


@ours
@pytest.mark.parametrize("change", [share_all, put_shared])
@pytest.mark.parametrize("stepped", [False, True])
def test_state_that_processes_share_is_refused(make: Any, change: Any, stepped: bool) -> None:
    """It would be replaced by the optimizer's own: other processes would see it no more, silently."""
    kind = next(name for name, value in OURS.items() if value is make)
    for key in ("step", *MOMENTS[kind]):
        opt, params = trained(make)
        if not stepped:
            held = {p: dict(entry) for p, entry in opt.state.items()}
            opt = make([{"params": [("v", params[0])]}, {"params": [("w", params[1])]}])
            opt.state.update(held)
        change(opt, key)
        before = snapshot(opt)
        fill(params)
        for _ in range(2):
            with pytest.raises(
                ValueError, match=f"^state '{key}' of parameter 'v' must not be in memory that proc"
            ):
                opt.step()
        assert_same(snapshot(opt), before)
        assert all(state[key].is_shared() for state in opt.state.values())
        for state in opt.state.values():
            state[key] = state[key].clone()
        opt.step()
        assert opt.state[params[0]]["step"].item() == 3


@ours
def test_loading_from_shared_memory_copies(make: Any) -> None:
    """A state dict that came from another process, which may go on writing to it."""
    opt, _ = trained(make)
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["state"].values():
        for value in entry.values():
            value.share_memory_()
    other, params = trained(make)
    other.load_state_dict(saved)
    assert_same(snapshot(other)[1], snapshot(opt)[1])
    steps(other, params)
    assert_same(list(saved["state"].values()), [*map(dict, opt.state.values())])
    assert all(value.is_shared() for entry in saved["state"].values() for value in entry.values())
