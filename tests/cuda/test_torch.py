"""PyTorch's optimizers on a GPU: their engine with the compiled kernels behind the double of the driver.

CPU tensors play those of a GPU (`tests.cuda.mapped`).
"""

from typing import Any

import numpy as np
import pytest

from tests.cuda.double import assert_same

pytest.importorskip("torch", reason="the peers extra is not installed")

import torch

from tests.cuda.mapped import Mapped

SHAPES = {"a": (40, 30), "b": (7,), "c": (3, 5), "d": ()}


class Twins:
    """One optimizer on the CPU and one on the double, over parameters that must stay equal to the byte."""

    def __init__(self, mapped: Mapped, make: Any, groups: Any = None, dtype: Any = torch.float32) -> None:
        rng = np.random.default_rng(3)
        values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        self.rng, self.mapped = rng, mapped
        self.on_cpu, self.on_gpu = (
            {name: torch.nn.Parameter(torch.tensor(value).to(dtype)) for name, value in values.items()}
            for _ in range(2)
        )
        self.gpu = make(self.grouped(self.on_gpu, groups))
        self.cpu = make(self.grouped(self.on_cpu, groups))

    @staticmethod
    def grouped(params: Any, groups: Any) -> Any:
        if groups is None:
            return list(params.items())
        return [{**options, "params": [(n, params[n]) for n in names]} for names, options in groups]

    def give_gradients(self, left_out: str = "", change: Any = None) -> None:
        for name in SHAPES:
            gradient = torch.tensor(self.rng.standard_normal(SHAPES[name]).astype(np.float32))
            if change is not None:
                gradient = change(name, gradient)
            for params in (self.on_cpu, self.on_gpu):
                params[name].grad = None if name in left_out else gradient.clone()

    def step(self, **options: Any) -> None:
        self.give_gradients(**options)
        self.cpu.step()
        self.step_on_gpu()

    def step_on_gpu(self) -> None:
        # What PyTorch does at its own pace must not be overtaken by what the double still has to do.
        with self.mapped.active():
            self.gpu.step()

    def check(self) -> None:
        self.mapped.gpu.driver.progress()
        assert_same(seen(self.on_gpu, self.gpu), seen(self.on_cpu, self.cpu))
        assert_same(dict(self.gpu.stats()), dict(self.cpu.stats()))
        assert self.gpu.skipped_steps == self.cpu.skipped_steps


def seen(params: Any, opt: Any) -> Any:
    return {
        name: {"w": array_of(w.detach()), **{key: array_of(value) for key, value in opt.state[w].items()}}
        for name, w in params.items()
    }


def array_of(tensor: Any) -> np.ndarray:
    """A tensor's values, of bfloat16 its patterns."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def makers() -> dict[str, Any]:
    from numba_lamb.torch import Lamb, Lars, Momentum

    return {
        "lamb": lambda params, **options: Lamb(params, lr=0.01, weight_decay=0.1, **options),
        "momentum": lambda params, **options: Momentum(params, lr=0.01, weight_decay=0.1, **options),
        "lars": lambda params, **options: Lars(params, lr=0.5, weight_decay=0.1, **options),
    }


@pytest.mark.parametrize("name", ["lamb", "momentum", "lars"])
def test_bytes_of_steps_with_everything(name: str, mapped: Mapped) -> None:
    twins = Twins(mapped, lambda p: makers()[name](p, max_grad_norm=0.5))
    for left_out in ("c", "", "bd", ""):
        twins.step(left_out=left_out)
    twins.cpu.param_groups[0].update(lr=0.02, weight_decay=0.0, maximize=True)
    twins.gpu.param_groups[0].update(lr=0.02, weight_decay=0.0, maximize=True)
    twins.step()
    twins.check()
    assert float(twins.gpu.state[twins.on_gpu["b"]]["step"]) == 4.0


@pytest.mark.parametrize("name", ["lamb", "momentum"])
@pytest.mark.parametrize("moments", [None, "bfloat16", "int8"])
def test_bytes_of_steps_in_half_precision(name: str, moments: str | None, mapped: Mapped) -> None:
    groups = [("ab", {"moments": moments}), ("cd", {"master": None, "moments": moments, "seed": 3})]
    twins = Twins(mapped, lambda p: makers()[name](p, nonfinite="skip"), groups, torch.bfloat16)
    twins.step(left_out="c", change=lambda name, g: g.bfloat16())
    for opt in (twins.cpu, twins.gpu):
        saved = opt.state_dict()
        saved["state"] = {k: {n: v.clone() for n, v in s.items()} for k, s in saved["state"].items()}
        opt.load_state_dict(saved)
    twins.step(change=lambda name, g: g.bfloat16() * float("nan" if name == "b" else 1))
    twins.step(change=lambda name, g: g.bfloat16())
    twins.check()
    assert twins.gpu.skipped_steps == 1


@pytest.mark.parametrize("variant", ["torch_optimizer", "pytorch_optimizer", "deepspeed", "apex"])
def test_bytes_of_variants_and_groups(variant: str, mapped: Mapped) -> None:
    groups = [
        ("ab", {"betas": (0.8, 0.9), "max_grad_norm": 0.1, "nonfinite": "skip"}),
        ("cd", {"weight_decay": 0.0, "trust_clip": True, "decoupled_decay": True}),
    ]
    make = makers()["lamb"]
    twins = Twins(mapped, lambda p: make(p, variant=variant), groups)
    for _ in range(3):
        twins.step()
    twins.check()


def test_a_step_that_is_not_finite_changes_nothing(mapped: Mapped) -> None:
    twins = Twins(mapped, lambda p: makers()["lamb"](p, nonfinite="skip"))
    twins.step()
    before = {name: w.detach().clone() for name, w in twins.on_gpu.items()}
    twins.step(change=lambda name, g: g * float("inf") if name == "c" else g)
    assert all(torch.equal(w, before[name]) for name, w in twins.on_gpu.items())
    twins.step()
    twins.check()
    assert twins.gpu.skipped_steps == 1


def test_gradient_scaling_on_the_device(mapped: Mapped) -> None:
    twins = Twins(mapped, lambda p: makers()["lamb"](p, fused_amp=True))
    for found in (0.0, 1.0, 0.0):
        for opt in (twins.cpu, twins.gpu):
            opt.grad_scale, opt.found_inf = torch.tensor(1024.0), torch.tensor(found)
        twins.step(change=lambda name, g: 1024.0 * g)
    twins.check()
    assert twins.gpu.skipped_steps == 1
    assert float(twins.gpu.state[twins.on_gpu["a"]]["step"]) == 2.0


def test_state_that_is_loaded_and_replaced(mapped: Mapped) -> None:
    twins = Twins(mapped, makers()["lamb"])
    twins.step(left_out="d")
    for opt in (twins.cpu, twins.gpu):
        saved = opt.state_dict()
        saved["state"] = {k: {n: v.clone() for n, v in s.items()} for k, s in saved["state"].items()}
        opt.load_state_dict(saved)
    twins.step()
    for opt, params in ((twins.cpu, twins.on_cpu), (twins.gpu, twins.on_gpu)):
        opt.state[params["a"]]["exp_avg"] = torch.full(SHAPES["a"], 0.25)
    twins.step()
    twins.check()


def test_sparse_gradients_are_refused_by_name(mapped: Mapped) -> None:
    twins = Twins(mapped, makers()["lamb"])
    twins.step()
    twins.on_gpu["c"].grad = torch.eye(3, 5).to_sparse()
    with pytest.raises(RuntimeError, match=r"gradient of 'c' is sparse"):
        twins.step_on_gpu()
