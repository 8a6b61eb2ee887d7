"""Parameters and gradients of every kind of memory, and what happens when their memory changes between steps."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.torch.helpers import (
    MOMENTS,
    PAIRS,
    alike,
    assert_same,
    fill,
    ours,
    pair,
    parameter,
    randn,
    steps,
    values,
)

P = torch.nn.Parameter


def odd_size_one() -> Any:
    return P(torch.as_strided(randn(40), (3, 1, 2, 1), (2, 17, 1, 5)))


LAYOUTS = {
    "contiguous": lambda: P(randn(2, 3, 4, 5)),
    "channels_last": lambda: P(randn(2, 3, 4, 5).to(memory_format=torch.channels_last)),
    "permuted": lambda: P(randn(2, 3, 4).permute(2, 0, 1)),
    "transposed": lambda: P(randn(6, 4).t()),
    "gaps": lambda: P(randn(10, 5, 2)[..., 0]),
    "rows": lambda: P(randn(10, 6)[::2, 1:4]),
    "inside": lambda: P(randn(30)[7:19]),
    "large_gaps": lambda: P(randn(90, 60, 2)[..., 1]),
    "large_transposed": lambda: P(randn(90, 60).t()),
    "size_one": odd_size_one,
    "negated": lambda: P(torch._neg_view(randn(4, 3))),
    "negated_gaps": lambda: P(torch.imag(torch.complex(randn(7), randn(7, seed=1)).conj())),
    "negated_one": lambda: P(torch.imag(torch.complex(randn(1), randn(1, seed=1)).conj())),
    "scalar": lambda: P(randn()),
    "one": lambda: P(randn(1)),
    "empty": lambda: P(randn(0)),
    "empty_rows": lambda: P(randn(4, 0, 3)),
    "empty_numpy": lambda: P(torch.from_numpy(np.zeros((4, 0, 2)))),
    "empty_gaps": lambda: P(randn(4, 6)[:, 3:3]),
    "zeros": lambda: P(torch.zeros(5, 2, dtype=torch.float64)),
}
layouts = pytest.mark.parametrize("layout", list(LAYOUTS))


def same_layout(t: Any) -> Any:
    return t


def contiguous(t: Any) -> Any:
    return t.contiguous()


def reversed_order(t: Any) -> Any:
    """The same values with the axes in memory the other way round."""
    order = tuple(reversed(range(t.ndim)))
    return t.permute(order).contiguous().permute(order)


def with_gaps(t: Any) -> Any:
    return torch.stack([t, torch.full_like(t, 1e6)], -1)[..., 0]


def expanded(t: Any) -> Any:
    return t.sum().expand(t.shape)


def expanded_rows(t: Any) -> Any:
    return t[:1].expand(t.shape) if t.ndim else t


def negated(t: Any) -> Any:
    made = torch.imag(torch.complex(torch.zeros_like(t), t).conj())
    assert made.is_neg()
    return made


GRADIENTS = [same_layout, contiguous, reversed_order, with_gaps, expanded, expanded_rows, negated]


@pair
@layouts
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_layouts_of_parameters_and_gradients(pair: str, layout: str, gradient: Any) -> None:
    def scenario(make: Any) -> Any:
        p, q = LAYOUTS[layout](), parameter(3)
        strides = p.stride()
        opt = make([p, q])
        for step in range(3):
            fill([p, q], step)
            value = p.grad if step != 1 else randn(*p.shape, seed=5)
            p.grad = None
            p.grad = gradient(value)
            opt.step()
        assert p.stride() == strides
        moments = [opt.state[p][name] for name in MOMENTS[pair]]
        assert all(moment.shape == p.shape for moment in moments)
        return [p, q, *moments]

    alike(pair, scenario)


@pytest.mark.parametrize("pair", ["sgd", "adamw"])
@pytest.mark.parametrize("layout", ["channels_last", "permuted", "transposed", "gaps", "rows", "size_one"])
def test_layouts_do_not_change_bits_where_there_are_no_norms(pair: str, layout: str) -> None:
    make = PAIRS[pair][0]
    p = LAYOUTS[layout]()
    q = P(p.detach().clone(memory_format=torch.contiguous_format))
    opt, plain = make([p]), make([q])
    for step in range(3):
        fill([p], step)
        q.grad = p.grad.contiguous()
        opt.step()
        plain.step()
    assert_same([p, opt.state[p]], [q, plain.state[q]])


@pair
def test_what_lies_beside_a_parameter_is_left_alone(pair: str) -> None:
    base = randn(10, 6)
    before = base.clone()
    p, q = P(base[::2, 1:4]), P(base[1, :5])
    opt = PAIRS[pair][0]([p, q])
    steps(opt, [p, q], 3)
    touched = torch.zeros(10, 6, dtype=torch.bool)
    touched[::2, 1:4] = True
    touched[1, :5] = True
    assert_same(base[~touched], before[~touched])
    assert (base[touched] != before[touched]).all()


@pair
def test_channels_last_models(pair: str) -> None:
    def scenario(make: Any) -> Any:
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1)).double()
        with torch.no_grad():
            for k, p in enumerate(model.parameters()):
                p.copy_(randn(*p.shape, seed=k))
        opt = make(model.parameters())
        for step in range(4):
            if step == 2:
                model.to(memory_format=torch.channels_last)
            opt.zero_grad()
            inputs = randn(2, 3, 5, 5, seed=step).to(memory_format=torch.channels_last)
            model(inputs).square().mean().backward()
            opt.step()
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        return [values(model), [opt.state[p][name] for p in model.parameters() for name in MOMENTS[pair]]]

    alike(pair, scenario)


# -- memory that changes between steps --------------------------------------------------------------------------


def reassigned(p: Any) -> None:
    p.data = p.data.clone()


def doubled(p: Any) -> None:
    p.data = p.data * 2


def transposed_in_place(p: Any) -> None:
    p.data = p.data.view(3, 4).t()


def other_order_same_address(p: Any) -> None:
    p.data = torch.as_strided(p.data, (4, 3), (1, 4))


def moved_into_a_larger_one(p: Any) -> None:
    p.data = torch.cat([p.data.flatten(), randn(5)])[:12].view(4, 3)


def spread(p: Any) -> None:
    p.data = with_gaps(p.data)


def swapped(p: Any) -> None:
    torch.utils.swap_tensors(p, P(p.detach().clone() + 1))


def shared(p: Any) -> None:
    p.data.share_memory_()


def loaded_by_assignment(p: Any) -> None:
    holder = torch.nn.Module()
    holder.w = p
    holder.load_state_dict({"w": p.detach().clone() + 1})


@pair
@pytest.mark.parametrize(
    "change",
    [
        *(reassigned, doubled, transposed_in_place, other_order_same_address, moved_into_a_larger_one),
        *(spread, swapped, shared, loaded_by_assignment),
    ],
)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_parameters_whose_memory_changes(pair: str, change: Any, with_gradient: bool) -> None:
    def scenario(make: Any) -> Any:
        p, q = parameter(4, 3), parameter(5, seed=1)
        opt = make([p, q])
        steps(opt, [p, q], 2)
        if not with_gradient:
            p.grad = None
        change(p)
        if with_gradient:
            # The gradient from before the change, in its old memory.
            opt.step()
        for step in range(3):
            p.grad = q.grad = None
            p.grad, q.grad = randn(4, 3, seed=step), randn(5, seed=step)
            opt.step()
        return [p, q, [opt.state[t][name] for t in (p, q) for name in MOMENTS[pair]]]

    alike(pair, scenario)


@pair
def test_parameters_of_another_dtype_or_shape_from_some_step_on(pair: str) -> None:
    """Their state is dropped, as anybody must who does that; the memory may be the same."""

    def scenario(make: Any) -> Any:
        memory = torch.zeros(12, dtype=torch.float64)
        p, q = P(memory[:6].view(2, 3)), parameter(2, seed=1)
        opt = make([p, q])
        seen = []
        shapes = [memory[:6].view(3, 2), memory[:6], memory[:4], memory.view(torch.float32)[:6], memory]
        for step, data in enumerate(shapes):
            steps(opt, [p, q], 2, first=step)
            p.grad = None
            memory.copy_(randn(12, seed=step))
            p.data = data if data.dtype != torch.float32 else data.copy_(torch.arange(6.0))
            opt.state.pop(p)
            seen.append(q.detach().clone())
        steps(opt, [p, q], 2, first=20)
        return [p, seen, [opt.state[p][name] for name in MOMENTS[pair]]]

    alike(pair, scenario)


@ours
def test_a_parameter_that_changes_shape_with_its_old_state_is_refused(make: Any) -> None:
    p = parameter(4, 3)
    opt = make([("w", p)])
    steps(opt, [p])
    p.grad = None
    p.data = randn(5, seed=3)
    p.grad = randn(5)
    before = p.detach().clone()
    with pytest.raises(ValueError, match=r"'w' must be a tensor of shape \(5,\), not \(4, 3\)"):
        opt.step()
    assert_same(p, before)
    opt.state.clear()
    opt.step()


@ours
def test_a_parameter_that_becomes_another_in_its_own_memory_is_refused(make: Any) -> None:
    """The same address and as many bytes: four numbers of one kind become two of another."""
    p = P(torch.ones(4))
    opt = make([("w", p)])
    steps(opt, [p])
    p.grad = None
    p.data = p.data.view(torch.float64)
    before = p.detach().clone()
    p.grad = torch.ones(2, dtype=torch.float64)
    with pytest.raises((TypeError, ValueError), match="'w' must"):
        opt.step()
    assert_same(p, before)


@pair
def test_models_cast_to_another_precision_and_back(pair: str) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1)]
        opt = make(params)
        for step, dtype in enumerate([torch.float64, torch.float32, torch.float64]):
            for p in params:
                p.grad = None
                p.data = p.data.to(dtype)
                for name in MOMENTS[pair]:
                    if name in opt.state[p]:
                        opt.state[p][name] = opt.state[p][name].to(dtype)
            steps(opt, params, 2, first=step)
        return values(params)

    alike(pair, scenario, 1e-5)


@ours
def test_mixed_precision_parameters_keep_state_in_their_own(make: Any) -> None:
    params = [parameter(4, 3, dtype=torch.float32), parameter(5, seed=1)]
    opt = make(params)
    steps(opt, params)
    for p in params:
        moments = [value for name, value in opt.state[p].items() if name != "step"]
        assert {value.dtype for value in moments} == {p.dtype}


@ours
def test_state_pieces_are_apart_and_as_their_parameter(make: Any) -> None:
    params = [
        LAYOUTS[name]() for name in ("contiguous", "channels_last", "permuted", "gaps", "scalar", "rows")
    ]
    opt = make(params)
    steps(opt, params, 1)
    spans = []
    for p in params:
        for name, value in opt.state[p].items():
            begin = value.data_ptr()
            length = 1 + sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
            spans.append((begin, begin + length * value.element_size()))
            if name != "step" and p.is_contiguous(memory_format=torch.preserve_format):
                assert value.stride() == torch.empty_like(p).stride()
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
