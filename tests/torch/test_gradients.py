"""What a step does to gradients beforehand: clipping, looking for infinities, and a GradScaler's factor."""

from typing import Any

import pytest
import torch

from numba_lamb.torch import Momentum
from tests.torch.helpers import (
    PAIRS,
    alike,
    assert_close,
    assert_same,
    fill,
    loss_of,
    network,
    ours,
    pair,
    parameter,
    snapshot,
    steps,
    values,
)

slow_pair = pytest.mark.parametrize("pair", ["lamb", "lars"])
BAD = pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])


def three() -> list[Any]:
    return [parameter(4, 3), parameter(5, seed=1), parameter(70, 80, seed=2, dtype=torch.float32)]


# -- max_grad_norm ----------------------------------------------------------------------------------------------


@pair
@pytest.mark.parametrize("limit", [0.05, 2.0, 1e6])
@pytest.mark.parametrize("missing", [(), (1,)])
def test_clipping_is_torchs_up_to_the_1e_6_that_it_adds(pair: str, limit: float, missing: Any) -> None:
    found, expected = three(), three()
    opt, model = PAIRS[pair][0](found, max_grad_norm=limit), PAIRS[pair][1](expected)
    for step in range(4):
        for params in (found, expected):
            fill(params, step)
            for k in missing:
                params[k].grad = None
        before = [None if p.grad is None else p.grad.clone() for p in found]
        norm = torch.nn.utils.clip_grad_norm_(expected, limit)
        opt.step()
        model.step()
        assert opt.stats()["grad_norm"] == pytest.approx(float(norm), rel=1e-6)
        assert_same([g for g in before if g is not None], [p.grad for p in found if p.grad is not None])
    assert_close(values(found)[:2], values(expected)[:2], 2e-4)


