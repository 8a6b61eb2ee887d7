"""Tensors that are not what they were at the step before: every one is looked at in every step."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_lamb.kernels.cpu.object_reader import UNUSUAL
from numba_lamb.memory.array_reader import NO_SPANS
from numba_lamb.memory.tensor_reader import TensorReader, fields_of, form_of
from numba_lamb.torch import Lamb, Lans, Lars, Momentum, model, places

MAKERS: dict[str, Callable[..., Any]] = {
    "lamb": lambda params: Lamb(params, lr=0.1, variant="adamw"),
    "lans": lambda params: Lans(params, lr=0.1),
    "lars": lambda params: Lars(params, lr=0.1, trust_coefficient=1.0),
    "momentum": lambda params: Momentum(params, lr=0.1, momentum=0.0),
}


@pytest.fixture(params=[True, False], ids=["structs", "attributes"], autouse=True)
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of looking at tensors must find the same."""
    if not request.param:
        for module in (model, places):
            monkeypatch.setattr(module, "fields_of", lambda torch: None)
    return bool(request.param)


def stepped(kind: str, shape: Any = (8,), steps: int = 3) -> tuple[Any, Any, Any]:
    """Two parameters whose gradients stay the same tensors, as after ``zero_grad(set_to_none=False)``."""
    first, second = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    opt = MAKERS[kind]([("first", first), ("second", second)])
    for tensor in (first, second):
        tensor.grad = torch.ones(shape)
    for _ in range(steps):
        opt.step()
    return opt, first, second


def seen(opt: Any, *tensors: Any) -> Any:
    state = [{key: value.clone() for key, value in opt.state[t].items()} for t in tensors]
    return [t.detach().clone() for t in tensors], state


def assert_seen(found: Any, expected: Any) -> None:
    for one, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert str(found[1]) == str(expected[1])


def shrunk(tensor: Any, nbytes: int) -> None:
    tensor.untyped_storage().resize_(nbytes)


WRONG_GRADIENTS = {
    "float8": (lambda g: setattr(g, "data", torch.ones(8).to(torch.float8_e5m2)), "float8_e5m2"),
    "a shorter half": (lambda g: setattr(g, "data", torch.ones(4, dtype=torch.float16)), r"\(4,\)"),
    "shorter": (lambda g: setattr(g, "data", torch.ones(4)), r"\(4,\)"),
    "longer": (lambda g: setattr(g, "data", torch.ones(16)), r"\(16,\)"),
    "emptied": (lambda g: setattr(g, "data", torch.empty(0)), r"\(0,\)"),
    "set to nothing": (lambda g: g.set_(), r"\(0,\)"),
    "freed": (lambda g: shrunk(g, 0), "no memory"),
    "cut": (lambda g: shrunk(g, 16), "cut to 16 bytes"),
}


@pytest.mark.parametrize("change", WRONG_GRADIENTS)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_kept_gradient_that_no_longer_fits_is_refused(kind: str, change: str) -> None:
    opt, first, second = stepped(kind)
    changed, says = WRONG_GRADIENTS[change]
    changed(second.grad)
    before = seen(opt, first, second)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError, RuntimeError), match=f"gradient of 'second'.*{says}"):
            opt.step()
        assert_seen(seen(opt, first, second), before)


GOOD_GRADIENTS = {
    "other values": lambda: torch.full((8,), 2.0),
    "a part of another": lambda: torch.arange(16.0)[3:11],
    "every second": lambda: torch.arange(16.0)[::2],
    "negated": lambda: torch._neg_view(torch.arange(8.0)),
    "an imaginary part": lambda: torch.complex(torch.zeros(8), torch.arange(8.0)).conj().imag,
    "one value for all": lambda: torch.tensor(3.0).expand(8),
    "shifted in memory": lambda: torch.arange(9.0)[1:],
    "half": lambda: torch.arange(8, dtype=torch.float16),
    "double": lambda: torch.arange(8, dtype=torch.float64),
}


@pytest.mark.parametrize("given", GOOD_GRADIENTS)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_kept_gradient_whose_data_is_replaced_is_taken_as_it_is(kind: str, given: str) -> None:
    opt, first, second = stepped(kind)
    twin, one, two = stepped(kind)
    for _ in range(2):
        second.grad.data = GOOD_GRADIENTS[given]()
        two.grad = GOOD_GRADIENTS[given]().float().clone().contiguous().resolve_neg()
        opt.step()
        twin.step()
        assert_seen(seen(opt, first, second), seen(twin, one, two))


WRONG_PARAMETERS = {
    "cut": (lambda p: setattr(p, "data", p.data[:4]), r"\(4,\)"),
    "as doubles": (lambda p: setattr(p, "data", p.data.view(torch.float64)), r"\(4,\)"),
    "in a short storage": (lambda p: shrunk(p, 16), "cut to 16 bytes"),
    "freed": (lambda p: shrunk(p, 0), "no memory"),
    "complex": (lambda p: setattr(p, "data", p.data.to(torch.complex64)), "complex64"),
}


