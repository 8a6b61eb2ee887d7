"""State that somebody else writes, replaces or takes away between steps."""

import collections
import copy
from typing import Any

import pytest
import torch

from tests.torch.helpers import (
    MOMENTS,
    PAIRS,
    alike,
    assert_same,
    fill,
    network,
    ours,
    pair,
    parameter,
    snapshot,
    steps,
    train,
    values,
)


def replaced_by_copies(opt: Any, params: Any, name: str) -> None:
    for p in params:
        opt.state[p] = {key: 2 * value.clone() for key, value in opt.state[p].items()}


def written_in_place(opt: Any, params: Any, name: str) -> None:
    opt.state[params[0]][name].mul_(3)
    opt.state[params[1]][name].fill_(0.25)


def assigned_data(opt: Any, params: Any, name: str) -> None:
    for p in params:
        opt.state[p][name].data = opt.state[p][name].data.clone() * 0.5


def moved_as_lightning_does(opt: Any, params: Any, name: str) -> None:
    for state in opt.state.values():
        for key, value in state.items():
            if key != "step":
                state[key] = value.to(torch.float64, copy=True) + 1


def cleared(opt: Any, params: Any, name: str) -> None:
    opt.state.clear()


def replaced_as_a_whole(opt: Any, params: Any, name: str) -> None:
    opt.state = collections.defaultdict(dict)


def replaced_by_a_full_one(opt: Any, params: Any, name: str) -> None:
    kept = {p: {key: value.clone() * 2 for key, value in opt.state[p].items()} for p in params[1:]}
    opt.state = collections.defaultdict(dict, kept)


def one_deleted(opt: Any, params: Any, name: str) -> None:
    del opt.state[params[1]]


def one_emptied(opt: Any, params: Any, name: str) -> None:
    opt.state[params[0]] = {}


def exchanged(opt: Any, params: Any, name: str) -> None:
    """The moments of two parameters of one shape change places."""
    one, other = opt.state[params[0]], opt.state[params[2]]
    one[name], other[name] = other[name], one[name]


def state_exchanged(opt: Any, params: Any, name: str) -> None:
    opt.state[params[0]], opt.state[params[2]] = opt.state[params[2]], opt.state[params[0]]


def data_exchanged(opt: Any, params: Any, name: str) -> None:
    one, other = opt.state[params[0]][name], opt.state[params[2]][name]
    one.data, other.data = other.data, one.data


def tensors_exchanged(opt: Any, params: Any, name: str) -> None:
    torch.utils.swap_tensors(opt.state[params[0]][name], opt.state[params[2]][name])


HELD = []


def assigned_data_while_the_old_is_held(opt: Any, params: Any, name: str) -> None:
    """What offloading does: the old memory lives on elsewhere."""
    for p in params:
        HELD.append(opt.state[p][name].data)
        opt.state[p][name].data = 2 * HELD[-1]


def set_while_the_old_is_held(opt: Any, params: Any, name: str) -> None:
    HELD.append(opt.state[params[1]][name].detach())
    opt.state[params[1]][name].set_(3 * HELD[-1])


def rebuilt_by_type(opt: Any, params: Any, name: str) -> None:
    """What Lightning and accelerate do with collections of any kind."""
    for p, state in opt.state.items():
        opt.state[p] = type(state)(collections.OrderedDict((k, 2 * v) for k, v in state.items()))


def merged(opt: Any, params: Any, name: str) -> None:
    state = opt.state[params[0]]
    state |= {name: torch.full_like(params[0], 0.3)}
    state.setdefault("note", 1)


def foreign_keys(opt: Any, params: Any, name: str) -> None:
    opt.state[params[0]].update({"note": 3, "other": torch.ones(2), "none": None})
    opt.state["global"] = {"seed": 1}


@pair
@pytest.mark.parametrize(
    "change",
    [
        *(replaced_by_copies, written_in_place, assigned_data, moved_as_lightning_does, cleared),
        *(replaced_as_a_whole, replaced_by_a_full_one, one_deleted, one_emptied, exchanged),
        *(state_exchanged, foreign_keys, data_exchanged, tensors_exchanged, merged, rebuilt_by_type),
        *(assigned_data_while_the_old_is_held, set_while_the_old_is_held),
    ],
)
def test_changes_of_state_count_from_the_next_step(pair: str, change: Any) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1), parameter(4, 3, seed=2)]
        opt = make(params)
        seen = []
        for step in range(3):
            steps(opt, params, 2, first=2 * step)
            change(opt, params, MOMENTS[pair][0])
            steps(opt, params, 1, first=10 + step)
            seen.append(values(params))
        assert len(opt.state) >= len(params)
        HELD.clear()
        moments = [opt.state[p][name] for p in params for name in MOMENTS[pair]]
        return [seen, moments, opt.state[params[0]].get("note"), opt.state.get("global")]

    alike(pair, scenario)


