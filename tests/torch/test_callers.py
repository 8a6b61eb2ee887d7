"""What stands around a step: hooks, patched methods, autograd, torch.compile, threads, averaged models."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from numba_lamb.torch import Lamb, Lars, Momentum
from tests.torch.helpers import (
    alike,
    assert_close,
    assert_same,
    fill,
    loss_of,
    network,
    ours,
    pair,
    parameter,
    randn,
    steps,
    train,
    values,
)


@pair
def test_step_hooks(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(3), parameter(2, seed=1)]
        opt = make(params)
        calls = []

        def halve(optimizer: Any, args: Any, kwargs: Any) -> None:
            assert optimizer is opt
            assert list(args) == [opt]
            calls.append(("pre", list(kwargs)))
            for p in params:
                p.grad.mul_(0.5)

        def after(optimizer: Any, args: Any, kwargs: Any) -> None:
            assert list(args) == [opt]
            calls.append(("post", list(kwargs)))

        handles = [opt.register_step_pre_hook(halve), opt.register_step_post_hook(after)]
        global_pre = register_optimizer_step_pre_hook(lambda *_: calls.append("global pre"))
        global_post = register_optimizer_step_post_hook(lambda *_: calls.append("global post"))
        try:
            fill(params)
            opt.step()
            fill(params, 1)
            opt.step(closure=None)
        finally:
            global_pre.remove()
            global_post.remove()
        for handle in handles:
            handle.remove()
        fill(params, 2)
        opt.step()
        return [str(calls), values(params)]

    found = alike(pair, scenario)
    assert found[0].count("'pre'") == 2
    assert found[0].count("global post") == 2


@pair
def test_pre_hooks_may_replace_the_closure(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(3)]
        opt = make(params)

        def replace(optimizer: Any, args: Any, kwargs: Any) -> Any:
            return (optimizer, lambda: fill(params)), {}

        opt.register_step_pre_hook(replace)
        opt.step()
        return values(params)

    alike(pair, scenario)


@pair
def test_step_is_a_method_that_can_be_patched_and_unbound(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(3)]
        opt = make(params)
        calls = []
        original = opt.step
        assert original.__self__ is opt
        function = original.__func__

        def patched(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return function(opt, *args, **kwargs)

        opt.step = patched
        steps(opt, params, 2)
        assert calls == [1, 1]
        return values(params)

    alike(pair, scenario)


def test_subclasses_may_wrap_the_step() -> None:
    class Counting(Lamb):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)
            self.calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return super().step(closure)

    one, other = [parameter(3)], [parameter(3)]
    opt = Counting(one, lr=0.1)
    hooked: list[str] = []
    opt.register_step_pre_hook(lambda *_: hooked.append("pre"))
    opt.register_step_post_hook(lambda *_: hooked.append("post"))
    steps(opt, one, 3)
    assert hooked == ["pre", "post"] * 3
    steps(Lamb(other, lr=0.1), other, 3)
    assert opt.calls == 3
    assert_same(values(one), values(other))
    copied = copy.deepcopy(opt)
    assert type(copied) is Counting


@ours
def test_autograd_is_told_of_the_update(make: Any) -> None:
    p, q = parameter(3), parameter(3, seed=1)
    opt = make([p, q])
    p.grad = torch.ones(3, dtype=torch.float64)
    versions = p._version, q._version
    loss = (p.exp() * p).sum()
    product = (q * q).sum()
    opt.step()
    assert p._version > versions[0]
    assert q._version == versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    product.backward()
    assert not p.grad.requires_grad


@ours
def test_gradients_are_left_as_they_are(make: Any) -> None:
    params = [parameter(3), parameter(4, 2, seed=1)]
    opt = make(params, maximize=True, max_grad_norm=0.1)
    fill(params)
    held, before = [p.grad for p in params], [p.grad.clone() for p in params]
    opt.step()
    assert all(p.grad is grad for p, grad in zip(params, held, strict=True))
    assert_same(held, before)


@ours
def test_gradients_with_a_graph_are_read_without_it(make: Any) -> None:
    p, q = parameter(3), parameter(3)
    opt, plain = make([p]), make([q])
    (grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    p.grad, q.grad = grad, grad.detach().clone()
    opt.step()
    plain.step()
    assert p.is_leaf
    assert p.requires_grad
    assert_same(p, q)


@ours
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_steps_inside_torch_compile(make: Any, backend: str) -> None:
    def trained(compiled: bool) -> Any:
        torch._dynamo.reset()
        model = network()
        opt = make(model.named_parameters())

        # Backward stays outside: what is compiled is what calls the optimizer.
        function = torch.compile(opt.step, backend=backend) if compiled else opt.step

        def step(inputs: Any) -> Any:
            opt.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            function()
            return loss.detach()

        losses = [step(randn(6, 4, seed=k)) for k in range(3)]
        return [losses, values(model), [dict(opt.state[p]) for p in model.parameters()]]

    assert_same(trained(True), trained(False))


@ours
def test_bits_do_not_depend_on_threads(make: Any) -> None:
    def trained(threads: int) -> Any:
        params = [parameter(200, 150), parameter(5000, seed=1), parameter(3, seed=2)]
        opt = make(params, max_grad_norm=0.5)
        torch.set_num_threads(threads)
        steps(opt, params, 3)
        return [values(params), [dict(opt.state[p]) for p in params], list(opt.stats().values())]

    before = torch.get_num_threads()
    try:
        assert_same(trained(1), trained(2))
    finally:
        torch.set_num_threads(before)


@ours
def test_two_optimizers_in_two_threads(make: Any) -> None:
    def trained(seed: int) -> Any:
        params = [parameter(40, 30, seed=seed), parameter(7, seed=seed)]
        steps(make(params), params, 20)
        return values(params)

    expected = [trained(seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(trained, range(2)))
    assert_same(found, expected)


@ours
def test_averaged_models(make: Any) -> None:
    model = network()
    opt = make(model.parameters())
    ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    expected = None
    for step in range(3):
        train(model, opt, 1, first=step)
        ema.update_parameters(model)
        now = values(model)
        expected = now if expected is None else [(a + b) / 2 for a, b in zip(expected, now, strict=True)]
    assert_close(values(ema.module), expected)


@ours
def test_steps_as_gradients_arrive(make: Any) -> None:
    """One optimizer for each parameter, stepped in its hook and then rid of the gradient."""
    model, plain = network(), network()
    opts = {p: make([p]) for p in model.parameters()}

    def step(p: Any) -> None:
        opts[p].step()
        opts[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    for k in range(3):
        loss_of(model, k).backward()
    train(plain, make(plain.parameters()), 3)
    assert_same(values(model), values(plain))


@pytest.mark.parametrize("kind", [Lamb, Lars, Momentum])
def test_profilers_see_the_step(kind: Any) -> None:
    params = [parameter(3)]
    opt = kind(params)
    steps(opt, params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        steps(opt, params, 1)
        opt.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert f"Optimizer.step#{kind.__name__}.step" in names
    assert f"Optimizer.zero_grad#{kind.__name__}.zero_grad" in names


@ours
def test_hooks_registered_after_steps_and_on_one_of_two(make: Any) -> None:
    params = [parameter(3)]
    one, other = make(params), make(params)
    steps(one, params)
    steps(other, params)
    calls = []
    one.register_step_post_hook(lambda *_: calls.append("post"))
    one.register_step_pre_hook(lambda *_: calls.append("pre"))
    steps(one, params, 1)
    steps(other, params, 1)
    assert calls == ["pre", "post"]
    copied = copy.deepcopy(other)
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    try:
        steps(copied, copied.param_groups[0]["params"], 1)
        steps(one, params, 1)
    finally:
        handle.remove()
    steps(one, params, 1)
    assert calls == ["pre", "post", "global", "pre", "post", "global", "pre", "post"]
