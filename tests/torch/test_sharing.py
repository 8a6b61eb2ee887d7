"""Parameters that share memory: tied ones, views of each other, gradients of two and gradients in a parameter."""

from typing import Any

import pytest
import torch

from tests.torch.helpers import (
    MOMENTS,
    alike,
    assert_same,
    fill,
    ours,
    pair,
    parameter,
    randn,
    snapshot,
    steps,
    values,
)

P = torch.nn.Parameter


@pair
def test_one_parameter_at_two_places_of_a_model(pair: str) -> None:
    def scenario(make: Any) -> Any:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).double()
        model[1].weight = model[0].weight
        with torch.no_grad():
            for k, p in enumerate(model.parameters()):
                p.copy_(randn(*p.shape, seed=k))
        opt = make(model.named_parameters())
        assert len(opt.param_groups[0]["params"]) == 3
        for step in range(3):
            opt.zero_grad()
            model(randn(4, 3, seed=step)).square().mean().backward()
            opt.step()
        assert model[1].weight is model[0].weight
        return values(model)

    alike(pair, scenario)


SHARINGS = {
    "same": lambda base: [base, base],
    "reversed": lambda base: [base, base.view(5, 4).t()],
    "whole_first": lambda base: [base, base[:7], base[7:]],
    "whole_last": lambda base: [base[:7], base[7:], base],
    "whole_between": lambda base: [base[:7], base, base[7:]],
    "chain": lambda base: [base[:8], base[5:15], base[12:], base[:3]],
    "chain_back": lambda base: [base[12:], base[5:15], base[:8], base[10:13]],
    "twice": lambda base: [base[:10], base[:10], base[10:], base[:10]],
    "interleaved": lambda base: [base[::2], base[1::2]],
    "columns": lambda base: [base.view(4, 5)[:, :3], base.view(4, 5)[:, 3:]],
}
SHARINGS_WITH_GAPS = {
    "twice": lambda base: [base[::2], base[::2]],
    "gaps_and_whole": lambda base: [base[::2], base, base[1::2]],
    "whole_and_gaps": lambda base: [base, base[::2], base[1::2], base],
    "among": lambda base: [base[:5], base[1:12:3], base[11:], base[5:8]],
}


@pair
@pytest.mark.parametrize("sharing", list(SHARINGS))
def test_parameters_that_share_memory_are_updated_one_after_the_other(pair: str, sharing: str) -> None:
    def scenario(make: Any) -> Any:
        base = randn(20)
        params = [P(view) for view in SHARINGS[sharing](base)]
        opt = make(params)
        for step in range(3):
            for k, p in enumerate(params):
                p.grad = randn(*p.shape, seed=10 * step + k)
            opt.step()
        assert all(p.untyped_storage().data_ptr() == base.untyped_storage().data_ptr() for p in params)
        return [base, [opt.state[p][name] for p in params for name in MOMENTS[pair]]]

    alike(pair, scenario)


@ours
@pytest.mark.parametrize("sharing", list(SHARINGS_WITH_GAPS))
def test_parameters_with_gaps_that_share_memory_are_refused(make: Any, sharing: str) -> None:
    base = randn(20)
    before = base.clone()
    params = [P(view) for view in SHARINGS_WITH_GAPS[sharing](base)]
    opt = make(params)
    fill(params)
    with pytest.raises(ValueError, match="share memory, and the first has gaps"):
        opt.step()
    assert_same(base, before)
    assert len(opt.state) == 0


@pair
def test_parameters_that_come_to_share_memory(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(4, 3, seed=1)]
        opt = make(params)
        steps(opt, params)
        params[1].data = params[0].data
        for k, p in enumerate(params):
            p.grad = randn(4, 3, seed=k)
        opt.step()
        return values(params)

    alike(pair, scenario)


@pair
def test_two_parameters_may_have_one_gradient(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(4, 3, seed=1)]
        opt = make(params)
        for step in range(3):
            params[0].grad = params[1].grad = randn(4, 3, seed=step)
            opt.step()
        return values(params)

    alike(pair, scenario)


@ours
@pytest.mark.parametrize("stepped", [False, True])
def test_gradients_in_the_memory_of_a_parameter_are_refused(make: Any, stepped: bool) -> None:
    params = [parameter(6), parameter(4, seed=1)]
    opt = make([("first", params[0]), ("second", params[1])])
    if stepped:
        steps(opt, params)
    before = snapshot(opt)
    for bad in (params[0].detach()[:4], params[0].detach()[2:], params[1].detach()):
        params[1].grad = bad
        params[0].grad = torch.ones_like(params[0])
        with pytest.raises(ValueError, match="'second' shares memory with parameter"):
            opt.step()
    if stepped:
        assert_same(snapshot(opt), before)
    steps(opt, params)
