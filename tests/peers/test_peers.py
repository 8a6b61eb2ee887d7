"""Agreement with real packages, where they are installed (extra ``peers``)."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.helpers import relative_to_largest

SHAPES = {"embed": (50, 30), "conv": (4, 3, 3, 3), "bias": (17,), "scale": (1,)}
STEPS = 6
OPTIONS = {"learning_rate": 0.02, "weight_decay": 0.05}


def model(dtype: Any) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(11)
    params = {name: np.asarray(rng.standard_normal(shape), dtype=dtype) for name, shape in SHAPES.items()}
    gradients = [
        {name: np.asarray(rng.standard_normal(shape) * 0.1, dtype=dtype) for name, shape in SHAPES.items()}
        for _ in range(STEPS)
    ]
    return params, gradients


def ours(make: Any, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    params, steps = model(dtype)
    opt = make(params)
    for gradients in steps:
        opt.step(gradients)
    return params


def assert_close(found: dict[str, np.ndarray], expected: dict[str, Any], limit: float) -> None:
    for name in SHAPES:
        assert relative_to_largest(found[name], np.asarray(expected[name])) <= limit, name


def with_torch(make: Any, max_grad_norm: float | None = None) -> dict[str, np.ndarray]:
    torch = pytest.importorskip("torch", reason="the peers extra is not installed")
    arrays, steps = model(np.float64)
    params = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in arrays.items()}
    opt = make(torch, list(params.values()))
    for gradients in steps:
        for name, param in params.items():
            param.grad = torch.from_numpy(gradients[name].copy())
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), max_grad_norm)
        opt.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def test_lamb_that_does_not_adapt_is_adamw() -> None:
    found = ours(
        lambda params: nl.Lamb(params, 0.02, eps=1e-8, weight_decay=0.05, adapt_filter=lambda layer: False)
    )
    expected = with_torch(lambda torch, p: torch.optim.AdamW(p, lr=0.02, eps=1e-8, weight_decay=0.05))
    assert_close(found, expected, 1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_torch_sgd(nesterov: bool) -> None:
    found = ours(
        lambda params: nl.Momentum(
            params, 0.02, 0.9, weight_decay=0.05, use_nesterov=nesterov, decay_filter=lambda layer: True
        )
    )
    expected = with_torch(
        lambda torch, p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.05, nesterov=nesterov)
    )
    assert_close(found, expected, 1e-14)


def test_lamb_is_timms() -> None:
    lamb = timm_lamb()
    found = ours(lambda params: nl.Lamb(params, 0.02, weight_decay=0.05, decay_filter=lambda layer: True))
    expected = with_torch(
        lambda torch, p: lamb(p, lr=0.02, weight_decay=0.05, max_grad_norm=None, always_adapt=True)
    )
    assert_close(found, expected, 1e-13)


def test_clipping_is_timms() -> None:
    lamb = timm_lamb()
    # 0.1 clips every step; timm compares and divides without an addend, as here.
    found = ours(
        lambda params: nl.Lamb(
            params, 0.02, weight_decay=0.05, decay_filter=lambda layer: True, max_grad_norm=0.1
        )
    )
    expected = with_torch(
        lambda torch, p: lamb(p, lr=0.02, weight_decay=0.05, max_grad_norm=0.1, always_adapt=True)
    )
    assert_close(found, expected, 1e-13)


@pytest.mark.parametrize("limit", [0.25, 100.0])
def test_clipping_is_torchs_up_to_the_1e_6_it_adds(limit: float) -> None:
    found = ours(
        lambda params: nl.Lamb(
            params, 0.02, eps=1e-8, weight_decay=0.05, adapt_filter=lambda layer: False, max_grad_norm=limit
        )
    )
    expected = with_torch(lambda torch, p: torch.optim.AdamW(p, lr=0.02, eps=1e-8, weight_decay=0.05), limit)
    assert_close(found, expected, 1e-6)
    found = ours(
        lambda params: nl.Momentum(
            params, 0.02, 0.9, weight_decay=0.05, decay_filter=lambda layer: True, max_grad_norm=limit
        )
    )
    expected = with_torch(
        lambda torch, p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.05), limit
    )
    assert_close(found, expected, 1e-6)


@pytest.mark.slow
def test_clipping_is_optaxs() -> None:
    optax = pytest.importorskip("optax", reason="the peers extra is not installed")
    jax = pytest.importorskip("jax", reason="the peers extra is not installed")
    params, steps = model(np.float32)
    opt = optax.chain(optax.clip_by_global_norm(0.25), optax.lamb(0.02, weight_decay=0.05, eps=1e-6))
    state = opt.init(params)
    for gradients in steps:
        updates, state = opt.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    found = ours(
        lambda given: nl.Lamb(
            given, 0.02, weight_decay=0.05, decay_filter=lambda layer: True, max_grad_norm=0.25
        ),
        np.float32,
    )
    assert_close(found, jax.tree_util.tree_map(np.asarray, params), 2e-6)


def timm_lamb() -> Any:
    """Import timm's Lamb without timm: the package needs a torchvision whose binary fits this torch."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the peers extra is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in (("timm", ""), ("timm.optim", "optim")):
            bare = ModuleType(name)
            bare.__path__ = [str(Path(root) / folder) for root in spec.submodule_search_locations]
            patch.setitem(sys.modules, name, bare)
        return importlib.import_module("timm.optim.lamb").Lamb


def test_lamb_is_optaxs() -> None:
    optax = pytest.importorskip("optax", reason="the peers extra is not installed")
    jax = pytest.importorskip("jax", reason="the peers extra is not installed")
    params, steps = model(np.float32)
    opt = optax.lamb(0.02, weight_decay=0.05, eps=1e-6)
    state = opt.init(params)
    for gradients in steps:
        updates, state = opt.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    found = ours(
        lambda given: nl.Lamb(given, 0.02, weight_decay=0.05, decay_filter=lambda layer: True), np.float32
    )
    assert_close(found, jax.tree_util.tree_map(np.asarray, params), 1e-6)
