"""Checkpoints and copies in every form."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch

from numba_lamb.torch import Lamb, Lars, Momentum
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

KINDS = [Lamb, Lars, Momentum]
kinds = pytest.mark.parametrize("kind", KINDS)


def exempt_vectors(layer: Any) -> bool:
    return layer.ndim > 1


def public(opt: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(opt).items() if not name.startswith("_")}


def saved_and_read(state: Any, **options: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, **options)


def continued(make: Any, opt: Any, model: Any, state: Any) -> None:
    """Load `state`, of `opt`, into an optimizer of a copy of the model; both go on with the same bits."""
    twin = copy.deepcopy(model)
    other = make(twin.parameters(), lr=0.7)
    train(twin, other, 1)
    other.zero_grad()
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(state)
    train(model, opt, 3, first=5)
    train(twin, other, 3, first=5)
    assert_same(snapshot(other), snapshot(opt))
    assert other.param_groups[0]["lr"] == opt.param_groups[0]["lr"] == 0.1


# -- state_dict and load_state_dict -----------------------------------------------------------------------------


@ours
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("way", ["copied", "saved", "weights_only", "pickled"])
def test_state_dict_goes_on_in_another_instance_with_the_same_bits(make: Any, before: int, way: str) -> None:
    model = network(torch.float32 if before == 1 else torch.float64)
    opt = make(model.parameters(), nonfinite="skip", max_grad_norm=1.0)
    train(model, opt, before)
    state = opt.state_dict()
    written = {
        "copied": copy.deepcopy,
        "saved": lambda given: saved_and_read(given, weights_only=False),
        "weights_only": lambda given: saved_and_read(given, weights_only=True),
        "pickled": lambda given: pickle.loads(pickle.dumps(given)),
    }[way](state)
    assert_same(written["state"], state["state"])
    continued(make, opt, model, written)


@ours
def test_a_fresh_optimizers_own_state_can_be_loaded_into_it(make: Any) -> None:
    """What accelerate does when it prepares an optimizer."""
    model, twin = network(), network()
    opt, plain = make(model.parameters()), make(twin.parameters())
    opt.load_state_dict(opt.state_dict())
    assert opt.state_dict()["state"] == {}
    train(model, opt)
    opt.load_state_dict(opt.state_dict())
    train(model, opt, first=3)
    train(twin, plain, 6)
    assert_same(snapshot(opt), snapshot(plain))


@pair
def test_state_dict_is_laid_out_as_torchs(pair: str) -> None:
    model = network()
    opt = PAIRS[pair][0](model.named_parameters())
    train(model, opt, 2)
    state = opt.state_dict()
    assert list(state) == ["state", "param_groups"]
    assert list(state["state"]) == list(range(5))
    for p, entry in zip(model.parameters(), state["state"].values(), strict=True):
        assert set(entry) == {"step", *MOMENTS[pair]}
        assert entry["step"].item() == 2
        for name in MOMENTS[pair]:
            assert type(entry[name]) is torch.Tensor
            assert entry[name] is opt.state[p][name]
            assert (entry[name].shape, entry[name].dtype) == (p.shape, p.dtype)
            assert not entry[name].requires_grad
    (group,) = state["param_groups"]
    assert group["params"] == list(range(5))
    assert group["param_names"] == [name for name, _ in model.named_parameters()]
    assert set(group) == set(opt.param_groups[0])


@ours
def test_checkpoints_are_not_larger_than_their_values(make: Any) -> None:
    params = [parameter(300, 100), parameter(100, seed=1), parameter(50, 50, seed=2)]
    opt = make(params)
    steps(opt, params)
    held = sum(t.nbytes for p in params for t in opt.state[p].values())
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    assert held <= buffer.getbuffer().nbytes <= 1.1 * held + 10_000


@ours
def test_pickles_are_not_larger_than_their_values(make: Any) -> None:
    params = [parameter(300, 100), parameter(100, seed=1), parameter(50, 50, seed=2)]
    opt = make(params)
    steps(opt, params)
    held = sum(t.nbytes for p in params for t in opt.state[p].values())
    assert held <= len(pickle.dumps(opt.state_dict())) <= 1.1 * held + 10_000
    with_params = held + sum(p.nbytes for p in params)
    for p in params:
        p.grad = None
    assert with_params <= len(pickle.dumps(opt)) <= 1.1 * with_params + 10_000


@ours
def test_loaded_state_is_not_written_to(make: Any) -> None:
    model = network()
    opt = make(model.parameters())
    train(model, opt)
    state = copy.deepcopy(opt.state_dict())
    before = copy.deepcopy(state)
    twin = network()
    other = make(twin.parameters())
    other.load_state_dict(state)
    train(twin, other)
    assert_same(state["state"], before["state"])
    assert state["param_groups"] == before["param_groups"]


@ours
def test_two_optimizers_that_loaded_one_state_go_apart(make: Any) -> None:
    models = [network(), network(), network()]
    opts = [make(model.parameters()) for model in models]
    train(models[0], opts[0])
    state = copy.deepcopy(opts[0].state_dict())
    for model, opt in zip(models[1:], opts[1:], strict=True):
        model.load_state_dict(models[0].state_dict())
        opt.load_state_dict(state)
    train(models[1], opts[1], 5, first=20)
    for k in (0, 2):
        train(models[k], opts[k], first=3)
    assert_same(snapshot(opts[2]), snapshot(opts[0]))


@kinds
def test_older_checkpoints_without_newer_keys(kind: Any) -> None:
    model, twin = network(), network()
    opt, plain = kind(model.parameters(), lr=0.1), kind(twin.parameters(), lr=0.1)
    for m, o in ((model, opt), (twin, plain)):
        train(m, o)
    state = opt.state_dict()
    for name in ("max_grad_norm", "maximize", "trust_clip", "always_adapt", "grad_averaging"):
        state["param_groups"][0].pop(name, None)
    opt.load_state_dict(state)
    assert set(opt.param_groups[0]) == set(plain.param_groups[0])
    for m, o in ((model, opt), (twin, plain)):
        train(m, o, first=3)
    assert_same(snapshot(opt), snapshot(plain))


@pair
def test_load_refuses_what_torchs_refuses_and_changes_nothing(pair: str) -> None:
    for make in PAIRS[pair]:
        params = [parameter(3), parameter(2, seed=1)]
        opt = make(params)
        steps(opt, params)
        two = make([{"params": params[:1]}, {"params": params[1:]}])
        before, groups = snapshot(opt), copy.copy(opt.param_groups[0])
        with pytest.raises(ValueError, match="different number of parameter groups"):
            opt.load_state_dict(two.state_dict())
        with pytest.raises(ValueError, match="doesn't match the size"):
            opt.load_state_dict(make(params[:1]).state_dict())
        assert_same(snapshot(opt), before)
        assert opt.param_groups[0] == groups


@kinds
def test_state_of_another_class_of_ours_is_refused(kind: Any) -> None:
    params = [parameter(3), parameter(2, seed=1)]
    opt = kind(params)
    steps(opt, params)
    for other in KINDS:
        if other is kind:
            continue
        given = other(params)
        steps(given, params, 1)
        before = snapshot(opt)
        with pytest.raises((TypeError, ValueError), match=other.__name__):
            opt.load_state_dict(given.state_dict())
        assert_same(snapshot(opt), before)


@ours
def test_moments_of_another_shape_are_refused_by_name(make: Any) -> None:
    params = [parameter(3), parameter(2, seed=1)]
    opt = make([("first", params[0]), ("second", params[1])])
    steps(opt, params)
    wrong = make([("first", parameter(3)), ("second", parameter(4))])
    steps(wrong, wrong.param_groups[0]["params"])
    opt.load_state_dict(wrong.state_dict())
    before = values(params)
    fill(params)
    with pytest.raises(ValueError, match=r"second.*shape"):
        opt.step()
    assert_same(values(params), before)


@pair
def test_state_is_cast_to_the_parameters_dtype(pair: str) -> None:
    def scenario(make: Any) -> Any:
        model = network(torch.float64)
        opt = make(model.parameters())
        train(model, opt)
        twin = network(torch.float32)
        other = make(twin.parameters())
        other.load_state_dict(opt.state_dict())
        train(twin, other)
        return [values(twin), [other.state[p][name] for p in twin.parameters() for name in MOMENTS[pair]]]

    alike(pair, scenario, 2e-5)


@pair
def test_hooks_of_checkpoints(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(3), parameter(2, seed=1)]
        opt = make(params)
        steps(opt, params)
        calls: list[str] = []

        def halve(optimizer: Any, state: Any) -> Any:
            calls.append("load pre")
            halved = copy.deepcopy(state)
            for entry in halved["state"].values():
                for name in MOMENTS[pair]:
                    entry[name] *= 0.5
            return halved

        def note(optimizer: Any, state: Any) -> None:
            calls.append("saved")
            state["extra"] = 1

        opt.register_state_dict_pre_hook(lambda optimizer: calls.append("save pre"))
        opt.register_state_dict_post_hook(note)
        opt.register_load_state_dict_pre_hook(halve)
        opt.register_load_state_dict_post_hook(lambda optimizer: calls.append("loaded"))
        state = opt.state_dict()
        assert state.pop("extra") == 1
        opt.load_state_dict(state)
        steps(opt, params, first=2)
        return [calls, values(params)]

    assert alike(pair, scenario)[:4] == ["save pre", "saved", "load pre", "loaded"]


@kinds
def test_filters_are_not_saved_and_outlive_loading(kind: Any) -> None:
    named = {"adapt_filter": exempt_vectors} if kind is not Momentum else {}
    own = {"decay_filter": exempt_vectors, **named}
    model = network()
    opt = kind([{"params": list(model.parameters())[:2], **own}, {"params": list(model.parameters())[2:]}])
    train(model, opt)
    state = saved_and_read(opt.state_dict(), weights_only=True)
    assert all(group[name] is None for group in state["param_groups"] for name in own)
    opt.load_state_dict(state)
    assert opt.param_groups[0].items() >= own.items()
    assert opt.param_groups[1]["decay_filter"] is None
    train(model, opt)


# -- copies -----------------------------------------------------------------------------------------------------


@ours
@pytest.mark.parametrize("way", [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
@pytest.mark.parametrize("before", [0, 2])
def test_copies_of_model_and_optimizer_go_on_with_the_same_bits(make: Any, way: Any, before: int) -> None:
    model = network()
    opt = make(model.parameters(), decay_filter=exempt_vectors, max_grad_norm=1.0)
    train(model, opt, before)
    twin, other = way((model, opt))
    assert type(other) is type(opt)
    assert list(public(other)) == list(public(opt))
    # torch adds this one itself.
    assert {**other.defaults, "differentiable": False} == {**opt.defaults, "differentiable": False}
    assert other.param_groups[0]["params"][0] is next(twin.parameters())
    for m, o in ((model, opt), (twin, other)):
        train(m, o, 3, first=9)
    assert_same(snapshot(other), snapshot(opt))
    before_more = snapshot(opt)
    train(twin, other)
    assert_same(snapshot(opt), before_more)


@ours
def test_copies_keep_fused_amp_and_the_count_of_steps_left_out(make: Any) -> None:
    p = parameter(3)
    opt = make([p], nonfinite="skip", fused_amp=True)
    p.grad = torch.full_like(p, float("nan"))
    opt.step()
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert other.skipped_steps == 1
        assert other._step_supports_amp_scaling is True
        (q,) = other.param_groups[0]["params"]
        q.grad = torch.full_like(q, float("inf"))
        other.step()
        assert (other.skipped_steps, opt.skipped_steps) == (2, 1)


@ours
def test_shallow_copies_share_the_state(make: Any) -> None:
    params, twins = [parameter(4, 3)], [parameter(4, 3)]
    one, plain = make(params), make(twins)
    steps(one, params, 1)
    other = copy.copy(one)
    assert other.state is one.state
    for step in range(1, 5):
        steps(one if step % 2 else other, params, 1, first=step)
    steps(plain, twins, 5)
    assert_same(snapshot(one), snapshot(plain))


@ours
def test_two_optimizers_may_have_the_same_parameters(make: Any) -> None:
    """As where two losses each have an optimizer for the shared layers."""
    params = [parameter(4, 3), parameter(5, seed=1)]
    opts = [make(params, lr=0.1), make(params, lr=0.01)]
    for step in range(4):
        steps(opts[step % 2], params, 1, first=step)
    assert [opt.state[p]["step"].item() for opt in opts for p in params] == [2, 2, 2, 2]
    assert opts[0].state[params[0]] is not opts[1].state[params[0]]
