"""Every formula by name: against textbook optimizers in float64, and against the packages they are named after."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_lamb.torch import Lamb, Lars, Momentum
from tests.torch.helpers import (
    LAMB_VARIANTS,
    LARS_EPSILONS,
    SlowLamb,
    SlowLars,
    assert_close,
    fill,
    parameter,
    values,
)

STEPS = 6
SHAPES = [(50, 30), (4, 3, 3, 3), (17,), (1,), (), (9, 4), (0,)]
maybe = st.sampled_from([None, True, False])


def layers(dtype: Any = torch.float64) -> list[Any]:
    """Weights below and above the norm at which some cap it, and one layer of zeros."""
    made = [parameter(*shape, seed=k, dtype=dtype) for k, shape in enumerate(SHAPES)]
    with torch.no_grad():
        made[3].zero_()
        made[5].mul_(1e-3)
    return made


def trained(make: Any, dtype: Any = torch.float64, rate: Any = None) -> Any:
    """Train with gradients of all sizes, one of them zero and one missing; return weights and moments."""
    params = layers(dtype)
    half = len(params) // 2
    opt = make([{"params": params[:half]}, {"params": params[half:], "weight_decay": 0.0}])
    seen = []
    for step in range(STEPS):
        fill(params, step)
        params[0].grad *= 1e-3
        params[2].grad.zero_()
        if rate is not None:
            for group in opt.param_groups:
                group["lr"] = rate(step)
        opt.step()
        seen.append(values(params))
    return seen


LAMB_OPTIONS = {
    "variant": st.sampled_from(list(LAMB_VARIANTS)),
    "betas": st.sampled_from([(0.9, 0.999), (0.5, 0.7), (0.0, 0.0)]),
    "eps": st.sampled_from([1e-6, 1e-2]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "always_adapt": maybe,
    "bias_correction": maybe,
    "decoupled_decay": maybe,
    "grad_averaging": st.booleans(),
    "trust_clip": st.booleans(),
    "maximize": st.booleans(),
    "max_grad_norm": st.sampled_from([None, None, 0.5]),
    "decay_filter": st.sampled_from([None, lambda layer: layer.ndim > 1]),
    "adapt_filter": st.sampled_from([None, lambda layer: layer.ndim > 1]),
}
LARS_OPTIONS = {
    "variant": st.sampled_from(list(LARS_EPSILONS)),
    "momentum": st.sampled_from([0.9, 0.0, 1.0]),
    "nesterov": st.booleans(),
    "trust_coefficient": st.sampled_from([1e-3, 0.2]),
    "eps": st.sampled_from([None, 1e-3]),
    **{
        name: LAMB_OPTIONS[name]
        for name in ("weight_decay", "always_adapt", "trust_clip", "maximize", "max_grad_norm")
    },
    **{name: LAMB_OPTIONS[name] for name in ("decay_filter", "adapt_filter")},
}


@pytest.mark.slow
@settings(max_examples=60)
@given(st.fixed_dictionaries(LAMB_OPTIONS), st.sampled_from([0.02, 0.5]))
def test_lamb_is_the_textbooks(options: Any, lr: float) -> None:
    found = trained(lambda params: Lamb(params, lr=lr, **options))
    assert_close(found, trained(lambda params: SlowLamb(params, lr=lr, **options)), 1e-9)


@pytest.mark.parametrize("variant", list(LAMB_VARIANTS))
def test_every_variant_of_lamb_is_one_of_its_own(variant: str) -> None:
    options = {"lr": 0.02, "weight_decay": 0.1, "variant": variant}
    found = trained(lambda params: Lamb(params, **options))
    assert_close(found, trained(lambda params: SlowLamb(params, **options)))
    others = {
        other: trained(lambda params, o=other: Lamb(params, **{**options, "variant": o}))
        for other in LAMB_VARIANTS
    }
    same = {other for other, made in others.items() if all(map(torch.equal, made[-1], found[-1]))}
    assert same == ({"apex", "timm"} if variant in ("apex", "timm") else {variant})


@pytest.mark.slow
@settings(max_examples=60)
@given(st.fixed_dictionaries(LARS_OPTIONS), st.sampled_from([0.02, 0.5]))
def test_lars_is_the_textbooks(options: Any, lr: float) -> None:
    if options["variant"] in ("paper", "paddle"):
        options = {**options, "trust_clip": False}
    found = trained(lambda params: Lars(params, lr=lr, **options))
    assert_close(found, trained(lambda params: SlowLars(params, lr=lr, **options)), 1e-9)


@pytest.mark.parametrize("variant", list(LARS_EPSILONS))
def test_every_variant_of_lars_is_one_of_its_own(variant: str) -> None:
    options = {"weight_decay": 0.1, "trust_coefficient": 0.1}
    found = trained(lambda params: Lars(params, variant=variant, **options), rate=falling)
    assert_close(found, trained(lambda params: SlowLars(params, variant=variant, **options), rate=falling))
    others = {
        other: trained(lambda params, o=other: Lars(params, variant=o, **options), rate=falling)
        for other in LARS_EPSILONS
    }
    same = {other for other, made in others.items() if all(map(torch.equal, made[-1], found[-1]))}
    assert same == {variant}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9)])
def test_adamw_is_torchs(dtype: Any, maximize: bool, betas: Any) -> None:
    options = {"lr": 0.02, "betas": betas, "eps": 1e-8, "weight_decay": 0.1, "maximize": maximize}
    found = trained(lambda params: Lamb(params, variant="adamw", **options), dtype)
    expected = trained(lambda params: torch.optim.AdamW(params, **options), dtype)
    assert_close(found, expected, 1e-12 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True), (0.0, False)])
def test_momentum_is_torchs_sgd(dtype: Any, maximize: bool, momentum: float, nesterov: bool) -> None:
    options = {"lr": 0.02, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.1}
    options["maximize"] = maximize
    found = trained(lambda params: Momentum(params, **options), dtype)
    expected = trained(lambda params: torch.optim.SGD(params, **options), dtype)
    assert_close(found, expected, 1e-13 if dtype == torch.float64 else 2e-6)


def of_timm(name: str, kind: str) -> Any:
    """Import one of timm's optimizers without timm, which needs a torchvision that fits this torch."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the peers extra is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for module, folder in (("timm", ""), ("timm.optim", "optim")):
            bare = ModuleType(module)
            bare.__path__ = [str(Path(root) / folder) for root in spec.submodule_search_locations]
            patch.setitem(sys.modules, module, bare)
        return getattr(importlib.import_module(f"timm.optim.{name}"), kind)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"always_adapt": True},
        {"trust_clip": True},
        {"grad_averaging": False},
        {"bias_correction": False},
        {"decoupled_decay": True},
        {"max_grad_norm": 0.5},
    ],
)
def test_lamb_is_timms(options: Any) -> None:
    kind = of_timm("lamb", "Lamb")
    common = {"lr": 0.02, "weight_decay": 0.1, "max_grad_norm": None, **options}
    expected = trained(lambda params: kind(params, **common))
    assert_close(trained(lambda params: Lamb(params, variant="timm", **common)), expected, 1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"always_adapt": True},
        {"trust_clip": True},
        {"trust_clip": True, "always_adapt": True, "lr": 1e-3},
        {"nesterov": True},
        {"momentum": 0.0},
    ],
)
def test_lars_is_timms(options: Any) -> None:
    kind = of_timm("lars", "Lars")
    common = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, **options}
    expected = trained(lambda params: kind(params, trust_coeff=0.01, **common))
    assert_close(trained(lambda params: Lars(params, trust_coefficient=0.01, **common)), expected)


