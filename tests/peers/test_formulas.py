"""Each formula by name, beside the package it is named after where that is installed, else beside its text.

Twenty steps on several layers, a bias, a scalar and a weight that starts at zero among them, with weight decay and
without; each layer has one step with a gradient of zeros.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from numba_lamb.numerics.variants import LAMB_VARIANTS, LARS_VARIANTS
from numba_lamb.torch import Lamb, Lars
from tests.peers import formula_texts as texts

pytestmark = pytest.mark.slow

STEPS = 20
SHAPES = [(7, 5), (4, 3, 3, 3), (6,), (5, 4), (), (40, 30), (3, 9)]
# The fourth starts at zero, as does the bias; one is heavier than the caps on ||w||, one much lighter.
SIZES = [0.3, 0.3, 0.0, 0.0, 0.3, 1.0, 1e-3]
DECAYS = [0.0, 0.1]
LIMIT = 2e-6
"""Of the displacement, what float32 may differ by."""


def layers() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        np.asarray(size * random.standard_normal(shape), dtype=np.float32)
        for shape, size in zip(SHAPES, SIZES, strict=True)
    ]


def gradients(step: int) -> list[np.ndarray]:
    random = np.random.default_rng(1000 + step)
    made = [np.asarray(random.standard_normal(shape) + 0.5, dtype=np.float32) for shape in SHAPES]
    made[step % len(made)] *= np.float32(0 if step in range(7, 14) else 1)
    return made


def ours(make: Callable[..., Any]) -> list[np.ndarray]:
    params = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in layers()]
    opt = make(params)
    for step in range(STEPS):
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = torch.from_numpy(g.copy())
        opt.step()
    return [p.detach().numpy() for p in params]


def written(step_of: texts.Step, lr: float, decay: float) -> list[np.ndarray]:
    found = [w.astype(np.float64) for w in layers()]
    states: list[dict[str, Any]] = [{} for _ in found]
    for step in range(STEPS):
        found = [
            step_of(w, g.astype(np.float64), state, step + 1, lr, decay)
            for w, g, state in zip(found, gradients(step), states, strict=True)
        ]
    return found


def assert_agrees(found: list[np.ndarray], expected: list[Any]) -> None:
    for start, one, other in zip(layers(), found, expected, strict=True):
        other = np.asarray(other, dtype=np.float64)
        moved = np.abs(other - start).max()
        assert moved > 0
        # Weights are rounded to float32 at each step, whatever moves them.
        rounding = np.sqrt(STEPS) * np.spacing(np.abs(other).max().astype(np.float32))
        assert np.abs(one - other).max() <= LIMIT * moved + rounding


lamb_decays = pytest.mark.parametrize("decay", DECAYS)
lars_decays = pytest.mark.parametrize("decay", DECAYS)


@lamb_decays
@pytest.mark.parametrize("variant", list(texts.LAMB))
def test_lamb_is_as_written_there(variant: str, decay: float) -> None:
    lr = 0.05
    found = ours(lambda params: Lamb(params, lr=lr, weight_decay=decay, variant=variant))
    assert_agrees(found, written(texts.LAMB[variant], lr, decay))


@lars_decays
@pytest.mark.parametrize("lr", [0.5, 2.0])
@pytest.mark.parametrize("variant", list(texts.LARS))
def test_lars_is_as_written_there(variant: str, lr: float, decay: float) -> None:
    options = {"lr": lr, "weight_decay": decay, "trust_coefficient": texts.COEFFICIENT}
    found = ours(lambda params: Lars(params, variant=variant, **options))
    assert_agrees(found, written(texts.LARS[variant], lr, decay))


def in_optax(transformation: Any) -> list[Any]:
    optax = pytest.importorskip("optax", reason="the peers extra is not installed")
    import jax

    # In float32 it takes 1 - b2^t, which is 0.001 at first, of a rounded b2.
    with jax.enable_x64(True):
        params = [jax.numpy.asarray(w, dtype="float64") for w in layers()]
        state = transformation.init(params)
        update = jax.jit(transformation.update)
        for step in range(STEPS):
            given = [jax.numpy.asarray(g, dtype="float64") for g in gradients(step)]
            updates, state = update(given, state, params)
            params = optax.apply_updates(params, updates)
    return params


@lamb_decays
def test_lamb_is_that_of_optax(decay: float) -> None:
    optax = pytest.importorskip("optax", reason="the peers extra is not installed")
    expected = in_optax(optax.lamb(0.05, weight_decay=decay))
    assert_agrees(ours(lambda params: Lamb(params, 0.05, weight_decay=decay, variant="optax")), expected)


@lars_decays
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_that_of_optax(decay: float, nesterov: bool) -> None:
    optax = pytest.importorskip("optax", reason="the peers extra is not installed")
    expected = in_optax(optax.lars(0.5, decay, trust_coefficient=0.02, nesterov=nesterov))
    options = {"weight_decay": decay, "trust_coefficient": 0.02, "nesterov": nesterov}
    assert_agrees(ours(lambda params: Lars(params, 0.5, variant="optax", **options)), expected)


@lars_decays
def test_lars_is_that_of_torch_optimizer(decay: float) -> None:
    peer = pytest.importorskip("torch_optimizer", reason="the peers extra is not installed")
    options = {"lr": 0.5, "momentum": 0.9, "weight_decay": decay, "trust_coefficient": 0.02}
    expected = ours(lambda params: peer.LARS(params, **options))
    assert_agrees(ours(lambda params: Lars(params, variant="torch_optimizer", **options)), expected)


@lamb_decays
@pytest.mark.parametrize(("variant", "clamp"), [("torch_optimizer", 10.0), ("colossalai", np.inf)])
def test_lamb_is_that_of_torch_optimizer(variant: str, clamp: float, decay: float) -> None:
    peer = pytest.importorskip("torch_optimizer", reason="the peers extra is not installed")
    options = {"lr": 0.05, "weight_decay": decay, "eps": 1e-6}
    expected = ours(lambda params: peer.Lamb(params, clamp_value=clamp, **options))
    assert_agrees(ours(lambda params: Lamb(params, variant=variant, **options)), expected)


@lamb_decays
@pytest.mark.parametrize(
    ("variant", "theirs"),
    [("timm", {}), ("nvlamb", {"always_adapt": True}), ("lambc", {"always_adapt": True, "trust_clip": True})],
)
def test_lamb_is_that_of_timm(variant: str, theirs: Any, decay: float) -> None:
    from tests.torch.test_variants import of_timm

    options = {"lr": 0.05, "weight_decay": decay, "eps": 1e-6}
    expected = ours(lambda params: of_timm("lamb", "Lamb")(params, max_grad_norm=None, **options, **theirs))
    assert_agrees(ours(lambda params: Lamb(params, variant=variant, **options)), expected)


@lars_decays
@pytest.mark.parametrize("variant", ["timm", "pytorch_optimizer"])
def test_lars_is_that_of_its_package(variant: str, decay: float) -> None:
    options = {"lr": 0.5, "momentum": 0.9, "weight_decay": decay}
    if variant == "timm":
        from tests.torch.test_variants import of_timm

        expected = ours(lambda params: of_timm("lars", "Lars")(params, trust_coeff=0.02, **options))
        filters = {}
    else:
        peer = pytest.importorskip("pytorch_optimizer", reason="the peers extra is not installed")
        expected = ours(lambda params: peer.LARS(params, trust_coefficient=0.02, **options))
        filters = dict.fromkeys(("decay_filter", "adapt_filter"), lambda layer: layer.ndim > 1)
    options["trust_coefficient"] = 0.02
    assert_agrees(ours(lambda params: Lars(params, variant=variant, **options, **filters)), expected)


def test_every_formula_is_compared_somewhere() -> None:
    """The rest of the names are in `tests.torch.test_variants`, where each option of theirs is tried."""
    from tests.torch.helpers import LAMB_VARIANTS as SLOW_LAMB
    from tests.torch.helpers import LARS_EPSILONS as SLOW_LARS

    assert set(LAMB_VARIANTS) == {*texts.LAMB, *SLOW_LAMB, "optax"}
    assert set(LARS_VARIANTS) == {*texts.LARS, *SLOW_LARS, "optax", "torch_optimizer"}


# -- weights that start at zero ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [name for name in LARS_VARIANTS if name not in ("mindspore", "paper")])
def test_weights_that_start_at_zero_move(variant: str) -> None:
    w = torch.nn.Parameter(torch.zeros(3, 2))
    opt = Lars([w], lr=0.5, weight_decay=0.1, variant=variant)
    w.grad = torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, -1.0]])
    opt.step()
    torch.testing.assert_close(w.detach(), -0.5 * w.grad)


def test_lars_of_optax_finds_the_minimum_of_rosenbrocks_function_from_zero() -> None:
    """As optax.lars(1.0) does in 10,000 steps, to within a hundredth."""
    w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    opt = Lars([w], lr=1.0, variant="optax")
    for _ in range(10_000):
        x, y = w.detach().tolist()
        w.grad = torch.tensor([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)], dtype=torch.float64)
        opt.step()
    torch.testing.assert_close(w.detach(), torch.ones(2, dtype=torch.float64), rtol=0.01, atol=0.0)