@pytest.mark.parametrize("change", WRONG_PARAMETERS)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_parameter_that_no_longer_fits_is_refused_by_what_it_is_now(kind: str, change: str) -> None:
    opt, first, second = stepped(kind)
    changed, says = WRONG_PARAMETERS[change]
    changed(second)
    before = seen(opt, first)
    with pytest.raises((TypeError, ValueError), match=f"'second'.*{says}"):
        opt.step()
    assert_seen(seen(opt, first), before)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_storage_that_grows_and_shrinks_back_is_looked_at_each_time(kind: str) -> None:
    """It may return to the address that it had, too small."""
    opt, _, second = stepped(kind, (4096,))
    for nbytes in (64, 128, 4096 * 4 - 4):
        shrunk(second, nbytes)
        with pytest.raises(ValueError, match=f"'second'.*cut to {nbytes} bytes"):
            opt.step()
    shrunk(second, 4096 * 4)
    opt.step()


def test_filters_that_change_parameters_are_found_out() -> None:
    first, second = (torch.nn.Parameter(torch.ones(8)) for _ in range(2))

    def frees(layer: Any) -> bool:
        shrunk(second, 0)
        return True

    opt = Lamb([("first", first), ("second", second)], lr=0.1, weight_decay=0.1, decay_filter=frees)
    first.grad, second.grad = torch.ones(8), torch.ones(8)
    with pytest.raises(ValueError, match="'second' has no memory"):
        opt.step()
    assert first.tolist() == [1.0] * 8

    moved = []

    def moves(layer: Any) -> bool:
        if not moved:
            first.data = first.data.clone()
            moved.append(layer.name)
        return True

    opt = Lamb([first], lr=0.1, variant="adamw", weight_decay=0.0, decay_filter=moves)
    opt.step()
    assert first.tolist() == pytest.approx([0.9] * 8)

    def never_still(layer: Any) -> bool:
        opt.param_groups[0]["eps"] += 0.5
        return True

    opt = Lamb([first], lr=0.1, decay_filter=never_still)
    with pytest.raises(RuntimeError, match="decay_filter and adapt_filter must leave parameters and options"):
        opt.step()
    assert first.tolist() == pytest.approx([0.9] * 8)


@pytest.mark.parametrize("kind", MAKERS)
def test_state_that_is_put_elsewhere_is_followed(kind: str) -> None:
    opt, first, second = stepped(kind)
    twin, one, two = stepped(kind)
    key = next(key for key in opt.state[first] if key != "step")
    opt.state[second][key].data = opt.state[second][key].clone()
    twin.state[two][key].copy_(twin.state[two][key].clone())
    for _ in range(2):
        opt.step()
        twin.step()
        assert_seen(seen(opt, first, second), seen(twin, one, two))


def test_modules_can_be_converted_by_swapping() -> None:
    module = torch.nn.Linear(3, 2)
    opt = Lamb(module.parameters(), lr=0.1)
    for _ in range(4):
        module(torch.ones(1, 3)).sum().backward()
        opt.step()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert all(p.dtype == p.grad.dtype == torch.float64 for p in module.parameters())


@pytest.mark.slow
def test_a_large_gradient_cut_to_half_precision_does_not_end_the_process() -> None:
    code = """
import torch
from numba_lamb.torch import Momentum
p = torch.nn.Parameter(torch.zeros(40_000_000))
opt = Momentum([p], lr=0.1)
p.grad = torch.zeros_like(p)
for _ in range(3):
    opt.step()
p.grad.data = torch.zeros(1, dtype=torch.float16)
try:
    opt.step()
except ValueError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gradient of 'param_0' must have the parameter's shape (40000000,), not (1,)" in result.stdout


def test_structs_are_read_on_this_pytorch() -> None:
    """The reading that the figures are of is not given up unnoticed."""
    assert fields_of(torch) is not None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_read_is_what_attributes_tell(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=7)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64]))
    wanted_dtype = data.draw(st.sampled_from([dtype, dtype, torch.float32]))
    order = data.draw(st.permutations(range(len(shape))))
    base = torch.zeros([shape[k] for k in order] + [3], dtype=dtype)[..., data.draw(st.integers(0, 2))]
    tensor = base.permute([order.index(k) for k in range(len(shape))])
    if data.draw(st.booleans()):
        tensor = tensor.contiguous()
    if data.draw(st.booleans()):
        tensor = torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    form = form_of(tensor)._replace(dtype=wanted_dtype)
    if data.draw(st.integers(0, 4)) == 0:
        form = form_of(torch.zeros((*shape, 1)))
    if tensor.numel() and data.draw(st.integers(0, 4)) == 0:
        shrunk(tensor, data.draw(st.integers(0, tensor.untyped_storage().nbytes())))
    spans = NO_SPANS
    if tensor.numel() and data.draw(st.booleans()):
        start = tensor.data_ptr() + data.draw(st.integers(-64, 64))
        spans = np.array([start]), np.array([start + data.draw(st.integers(1, 64))])
    found = [
        int(TensorReader(torch, [form], fields).read((tensor,), spans)[0][0])
        for fields in (fields_of(torch), None)
    ]
    assert found[0] == found[1]
    assert found[0] in (UNUSUAL, 16, tensor.data_ptr())


@pytest.mark.parametrize("count", [float("nan"), float("inf"), -1.0, 0.5, 1e30])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_step_count_that_is_overwritten_with_none_is_refused_by_name(kind: str, count: float) -> None:
    opt, first, second = stepped(kind)
    opt.state[second]["step"].fill_(count)
    before = seen(opt, first, second)
    with pytest.raises(ValueError, match="state 'step' of parameter 'second' must be a number >= 0, whole"):
        opt.step()
    assert_seen(seen(opt, first, second), before)
    opt.state[second]["step"].fill_(7)
    opt.step()
    assert opt.state[second]["step"] == 8
