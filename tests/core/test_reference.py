"""Kernels against the float64 specification, over models that hypothesis makes up."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.layout import CHUNK, LANES
from numba_lamb.numerics import reference
from tests.helpers import float32, relative_to_largest

pytestmark = pytest.mark.slow

SIZES = [0, 1, 2, LANES - 1, LANES, LANES + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17, LANES * CHUNK + 5]
shapes = st.lists(
    st.one_of(
        st.sampled_from(SIZES).map(lambda size: (size,)),
        st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=5,
)
models = st.fixed_dictionaries(
    {
        "shapes": shapes,
        "dtype": st.sampled_from([np.float32, np.float64]),
        "seed": st.integers(0, 2**32 - 1),
        "scale": st.sampled_from([1e-6, 1e-2, 1.0, 1e4]),
        "decay": st.sampled_from([0.0, 0.01, 0.5]),
    }
)
# Float32 rounds each of a handful of operations per step; float64 likewise, 29 bits further down.
LIMITS = {np.float32: 2e-6, np.float64: 1e-14}


def arrays_of(model: dict[str, Any], rng: np.random.Generator, scale: float) -> list[np.ndarray]:
    return [np.asarray(rng.standard_normal(shape) * scale, dtype=model["dtype"]) for shape in model["shapes"]]


class Sizes:
    """How large the terms were that each array was added up from: what rounding is relative to.

    A moment may cancel to almost nothing, and a weight may cross zero; their errors are those of the terms.
    """

    def __init__(self, arrays: int) -> None:
        self.largest = [0.0] * arrays

    def add(
        self, before: tuple[np.ndarray, ...], after: tuple[np.ndarray, ...], decays: tuple[float, ...]
    ) -> None:
        for k, (old, new, decay) in enumerate(zip(before, after, decays, strict=True)):
            terms = np.abs(old).max(initial=0) + np.abs(new - decay * old).max(initial=0)
            self.largest[k] = max(self.largest[k], terms)

    def check(self, found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...], limit: float) -> None:
        for one, other, largest in zip(found, expected, self.largest, strict=True):
            assert np.abs(one - other).max(initial=0) <= limit * largest


def number(model: dict[str, Any], value: float) -> float:
    """A hyper-parameter as the kernels of this dtype see it."""
    return float32(value) if model["dtype"] is np.float32 else value


def cancellation(whole: np.ndarray, made: Any, decay: float) -> float:
    """How much larger than a layer's direction are the terms that it is made of, whose rounding it has.

    In its first moment gradients of both signs may cancel, and then decay may cancel what is left.
    """
    moment = np.linalg.norm(np.divide(made.m, np.sqrt(made.v), out=np.zeros_like(made.v), where=made.v > 0))
    terms = np.linalg.norm(np.divide(whole, np.sqrt(made.v), out=np.zeros_like(made.v), where=made.v > 0))
    return float(max(1.0, terms / moment if moment else 1.0) * (1 + 2 * decay * made.trust_ratio))


@settings(max_examples=40)
@given(model=models, steps=st.integers(1, 4))
def test_lamb_follows_the_reference(model: dict[str, Any], steps: int) -> None:
    rng = np.random.default_rng(model["seed"])
    params = arrays_of(model, rng, 1.0)
    betas = {"beta1": number(model, 0.9), "beta2": number(model, 0.999), "eps": number(model, 1e-6)}
    decay = number(model, model["decay"])
    opt = nl.Lamb(params, 0.01, **betas, weight_decay=decay)
    expected = [(p.astype(np.float64), np.zeros(p.shape), np.zeros(p.shape)) for p in params]
    sizes, worst = [Sizes(3) for _ in params], [1.0] * len(params)
    # What the first moments would be if nothing cancelled in them.
    whole = [np.zeros(p.shape) for p in params]
    for t in range(1, steps + 1):
        gradients = arrays_of(model, rng, model["scale"])
        opt.step(gradients)
        for k, gradient in enumerate(gradients):
            made = reference.lamb(
                expected[k][0], gradient, *expected[k][1:], t, learning_rate=0.01, weight_decay=decay, **betas
            )
            sizes[k].add(expected[k], made[:3], (1.0, betas["beta1"], betas["beta2"]))
            expected[k] = made[:3]
            ratio = opt.stats()[f"trust_ratio/param_{k}"]
            whole[k] = betas["beta1"] * whole[k] + (1 - betas["beta1"]) * np.abs(gradient)
            worst[k] = max(worst[k], cancellation(whole[k], made, decay))
            assert ratio == pytest.approx(made.trust_ratio, rel=20 * LIMITS[model["dtype"]] * worst[k])
    state = opt.state_dict()["layers"]
    for k, (w, m, v) in enumerate(expected):
        found = (params[k], state[f"param_{k}"]["m"], state[f"param_{k}"]["v"])
        sizes[k].largest[0] *= worst[k]
        sizes[k].check(found, (w, m, v), LIMITS[model["dtype"]])


lars_options = st.fixed_dictionaries(
    {
        "variant": st.sampled_from(["mindspore", "paper", "paddle"]),
        "nesterov": st.booleans(),
        "clip": st.booleans(),
        "coefficient": st.sampled_from([1e-3, 0.5]),
        "loss_scale": st.sampled_from([1.0, 128.0]),
        "adapt": st.booleans(),
    }
)


@settings(max_examples=60)
@given(model=models, options=lars_options, steps=st.integers(1, 4))
def test_lars_and_momentum_follow_the_reference(
    model: dict[str, Any], options: dict[str, Any], steps: int
) -> None:
    rng = np.random.default_rng(model["seed"])
    params = arrays_of(model, rng, 1.0)
    momentum, decay = number(model, 0.9), number(model, model["decay"])
    clip = options["clip"] and options["variant"] == "mindspore"
    epsilon = 1e-5 if options["variant"] == "mindspore" else 0.0
    opt = nl.Momentum(
        params,
        0.1,
        momentum,
        weight_decay=decay,
        loss_scale=options["loss_scale"],
        use_nesterov=options["nesterov"],
    )
    trust = None
    if options["adapt"]:
        opt = nl.Lars(
            opt, epsilon, options["coefficient"], clip, lambda layer: True, variant=options["variant"]
        )
        trust = reference.Trust(options["variant"], options["coefficient"], epsilon, clip)
    expected = [(p.astype(np.float64), np.zeros(p.shape)) for p in params]
    sizes = [Sizes(2) for _ in params]
    for _ in range(steps):
        gradients = arrays_of(model, rng, model["scale"])
        opt.step(gradients)
        for k, gradient in enumerate(gradients):
            made = reference.momentum(
                expected[k][0],
                gradient,
                expected[k][1],
                learning_rate=0.1,
                momentum=momentum,
                weight_decay=decay,
                loss_scale=options["loss_scale"],
                nesterov=options["nesterov"],
                trust=trust,
            )
            sizes[k].add(expected[k], made[:2], (1.0, momentum))
            expected[k] = made[:2]
            ratio = opt.stats()[f"trust_ratio/param_{k}"]
            assert ratio == pytest.approx(made.trust_ratio, rel=20 * LIMITS[model["dtype"]])
    state = opt.state_dict()["layers"]
    for k, (w, v) in enumerate(expected):
        sizes[k].check((params[k], state[f"param_{k}"]["m"]), (w, v), LIMITS[model["dtype"]])


@pytest.mark.parametrize("shape", [(6, 3, 5), (4, 3, 3, 3), (2, 3, 2, 3, 3), (3, 1, 4200)])
@pytest.mark.parametrize("optimizer", ["lamb", "momentum", "lars"])
def test_centralization_follows_the_reference(shape: tuple[int, ...], optimizer: str) -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_normal(shape)
    plain = rng.standard_normal(7)
    expected = (w.copy(), np.zeros(shape), np.zeros(shape))
    groups = [
        {"params": [("conv", w)], "weight_decay": 0.1, "grad_centralization": True},
        {"params": [("plain", plain)]},
    ]
    makers = {
        "lamb": lambda: nl.Lamb(groups, 0.01),
        "momentum": lambda: nl.Momentum(groups, 0.01, 0.9, loss_scale=4.0),
        "lars": lambda: nl.Lars(makers["momentum"](), lars_filter=lambda layer: True),
    }
    opt = makers[optimizer]()
    trust = reference.Trust("mindspore", 1e-3, 1e-5, False) if optimizer == "lars" else None
    for t in range(1, 4):
        gradient = rng.standard_normal(shape) + 0.5
        opt.step([gradient, np.zeros(7)])
        if optimizer == "lamb":
            central = reference.centralized(gradient)
            made = reference.lamb(
                expected[0], central, *expected[1:], t, learning_rate=0.01, weight_decay=0.1
            )
            expected = made[:3]
        else:
            moved = reference.momentum(
                *(expected[0], gradient, expected[1]),
                learning_rate=0.01,
                momentum=0.9,
                weight_decay=0.1,
                loss_scale=4.0,
                trust=trust,
                centralize=True,
            )
            expected = (*moved[:2], expected[2])
    assert relative_to_largest(w, expected[0]) <= 1e-14
    assert relative_to_largest(opt.state_dict()["layers"]["conv"]["m"], expected[1]) <= 1e-14