@slow_pair
def test_limits_are_each_groups_own_and_the_norm_is_that_of_all_that_have_one(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = three()
        groups = [
            {"params": params[:1], "max_grad_norm": 0.1},
            {"params": params[1:2], "max_grad_norm": 1.5},
            {"params": params[2:]},
        ]
        opt = make(groups)
        for step in range(4):
            fill(params, step)
            if step == 2:
                params[0].grad = None
            if step == 3:
                params[0].grad = params[1].grad = None
            opt.step()
        return values(params)

    alike(pair, scenario, 1e-6)


@slow_pair
def test_limits_come_and_go(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = three()[:2]
        opt = make([{"params": params[:1]}, {"params": params[1:]}])
        seen = []
        for step, limits in enumerate([(None, None), (0.1, None), (0.1, 0.5), (None, 0.5), (None, None)]):
            for group, limit in zip(opt.param_groups, limits, strict=True):
                group["max_grad_norm"] = limit
            steps(opt, params, 1, first=step)
            seen.append(values(params))
        return seen

    alike(pair, scenario)


@ours
def test_norms_are_said_only_while_something_is_clipped(make: Any) -> None:
    params = three()
    opt = make(params)
    steps(opt, params, 1)
    assert "grad_norm" not in opt.stats()
    opt.param_groups[0]["max_grad_norm"] = 1.0
    steps(opt, params, 1)
    expected = torch.linalg.vector_norm(torch.stack([p.grad.double().norm() for p in params]))
    assert opt.stats()["grad_norm"] == pytest.approx(expected.item())
    opt.param_groups[0]["max_grad_norm"] = None
    steps(opt, params, 1)
    assert "grad_norm" not in opt.stats()


@ours
def test_norms_do_not_overflow_where_gradients_do_not(make: Any) -> None:
    p, q = parameter(3, dtype=torch.float32), parameter(3, dtype=torch.float32)
    opt, plain = make([p], max_grad_norm=1.0), make([q])
    p.grad = torch.full((3,), 1e30)
    q.grad = torch.full((3,), 3**-0.5)
    opt.step()
    plain.step()
    assert_close(p, q, 1e-6)


# -- nonfinite --------------------------------------------------------------------------------------------------


@ours
@BAD
@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("stepped", [0, 2])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_skipped_steps_change_nothing(make: Any, bad: float, limit: Any, stepped: int, where: int) -> None:
    params = three()
    opt = make(params, nonfinite="skip", max_grad_norm=limit)
    steps(opt, params, stepped)
    twins = three()
    plain = make(twins, max_grad_norm=limit)
    steps(plain, twins, stepped)
    before, versions, told = snapshot(opt), [p._version for p in params], dict(opt.stats())
    for k in range(2):
        fill(params, 5)
        params[where].grad.view(-1)[-1] = bad
        opt.step()
        assert opt.skipped_steps == k + 1
    assert_same(values(params), before[0])
    if stepped:
        assert_same(snapshot(opt), before)
        assert dict(opt.stats()) == told
    assert all(state["step"].item() == stepped for state in opt.state.values())
    assert [p._version for p in params] == versions
    steps(opt, params, 2, first=7)
    steps(plain, twins, 2, first=7)
    assert_same(snapshot(opt), snapshot(plain))
    assert (opt.skipped_steps, plain.skipped_steps) == (2, 0)


@ours
@BAD
@pytest.mark.parametrize("limit", [None, 1.0])
def test_raising_changes_nothing_and_names_the_layer(make: Any, bad: float, limit: Any) -> None:
    params = three()
    opt = make([(f"w{k}", p) for k, p in enumerate(params)], nonfinite="raise", max_grad_norm=limit)
    steps(opt, params)
    before = snapshot(opt)
    fill(params, 5)
    params[1].grad[2] = bad
    with pytest.raises(FloatingPointError, match="gradient of 'w1' has 1 value"):
        opt.step()
    assert_same(snapshot(opt), before)
    assert opt.skipped_steps == 0
    steps(opt, params, 1)


@pair
@BAD
def test_propagating_is_what_torch_does(pair: str, bad: float) -> None:
    def scenario(make: Any) -> Any:
        params = three()[:2]
        opt = make(params)
        steps(opt, params)
        fill(params, 5)
        params[1].grad[2] = bad
        opt.step()
        assert torch.isfinite(params[0]).all()
        assert not torch.isfinite(params[1]).all()
        return [params[0], torch.isfinite(params[1])]

    alike(pair, scenario)


@ours
@pytest.mark.parametrize(
    ("modes", "where", "outcome"),
    [
        (("propagate", "skip", "propagate"), 0, "taken"),
        (("propagate", "skip", "propagate"), 1, "skipped"),
        (("propagate", "skip", "propagate"), 2, "taken"),
        (("propagate", "skip", "raise"), 0, "taken"),
        (("propagate", "skip", "raise"), 1, "raised"),
        (("propagate", "skip", "raise"), 2, "raised"),
        (("skip", "propagate", "raise"), 1, "taken"),
        (("propagate", "propagate", "propagate"), 1, "taken"),
    ],
)
def test_groups_decide_whether_their_gradients_are_looked_at(
    make: Any, modes: Any, where: int, outcome: str
) -> None:
    params = three()
    opt = make([{"params": [p], "nonfinite": mode} for p, mode in zip(params, modes, strict=True)])
    steps(opt, params)
    before = snapshot(opt)
    fill(params, 5)
    params[where].grad.view(-1)[0] = float("nan")
    if outcome == "raised":
        with pytest.raises(FloatingPointError, match=f"param_{where}"):
            opt.step()
    else:
        opt.step()
    assert opt.skipped_steps == (outcome == "skipped")
    if outcome == "taken":
        others = [p for k, p in enumerate(params) if k != where]
        assert all(torch.isfinite(p).all() for p in others)
        assert torch.isnan(params[where]).any()
        assert all(opt.state[p]["step"].item() == 3 for p in params)
    else:
        assert_same(snapshot(opt), before)


@ours
def test_what_is_done_about_infinities_can_change(make: Any) -> None:
    params = three()
    opt = make(params)
    steps(opt, params)
    fill(params, 5)
    params[0].grad[0, 0] = float("inf")
    opt.param_groups[0]["nonfinite"] = "skip"
    before = snapshot(opt)
    opt.step()
    assert_same(snapshot(opt), before)
    opt.param_groups[0]["nonfinite"] = "raise"
    with pytest.raises(FloatingPointError):
        opt.step()
    assert_same(snapshot(opt), before)
    opt.param_groups[0]["nonfinite"] = "propagate"
    opt.step()
    assert not torch.isfinite(params[0]).all()
    assert opt.skipped_steps == 1


# -- GradScaler -------------------------------------------------------------------------------------------------


def scaled_training(make: Any, change: Any, *, clip: float | None, fused: bool, ours: bool) -> Any:
    """Train with a scaler whose scale grows and, after an overflow, shrinks."""
    model = network(torch.float32)
    opt = make(model.parameters(), **({"fused_amp": fused} if ours else {}))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    seen = []
    for step in range(8):
        opt.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if step == 4:
            next(model.parameters()).grad[0, 0] = float("inf")
        change(opt, step)
        if clip is not None:
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        before = values(model)
        scaler.step(opt)
        scaler.update()
        if step == 4:
            assert_same(values(model), before)
        seen.append(values(model))
    return [seen, scaler.get_scale(), [opt.state[p]["step"].item() for p in model.parameters() if ours]], opt


def nothing(opt: Any, step: int) -> None:
    pass


def rates(opt: Any, step: int) -> None:
    opt.param_groups[0]["lr"] = 0.1 / (step + 1)


def decays(opt: Any, step: int) -> None:
    opt.param_groups[0]["weight_decay"] = 0.01 * (step % 3)


def ascent(opt: Any, step: int) -> None:
    opt.param_groups[0]["maximize"] = step in (2, 3)


def freezing(opt: Any, step: int) -> None:
    if step in (1, 3, 6):
        opt.param_groups[0]["params"][step % 3].grad = None


def reloading(opt: Any, step: int) -> None:
    opt.load_state_dict(opt.state_dict())


@pair
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("change", [nothing, rates, decays, ascent, freezing, reloading])
def test_training_with_a_scaler(pair: str, clip: Any, fused: bool, change: Any) -> None:
    ours, model = PAIRS[pair]
    found, opt = scaled_training(ours, change, clip=clip, fused=fused, ours=True)
    expected, _ = scaled_training(model, change, clip=clip, fused=False, ours=False)
    assert_close(found[:2], expected[:2], 2e-4)
    # A frozen step and the overflow are not counted.
    assert max(found[2]) == 7
    assert opt.skipped_steps == (1 if fused else 0)
    assert not hasattr(opt, "grad_scale")


@slow_pair
@pytest.mark.parametrize("change", [nothing, decays, ascent])
def test_clipping_by_the_step_knows_the_scale(pair: str, change: Any) -> None:
    ours, model = PAIRS[pair]

    def limited(make: Any) -> Any:
        return lambda params, **options: make(params, max_grad_norm=0.3, **options)

    found, _ = scaled_training(limited(ours), change, clip=None, fused=True, ours=True)
    expected, _ = scaled_training(limited(model), change, clip=None, fused=False, ours=False)
    assert_close(found[:2], expected[:2], 2e-4)


def switched(opt: Any, step: int) -> None:
    opt.param_groups[0]["max_grad_norm"] = 0.3 if step % 3 == 1 else None


@slow_pair
def test_clipping_by_the_step_switched_on_and_off_under_a_scale(pair: str) -> None:
    ours, model = PAIRS[pair]
    found, _ = scaled_training(ours, switched, clip=None, fused=True, ours=True)
    expected, _ = scaled_training(model, switched, clip=None, fused=False, ours=False)
    assert_close(found[:2], expected[:2], 2e-4)


@ours
def test_scales_are_only_used_when_asked_for(make: Any) -> None:
    p = parameter(3)
    assert make([p])._step_supports_amp_scaling is False
    assert make([p], fused_amp=True)._step_supports_amp_scaling is True
    for given in (None, 1, "yes"):
        with pytest.raises(TypeError, match="fused_amp must be a bool"):
            make([p], fused_amp=given)
    assert "fused_amp" not in make([p], fused_amp=True).state_dict()["param_groups"][0]


def test_after_a_scaled_step_a_plain_one_is_not_scaled() -> None:
    p = parameter(3)
    p.data.zero_()
    opt = Momentum([p], lr=1.0, momentum=0.0, fused_amp=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(p.sum()).backward()
    scaler.step(opt)
    p.grad = torch.ones_like(p)
    opt.step()
    assert_same(p, torch.full_like(p, -2.0))
