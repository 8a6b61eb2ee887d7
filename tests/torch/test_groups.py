"""Parameter groups: their options, read anew at every step, and their parameters."""

from typing import Any

import pytest
import torch

from tests.torch.helpers import (
    PAIRS,
    alike,
    assert_same,
    moments,
    ours,
    pair,
    parameter,
    steps,
    values,
)

# -- groups -----------------------------------------------------------------------------------------------------


@pair
def test_groups_have_their_own_options(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1), parameter(3, seed=2, dtype=torch.float32)]
        groups = [
            {"params": params[:1], "lr": 0.02, "weight_decay": 0.3},
            {"params": params[1:2]},
            {"params": params[2], "maximize": True, "weight_decay": 0.0},
        ]
        opt = make(groups, lr=0.05)
        steps(opt, params, 3)
        return [values(params), moments(pair, opt, params)]

    alike(pair, scenario, 1e-6)


@pair
def test_add_param_group_before_and_after_steps(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1), parameter(2, seed=2), parameter(3, 3, seed=3)]
        opt = make(params[:1])
        opt.add_param_group({"params": params[1], "lr": 0.01})
        steps(opt, params[:2], 2)
        held = opt.state[params[0]]
        opt.add_param_group({"params": [params[2]], "weight_decay": 0.4})
        assert opt.state[params[0]] is held
        steps(opt, params[:3], 2, first=2)
        opt.add_param_group({"params": params[3:]})
        params[1].grad = None
        steps(opt, [params[k] for k in (0, 2, 3)], 2, first=4)
        return [values(params), moments(pair, opt, params)]

    alike(pair, scenario)


@pair
def test_refused_groups_leave_everything_as_it_was(pair: str) -> None:
    def scenario(make: Any) -> Any:
        p, q = parameter(4, 3), parameter(5, seed=1)
        opt = make([p])
        steps(opt, [p], 2)
        before, held = opt.param_groups[0], list(opt.param_groups[0])
        for bad in ({"params": [p]}, {"params": [q * 2]}, {"params": "no tensors"}, {"params": {q}}):
            with pytest.raises((TypeError, ValueError)):
                opt.add_param_group(bad)
        if make is PAIRS[pair][0]:
            for bad in ({"lr": -1.0}, {"nonfinite": "drop"}, {"weight_decay": float("nan")}, {"maximize": 1}):
                with pytest.raises((TypeError, ValueError), match="of group 1"):
                    opt.add_param_group({"params": [q], **bad})
            with pytest.raises(TypeError, match="complex64"):
                opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
        assert opt.param_groups == [before]
        assert list(before) == held
        opt.add_param_group({"params": [q]})
        steps(opt, [p, q], 2)
        return values([p, q])

    alike(pair, scenario)


@pair
def test_groups_may_be_empty(pair: str) -> None:
    def scenario(make: Any) -> Any:
        p = parameter(3)
        opt = make([{"params": []}, {"params": [p]}])
        opt.add_param_group({"params": []})
        steps(opt, [p])
        only = make([{"params": []}])
        only.step()
        assert only.state_dict()["state"] == {}
        return values([p])

    alike(pair, scenario)


@pair
def test_no_parameters_at_all_are_refused_as_torch_does(pair: str) -> None:
    for make in PAIRS[pair]:
        with pytest.raises(ValueError, match="empty parameter list"):
            make([])


@pair
def test_options_written_into_groups_count_from_the_next_step(pair: str) -> None:
    betas = {"betas": [(0.9, 0.99), (0.5, 0.9), (0.8, 0.7), (0.9, 0.999)]}
    momenta = {"momentum": [0.9, 0.5, 0.0, 0.7], "nesterov": [False, True, False, True]}
    own = betas if pair in ("adamw", "lamb") else momenta
    if pair in ("adamw", "lamb"):
        own = {**own, "eps": [1e-6, 1e-3, 0.1, 1e-8]}
    if own is momenta:
        # torch's SGD has no buffer at momentum 0, and no Nesterov then.
        own = {"momentum": [0.9, 0.5, 0.2, 0.7], "nesterov": [False, True, False, True]}
    changes = {**own, "lr": [0.1, 0.02, 0.3, 0.0], "weight_decay": [0.1, 0.0, 0.3, 0.2]}
    changes["maximize"] = [False, True, True, False]

    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1)]
        opt = make([{"params": params[:1]}, {"params": params[1:]}])
        seen = []
        for step in range(8):
            for name, series in changes.items():
                opt.param_groups[step % 2][name] = series[step // 2]
            steps(opt, params, 1, first=step)
            seen.append(values(params))
        return [seen, moments(pair, opt, params)]

    alike(pair, scenario)


@pytest.mark.parametrize(
    ("kind", "name", "series"),
    [
        ("lamb", "variant", ["paper", "adamw", "deepspeed", "torch_optimizer", "pytorch_optimizer", "timm"]),
        ("lamb", "always_adapt", [None, False, True, None]),
        ("lamb", "bias_correction", [None, False, True]),
        ("lamb", "grad_averaging", [True, False]),
        ("lamb", "trust_clip", [False, True]),
        ("lamb", "decoupled_decay", [None, True, False]),
        ("lamb", "max_grad_norm", [None, 0.1, 0.5]),
        ("lamb", "decay_filter", [None, lambda layer: False, lambda layer: layer.ndim > 1]),
        ("lamb", "adapt_filter", [None, lambda layer: False, lambda layer: layer.ndim > 1]),
        ("lars", "variant", ["timm", "mindspore", "paper", "paddle", "pytorch_optimizer"]),
        ("lars", "trust_coefficient", [0.1, 0.0, 0.7]),
        ("lars", "eps", [None, 0.5, 0.0]),
        ("lars", "trust_clip", [False, True]),
        ("lars", "always_adapt", [None, True, False]),
        ("lars", "max_grad_norm", [None, 0.1, 0.5]),
        ("lars", "decay_filter", [None, lambda layer: False, lambda layer: layer.ndim > 1]),
        ("lars", "adapt_filter", [None, lambda layer: False, lambda layer: layer.ndim > 1]),
    ],
)
def test_layerwise_options_written_into_groups(kind: str, name: str, series: list[Any]) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1), parameter(2, 2, seed=2)]
        opt = make([{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0}])
        seen = []
        for step, value in enumerate([*series, *series]):
            opt.param_groups[step >= len(series)][name] = value
            steps(opt, params, 1, first=step)
            seen.append(values(params))
        return seen

    alike(kind, scenario)


