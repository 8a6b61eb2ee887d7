"""Which tensors are taken as parameters and gradients: refusals say why, by name, and change nothing."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import return_and_correct_aliasing

from tests.helpers import run_python
from tests.torch.helpers import (
    PAIRS,
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


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, as sharded and quantized ones are."""

    @staticmethod
    def __new__(cls, inner: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def unwrap(value: Any) -> Any:
            return value.inner if isinstance(value, Wrapper) else value

        def wrap(value: Any) -> Any:
            return Wrapper(value) if isinstance(value, torch.Tensor) else value

        mapped = torch.utils._pytree.tree_map
        found = function(*mapped(unwrap, args), **mapped(unwrap, kwargs or {}))
        return return_and_correct_aliasing(function, args, kwargs or {}, mapped(wrap, found))


class Tagged(P):
    """A subclass of Parameter with plain memory."""


class Overridden(torch.Tensor):
    """A subclass with plain memory whose operations return subclasses."""


def fake(*shape: int) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.ones(*shape)


def sharded(value: Any) -> Any:
    """A DTensor on a mesh of this process alone."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this torch has no distributed package")
    from torch.distributed.tensor import DeviceMesh, Replicate, distribute_tensor

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return distribute_tensor(value, DeviceMesh("cpu", [0]), [Replicate()])


REFUSED = {
    "float8": (
        lambda: P(torch.ones(3, dtype=torch.float8_e4m3fn)),
        TypeError,
        "bfloat16, float16, float32 or float64, not torch.float8_e4m3fn",
    ),
    "complex": (
        lambda: P(torch.ones(3, dtype=torch.complex64)),
        TypeError,
        "float32 or float64, not torch.complex64",
    ),
    "integer": (
        lambda: P(torch.ones(3, dtype=torch.int64), requires_grad=False),
        TypeError,
        "not torch.int64",
    ),
    "sparse": (lambda: P(torch.eye(3).to_sparse()), TypeError, "strided tensor, not torch.sparse_coo"),
    "meta": (lambda: P(torch.ones(3, device="meta")), TypeError, "not on meta"),
    "fake": (lambda: P(fake(3)), TypeError, "plain tensor, not a .*FakeTensor"),
    "wrapper": (lambda: P(Wrapper(torch.ones(3))), TypeError, "plain tensor, not a .*Wrapper"),
    "expanded": (lambda: P(torch.ones(1).expand(4)), ValueError, "share memory.*clone"),
}
refused = pytest.mark.parametrize("refused", list(REFUSED))


@ours
@refused
def test_parameters_are_refused_at_construction(make: Any, refused: str) -> None:
    build, kind, message = REFUSED[refused]
    p = build()
    with pytest.raises(kind, match="parameter 'param_1' .*" + message):
        make([parameter(2), p])
    with pytest.raises(kind, match="parameter 'bad' .*" + message):
        make([("good", parameter(2)), ("bad", p)])


@ours
@refused
def test_parameters_are_refused_in_add_param_group(make: Any, refused: str) -> None:
    build, kind, message = REFUSED[refused]
    good = parameter(2)
    opt = make([good])
    steps(opt, [good])
    before, group = snapshot(opt), opt.param_groups[0]
    with pytest.raises(kind, match="parameter 'param_1' .*" + message):
        opt.add_param_group({"params": [build()]})
    assert opt.param_groups == [group]
    assert_same(snapshot(opt), before)
    steps(opt, [good])


@ours
def test_gradients_that_are_no_pieces_are_refused(make: Any) -> None:
    try:
        p = P(sharded(torch.ones(4)))
        opt = make([p])
        p.grad = torch.ones(4)
        with pytest.raises(TypeError, match="gradient of 'param_0' must be a DTensor, like its parameter"):
            opt.step()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@ours
def test_pieces_go_on_after_their_state_was_replaced(make: Any) -> None:
    try:
        p, plain = P(sharded(torch.ones(4))), P(torch.ones(4))
        opt, other = make([p]), make([plain])
        for _ in range(2):
            p.grad, plain.grad = torch.ones_like(p), torch.ones(4)
            opt.step()
            other.step()
            for state in (opt.state[p], other.state[plain]):
                name = next(key for key in state if key != "step")
                state[name] = state[name] * 2
        assert torch.equal(p.to_local(), plain)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@ours
def test_parameters_on_several_devices_are_refused(make: Any) -> None:
    class Elsewhere(Tagged):
        device = torch.device("cuda", 0)

    there = Elsewhere(torch.ones(2))
    with pytest.raises(ValueError, match=r"one device, but 'param_0' is on cpu and 'param_1' on cuda:0"):
        make([parameter(2), there])
    good = parameter(2)
    opt = make([good])
    with pytest.raises((TypeError, ValueError), match="meta"):
        opt.add_param_group({"params": [P(torch.ones(2, device="meta"))]})
    assert len(opt.param_groups) == 1
    steps(opt, [good])


@ours
def test_parameters_that_move_to_meta_are_refused_at_the_step(make: Any) -> None:
    good, p = parameter(2), parameter(3)
    opt = make([good, p])
    steps(opt, [good, p])
    before = values([good])
    torch.utils.swap_tensors(p, P(torch.ones(3, device="meta", dtype=torch.float64)))
    p.grad = torch.ones(3, device="meta", dtype=torch.float64)
    fill([good])
    with pytest.raises((TypeError, ValueError), match=r"'param_1'.* meta"):
        opt.step()
    assert_same(values([good]), before)


@ours
def test_inference_tensors(make: Any) -> None:
    with torch.inference_mode():
        made = P(torch.ones(3, dtype=torch.float64), requires_grad=False)
        gradient = randn(3)
    with pytest.raises(ValueError, match="'param_0' was made in inference mode"):
        make([made])
    p, q = parameter(3), parameter(3)
    p.grad, q.grad = gradient, gradient.clone()
    opt, plain = make([p]), make([q])
    opt.step()
    plain.step()
    with torch.inference_mode():
        opt.step()
    plain.step()
    opt.step()
    plain.step()
    assert_same(snapshot(opt), snapshot(plain))


@ours
def test_a_first_step_in_inference_mode(make: Any) -> None:
    p, q = parameter(3), parameter(3)
    opt, plain = make([p]), make([q])
    fill([p])
    q.grad = p.grad.clone()
    with torch.inference_mode():
        opt.step()
    plain.step()
    assert_same(values([p]), values([q]))


@ours
@pytest.mark.parametrize("stepped", [False, True])
def test_subclasses_with_plain_memory_are_accepted(make: Any, stepped: bool) -> None:
    plain = [parameter(3), parameter(2, 2, seed=1)]
    given = [Tagged(plain[0].detach().clone()), plain[1].detach().clone().as_subclass(Overridden)]
    given[1].requires_grad_()
    one, other = make(plain), make(given)
    for step in range(3):
        for p, q in zip(plain, given, strict=True):
            p.grad = randn(*p.shape, seed=step)
            q.grad = p.grad.clone().as_subclass(Overridden) if stepped else p.grad.clone()
        one.step()
        other.step()
    assert_same([p.detach().as_subclass(torch.Tensor) for p in given], values(plain))
    assert all(type(value) is torch.Tensor for p in given for value in other.state[p].values())


@pair
def test_parameters_without_values_yet_are_accepted_until_they_have_them(pair: str) -> None:
    def scenario(make: Any) -> Any:
        model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 2))
        opt = make(model.named_parameters())
        with torch.no_grad():
            model(torch.ones(2, 4))
        model.double()
        with torch.no_grad():
            for k, p in enumerate(model.parameters()):
                p.copy_(randn(*p.shape, seed=k))
        for step in range(3):
            opt.zero_grad()
            model(randn(5, 4, seed=step)).square().mean().backward()
            opt.step()
        return [values(model), len(opt.state)]

    alike(pair, scenario)


@ours
def test_a_step_before_a_lazy_model_has_its_values_leaves_it_alone(make: Any) -> None:
    model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 2)).double()
    opt = make(model.parameters())
    opt.step()
    fill(model[1].parameters())
    opt.step()
    assert len(opt.state) == 2
    model(randn(2, 4)).sum().backward()
    opt.step()
    assert len(opt.state) == 4


def sparse(p: Any) -> Any:
    return torch.ones_like(p).to_sparse()


def complex_numbers(p: Any) -> Any:
    # As many bytes as the parameter.
    return torch.ones(p.shape, dtype=torch.complex64)


def integers(p: Any) -> Any:
    return torch.ones(p.shape, dtype=torch.int64)


def quarter(p: Any) -> Any:
    return torch.ones(p.shape).to(torch.float8_e4m3fn)


def wrapped(p: Any) -> Any:
    return Wrapper(torch.ones_like(p))


def faked(p: Any) -> Any:
    return fake(*p.shape).double()


BAD_GRADIENTS = {
    sparse: (RuntimeError, "sparse"),
    complex_numbers: ((TypeError, RuntimeError), "complex64"),
    integers: (TypeError, "torch.int64"),
    quarter: (TypeError, "float8"),
    wrapped: (TypeError, "Wrapper"),
    faked: (TypeError, "FakeTensor"),
}


@ours
@pytest.mark.parametrize("bad", list(BAD_GRADIENTS))
@pytest.mark.parametrize("stepped", [False, True])
def test_gradients_are_refused_by_name_before_anything_changes(make: Any, bad: Any, stepped: bool) -> None:
    params = [parameter(3, 2), parameter(4, 2, seed=1)]
    opt = make([("first", params[0]), ("second", params[1])])
    if stepped:
        steps(opt, params)
    before = snapshot(opt)
    fill(params, 7)
    good = params[1].grad
    params[1].grad = None
    params[1].grad_dtype = None
    params[1].grad = bad(params[1])
    kind, message = BAD_GRADIENTS[bad]
    with pytest.raises(kind, match=f"gradient of 'second' .*{message}"):
        opt.step()
    assert_same(snapshot(opt), before)
    assert len(opt.state) == (2 if stepped else 0)
    params[1].grad = good
    opt.step()
    assert opt.state[params[1]]["step"].item() == (3 if stepped else 1)


@pair
def test_sparse_gradients_of_embeddings_are_refused(pair: str) -> None:
    embedding = torch.nn.Embedding(5, 3, sparse=True).double()
    opt = PAIRS[pair][0](embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()


@pytest.mark.slow
def test_gradients_without_memory_that_are_zeros() -> None:
    """What torch returns for a gradient that is zero everywhere; a crash must not end the tests."""
    run_python("""
import torch
from numba_lamb.torch import Lamb, Lars, Momentum
for kind in (Lamb, Lars, Momentum):
    for stepped in (False, True):
        params = [torch.nn.Parameter(torch.arange(3.0)) for _ in range(2)]
        opts = [kind([p], lr=0.1, weight_decay=0.1) for p in params]
        for p, opt in zip(params, opts):
            if stepped:
                p.grad = torch.ones(3)
                opt.step()
        params[0].grad, params[1].grad = torch._efficientzerotensor(3), torch.zeros(3)
        for opt in opts:
            opt.step()
        assert torch.equal(params[0], params[1]), (kind, stepped)
""")


@pytest.mark.slow
def test_gradients_and_parameters_without_memory_are_refused() -> None:
    """torch crashes there, so a process of its own."""
    run_python("""
import torch
from numba_lamb.torch import Lamb
def refused(message):
    try:
        opt.step()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError("accepted")
p = torch.nn.Parameter(torch.arange(3.0))
opt = Lamb([("w", p)])
for _ in range(2):
    p.grad = torch.ones(3)
    p.grad.untyped_storage().resize_(0)
    refused("gradient of 'w'")
    p.grad = torch.ones(3)
    opt.step()
p.untyped_storage().resize_(0)
refused("'w' has no memory")
""")