@pytest.mark.parametrize("pair", ["adamw", "lamb"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("way", ["fill", "replace", "data"])
def test_step_counts_written_by_others(pair: str, value: float, way: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1)]
        opt = make(params)
        steps(opt, params, 3)
        for p in params[:1] if way != "replace" else params:
            state = opt.state[p]
            if way == "fill":
                state["step"].fill_(value)
            elif way == "replace":
                state["step"] = torch.tensor(value)
            else:
                state["step"].data = torch.tensor(value)
        steps(opt, params, 2, first=3)
        return [values(params), [opt.state[p]["step"].float() for p in params]]

    found = alike(pair, scenario)
    assert found[2] == value + 2


@ours
def test_step_counts_may_be_numbers(make: Any) -> None:
    params, twins = [parameter(4, 3)], [parameter(4, 3)]
    opt, plain = make(params), make(twins)
    steps(opt, params)
    steps(plain, twins)
    opt.state[params[0]]["step"] = 2
    steps(opt, params, first=2)
    steps(plain, twins, first=2)
    assert_same(snapshot(opt), snapshot(plain))
    assert opt.state[params[0]]["step"].item() == 4


# -- torch.distributed.checkpoint ------------------------------------------------------------------------------


@pair
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_distributed_checkpoints(pair: str, flat: bool, named: bool, tensor_rate: bool) -> None:
    """They take a step with gradients and rate 0 on an optimizer that has no state yet."""
    from torch.distributed.checkpoint import state_dict as checkpoints

    options = checkpoints.StateDictOptions(flatten_optimizer_state_dict=flat)

    def scenario(make: Any) -> Any:
        model, twin = network(), network()

        def optimizer(model: Any, rate: float) -> Any:
            named_or_not = model.named_parameters() if named else model.parameters()
            return make(named_or_not, lr=torch.tensor(rate, dtype=torch.float64) if tensor_rate else rate)

        opt = optimizer(model, 0.2)
        train(model, opt)
        saved = copy.deepcopy(checkpoints.get_optimizer_state_dict(model, opt, options=options))
        twin.load_state_dict(model.state_dict())
        other = optimizer(twin, 0.4)
        before = values(twin)
        checkpoints.set_optimizer_state_dict(twin, other, saved, options=options)
        assert_same(values(twin), before)
        train(model, opt, first=3)
        train(twin, other, first=3)
        assert_same(values(twin), values(model))
        return values(twin)

    alike(pair, scenario)


@pytest.mark.parametrize("pair", ["sgd", "lars"])
def test_momentum_can_be_given_beforehand(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1)]
        opt = make(params)
        opt.state[params[0]]["momentum_buffer"] = torch.full_like(params[0], 0.5)
        if pair == "lars" and make is PAIRS[pair][1]:
            opt.state[params[0]]["step"] = torch.tensor(0.0)
        steps(opt, params)
        return [values(params), [opt.state[p]["momentum_buffer"] for p in params]]

    alike(pair, scenario)


@ours
@pytest.mark.parametrize("value", [-3.0, float("nan"), "x", [1, 2], torch.ones(2)])
def test_step_counts_that_are_none_are_refused_by_name(make: Any, value: Any) -> None:
    params = [parameter(4, 3)]
    opt = make([("w", params[0])])
    steps(opt, params)
    before, held = values(params), opt.state[params[0]]["step"]
    opt.state[params[0]]["step"] = value
    fill(params)
    with pytest.raises(ValueError, match="state 'step' of parameter 'w' must be a number >= 0"):
        opt.step()
    assert_same(values(params), before)
    opt.state[params[0]]["step"] = held
    opt.step()
    assert opt.state[params[0]]["step"].item() == 3


@ours
def test_entries_are_dicts_to_everybody(make: Any) -> None:
    params = [parameter(4, 3)]
    opt = make(params)
    steps(opt, params)
    state = opt.state[params[0]]
    assert isinstance(state, dict)
    mapped = torch.utils._pytree.tree_map(lambda value: value + 1, opt.state_dict()["state"][0])
    assert_same(mapped, {key: value + 1 for key, value in state.items()})
    mapped = torch.utils._pytree.tree_map(lambda value: value + 1, dict(opt.state)[params[0]])
    assert_same(mapped, {key: value + 1 for key, value in state.items()})
    assert all(
        type(made) is dict for made in (copy.copy(state), copy.deepcopy(state), state.copy(), {**state})
    )
