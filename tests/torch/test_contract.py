"""What callers of `torch.optim.Optimizer` do with one around its steps; torch's optimizers are the model."""

import copy
import gc
from typing import Any

import pytest
import torch

from tests.torch.helpers import (
    alike,
    assert_same,
    fill,
    loss_of,
    moments,
    network,
    ours,
    pair,
    parameter,
    snapshot,
    steps,
    train,
    values,
)

# -- closures ---------------------------------------------------------------------------------------------------


@pair
def test_closure_runs_with_gradients_and_its_loss_is_returned(pair: str) -> None:
    def scenario(make: Any) -> Any:
        model = network()
        opt = make(model.parameters())
        losses: list[Any] = []

        def closure() -> Any:
            assert torch.is_grad_enabled()
            opt.zero_grad()
            loss = loss_of(model, len(losses))
            loss.backward()
            return loss

        for step in range(3):
            with torch.set_grad_enabled(step != 1):
                losses.append(opt.step(closure))
        return [losses, values(model)]

    found = alike(pair, scenario)
    assert found[0].shape == ()


@ours
def test_without_a_closure_nothing_is_returned_and_a_closures_error_comes_through(make: Any) -> None:
    model = network()
    opt = make(model.parameters())
    loss_of(model).backward()
    assert opt.step() is None
    assert opt.step(closure=lambda: 3.5) == 3.5
    before = snapshot(opt)

    def failing() -> Any:
        raise KeyError("from the closure")

    with pytest.raises(KeyError, match="from the closure"):
        opt.step(failing)
    assert_same(snapshot(opt), before)


@pair
def test_closures_may_bring_new_gradients_at_each_step(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(3, 2), parameter(4, seed=1)]
        opt = make(params)
        for step in range(3):
            opt.zero_grad(set_to_none=True)

            def closure(step: int = step) -> float:
                fill(params, step)
                return float(step)

            assert opt.step(closure) == step
        return [values(params), moments(pair, opt, params)]

    alike(pair, scenario)


# -- parameters without gradients -------------------------------------------------------------------------------


@pair
def test_parameters_without_gradient_are_left_alone(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(3, 2), parameter(5, seed=1), parameter(2, 2, seed=2)]
        opt = make(params)
        missing = [(), (1,), (0, 2), (0, 1, 2), (2,), ()]
        seen = []
        for step, none in enumerate(missing):
            fill(params, step)
            for k in none:
                params[k].grad = None
            before = [[params[k].detach().clone(), copy.deepcopy(opt.state.get(params[k]))] for k in none]
            opt.step()
            assert_same([[params[k].detach(), opt.state.get(params[k])] for k in none], before)
            seen.append(values(params))
        return [seen, moments(pair, opt, params)]

    alike(pair, scenario)


@ours
def test_steps_are_counted_where_there_was_a_gradient(make: Any) -> None:
    params = [parameter(3, 2), parameter(5, seed=1), parameter(2, 2, seed=2)]
    opt = make(params)
    for step, none in enumerate([(2,), (1, 2), (), (0,)]):
        fill(params, step)
        for k in none:
            params[k].grad = None
        opt.step()
    assert [opt.state[p]["step"].item() for p in params] == [3, 3, 2]
    assert all(opt.state[p]["step"].dtype == torch.float32 and opt.state[p]["step"].ndim == 0 for p in params)


@pair
def test_layers_frozen_and_unfrozen(pair: str) -> None:
    def scenario(make: Any) -> Any:
        model = network()
        first = list(model[0].parameters())
        for p in first:
            p.requires_grad_(False)
        opt = make(model.parameters())
        seen = []
        for step in range(9):
            for p in first:
                p.requires_grad_(3 <= step < 6)
                p.grad = None
            train(model, opt, 1, first=step)
            seen.append(values(model))
        assert all(not torch.equal(one, other) for one, other in zip(seen[2][:1], seen[5][:1], strict=True))
        assert_same(seen[5][:2], seen[8][:2])
        return [seen, moments(pair, opt, model.parameters())]

    alike(pair, scenario)


@pytest.mark.slow
@ours
def test_frozen_parameters_have_no_state_and_cost_no_memory(make: Any) -> None:
    before = {id(thing) for thing in gc.get_objects()}
    frozen = [torch.nn.Parameter(torch.zeros(100_000), requires_grad=False) for _ in range(2)]
    trained = parameter(10)
    opt = make([*frozen, trained])
    assert len(opt.state) == 0
    steps(opt, [trained])
    assert list(opt.state) == [trained]
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in opt.state[trained].values()
    }
    assert sum(held.values()) < 10_000
    gc.collect()
    flat = [
        thing
        for thing in gc.get_objects()
        if type(thing) is torch.Tensor and id(thing) not in before and thing.numel() > 50_000
    ]
    assert not flat


@pair
def test_step_without_any_gradient_does_nothing(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(3), parameter(2, seed=1)]
        opt = make(params)
        opt.step()
        assert len(opt.state) == 0
        steps(opt, params, 2)
        opt.zero_grad()
        before = values(params)
        opt.step()
        assert_same(values(params), before)
        return [values(params), moments(pair, opt, params)]

    alike(pair, scenario)


@ours
def test_steps_of_zero_gradient_and_zero_rate_move_nothing(make: Any) -> None:
    params = [parameter(3, 2), torch.nn.Parameter(torch.zeros(4)), parameter(0), parameter()]
    opt = make(params, lr=0.0)
    before = values(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert_same(values(params), before)
    assert all(torch.isfinite(t).all() for p in params for t in opt.state[p].values())
    assert [opt.state[p]["step"].item() for p in params] == [1, 1, 1, 1]


@ours
def test_zero_grad_both_ways(make: Any) -> None:
    params = [parameter(3), parameter(2, seed=1)]
    opt = make(params)
    steps(opt, params)
    held = params[0].grad
    opt.zero_grad(set_to_none=False)
    assert params[0].grad is held
    assert not held.any()
    opt.zero_grad()
    assert params[0].grad is None