def falling(step: int) -> float:
    return 0.1 / (step + 1)


def test_lamb_is_that_of_torch_optimizer() -> None:
    peer = pytest.importorskip("torch_optimizer", reason="torch_optimizer is not installed")
    common = {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-6}
    expected = trained(lambda params: peer.Lamb(params, **common), rate=falling)
    found = trained(lambda params: Lamb(params, variant="torch_optimizer", **common), rate=falling)
    assert_close(found, expected)


@pytest.mark.parametrize("options", [{}, {"decoupled_decay": False}, {"grad_averaging": False}])
def test_lamb_is_that_of_pytorch_optimizer(options: Any) -> None:
    peer = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")
    common = {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-6}
    theirs = {"weight_decouple": options.get("decoupled_decay", True)}
    theirs["grad_averaging"] = options.get("grad_averaging", True)
    expected = trained(lambda params: peer.Lamb(params, **common, **theirs), rate=falling)
    found = trained(
        lambda params: Lamb(params, variant="pytorch_optimizer", **common, **options), rate=falling
    )
    assert_close(found, expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_that_of_pytorch_optimizer(nesterov: bool) -> None:
    peer = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")
    common = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}

    def make(params: Any) -> Any:
        return peer.LARS(params, trust_coefficient=0.01, dampening=0.0, **common)

    def matrices(layer: Any) -> bool:
        return layer.ndim > 1

    own = {"variant": "pytorch_optimizer", "decay_filter": matrices, "adapt_filter": matrices, **common}
    found = trained(lambda params: Lars(params, trust_coefficient=0.01, **own), rate=falling)
    assert_close(found, trained(make, rate=falling))