@ours
def test_keys_of_others_in_groups_are_kept(make: Any) -> None:
    params = [parameter(4, 3), parameter(5, seed=1)]
    foreign = {"initial_lr": 0.1, "lr_scale": 0.5, "step": 7, "tag": "x", "foreach": None, "fused": None}
    opt = make([{"params": params[:1], **foreign}, {"params": params[1:]}])
    steps(opt, params)
    opt.param_groups[1]["later"] = [1, 2]
    steps(opt, params)
    saved = opt.state_dict()
    assert saved["param_groups"][0].items() >= foreign.items()
    other = make([{"params": [parameter(4, 3)]}, {"params": [parameter(5)]}])
    other.load_state_dict(saved)
    steps(other, [p for group in other.param_groups for p in group["params"]])
    assert other.param_groups[0].items() >= foreign.items()
    assert other.param_groups[1]["later"] == [1, 2]


@pair
@pytest.mark.parametrize("stateful", [False, True])
def test_parameters_replaced_in_a_group(pair: str, stateful: bool) -> None:
    """What accelerate does, which may take the state along."""

    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1)]
        opt = make(params)
        steps(opt, params)
        new = [torch.nn.Parameter(2 * p.detach()) for p in params]
        for k, p in enumerate(new):
            opt.param_groups[0]["params"][k] = p
            if stateful:
                opt.state[p] = opt.state.pop(params[k])
        before = values(params)
        steps(opt, new, 3)
        assert_same(values(params), before)
        return [values(new), moments(pair, opt, new)]

    alike(pair, scenario)


@pair
def test_parameters_appended_to_and_taken_from_a_group(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1), parameter(3, seed=2)]
        opt = make([{"params": [("a", params[0]), ("b", params[1])]}])
        steps(opt, params[:2])
        opt.param_groups[0]["params"].append(params[2])
        steps(opt, params)
        del opt.param_groups[0]["params"][0]
        steps(opt, params)
        return [values(params), moments(pair, opt, params[1:])]

    alike(pair, scenario)


def exchange_parameters(opt: Any) -> None:
    one, other = opt.param_groups
    one["params"], other["params"] = other["params"], one["params"]


def exchange_one(opt: Any) -> None:
    one, other = (group["params"] for group in opt.param_groups)
    one[0], other[0] = other[0], one[0]


def move_one(opt: Any) -> None:
    opt.param_groups[1]["params"].append(opt.param_groups[0]["params"].pop())


def reverse_groups(opt: Any) -> None:
    opt.param_groups.reverse()


def reverse_parameters(opt: Any) -> None:
    opt.param_groups[0]["params"].reverse()


def take_group_away(opt: Any) -> None:
    del opt.param_groups[0]


def replace_groups(opt: Any) -> None:
    opt.param_groups = [dict(group) for group in opt.param_groups]


@pair
@pytest.mark.parametrize(
    "change",
    [
        *(exchange_parameters, exchange_one, move_one, reverse_groups, reverse_parameters),
        *(take_group_away, replace_groups),
    ],
)
def test_groups_rearranged(pair: str, change: Any) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(4, 3, seed=1), parameter(5, seed=2), parameter(5, seed=3)]
        groups = [{"params": params[:2], "lr": 0.01}, {"params": params[2:], "weight_decay": 0.3}]
        opt = make(groups)
        steps(opt, params)
        change(opt)
        steps(opt, params)
        opt.param_groups[0]["lr"] = 0.2
        steps(opt, params)
        return [values(params), moments(pair, opt, params)]

    alike(pair, scenario)
