"""Clipping by the global norm: against the specification, to the bit, beside peers, and what is refused."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.layout import CHUNK, LANES
from numba_lamb.numerics import reference
from tests.helpers import float32, frozen, relative_to_largest, snapshot, version_1

shapes = st.sampled_from([(0,), (1,), (), (3, 0), (LANES + 1,), (5, 7), (4, 3, 3, 3), (2 * CHUNK + 17,)])
layers = st.fixed_dictionaries(
    {
        "shape": shapes,
        "dtype": st.sampled_from([np.float32, np.float64]),
        "given": st.sampled_from([True, True, True, False]),
    }
)
models = st.fixed_dictionaries(
    {
        "layers": st.lists(layers, min_size=1, max_size=5),
        "seed": st.integers(0, 2**32 - 1),
        "scale": st.sampled_from([1e-6, 1.0, 1e10]),
        # The limit as a part of the norm: it cuts, is just reached, or is far away.
        "part": st.sampled_from([1e-3, 0.5, 1.0, 7.0]),
    }
)
LIMITS = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 1e-13}


class Model:
    """Parameters, a step's gradients, and a limit that is a part of their norm."""

    def __init__(self, model: dict[str, Any], loss_scale: float = 1.0) -> None:
        rng = np.random.default_rng(model["seed"])
        self.params = {
            f"layer{k}": np.asarray(rng.standard_normal(layer["shape"]), dtype=layer["dtype"])
            for k, layer in enumerate(model["layers"])
        }
        self.gradients = [
            np.asarray(rng.standard_normal(p.shape) * model["scale"], dtype=p.dtype)
            if layer["given"]
            else None
            for p, layer in zip(self.params.values(), model["layers"], strict=True)
        ]
        self.norm = reference.global_norm(self.gradients, loss_scale)
        self.limit = max(self.norm * model["part"], 1e-30)
        self.clipped = reference.clipped(self.gradients, self.limit, loss_scale)

    def step(self, opt: Any) -> None:
        kept = copy.deepcopy(self.gradients)
        opt.step(self.gradients)
        assert frozen(self.gradients) == frozen(kept)
        assert opt.stats()["grad_norm"] == pytest.approx(self.norm, rel=1e-14)


def close(found: np.ndarray, before: np.ndarray, expected: np.ndarray, limit: float) -> None:
    """What was added agrees up to rounding, which is relative to the terms."""
    terms = np.abs(before).max(initial=0) + np.abs(expected - before).max(initial=0)
    assert np.abs(found - expected).max(initial=0) <= limit * terms


@settings(max_examples=60)
@given(model=models)
def test_lamb_follows_the_reference(model: dict[str, Any]) -> None:
    made = Model(model)
    betas = {"beta1": float32(0.9), "beta2": float32(0.999), "eps": float32(1e-6)}
    before = {name: p.astype(np.float64) for name, p in made.params.items()}
    opt = nl.Lamb(made.params, 0.01, **betas, weight_decay=0.5, max_grad_norm=made.limit)
    made.step(opt)
    state = opt.state_dict()["layers"]
    for (name, w), gradient in zip(made.params.items(), made.clipped, strict=True):
        if gradient is None:
            assert (w == before[name]).all()
            continue
        zero = np.zeros(w.shape)
        expected = reference.lamb(
            before[name], gradient, zero, zero, 1, learning_rate=0.01, weight_decay=0.5, **betas
        )
        limit = LIMITS[w.dtype]
        close(w, before[name], expected.w, limit)
        close(state[name]["m"], zero, expected.m, limit)
        close(state[name]["v"], zero, expected.v, limit)


options = st.fixed_dictionaries(
    {
        "variant": st.sampled_from([None, "mindspore", "paper", "paddle"]),
        "nesterov": st.booleans(),
        "loss_scale": st.sampled_from([1.0, 128.0, 3.0]),
    }
)


@settings(max_examples=80)
@given(model=models, options=options)
def test_momentum_and_lars_follow_the_reference(model: dict[str, Any], options: dict[str, Any]) -> None:
    made = Model(model, options["loss_scale"])
    before = {name: p.astype(np.float64) for name, p in made.params.items()}
    momentum = nl.Momentum(
        made.params,
        0.125,
        0.875,
        weight_decay=0.5,
        loss_scale=options["loss_scale"],
        use_nesterov=options["nesterov"],
        max_grad_norm=made.limit,
    )
    trust = None
    if options["variant"] is not None:
        epsilon = 0.125 if options["variant"] == "mindspore" else 0.0
        trust = reference.Trust(options["variant"], 0.25, epsilon, False)
        momentum = nl.Lars(momentum, epsilon, 0.25, variant=options["variant"])
    made.step(momentum)
    state = momentum.state_dict()["layers"]
    for (name, w), gradient in zip(made.params.items(), made.clipped, strict=True):
        if gradient is None:
            assert (w == before[name]).all()
            continue
        zero = np.zeros(w.shape)
        expected = reference.momentum(
            *(before[name], gradient, zero),
            learning_rate=0.125,
            momentum=0.875,
            weight_decay=0.5,
            loss_scale=options["loss_scale"],
            nesterov=options["nesterov"],
            trust=trust,
        )
        close(w, before[name], expected.w, LIMITS[w.dtype])
        close(state[name]["m"], zero, expected.v, LIMITS[w.dtype])


@pytest.mark.parametrize("optimizer", ["lamb", "momentum", "lars"])
def test_gradients_are_clipped_before_they_are_centralized(optimizer: str) -> None:
    rng = np.random.default_rng(3)
    start, other = rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(9)
    gradients = [rng.standard_normal(start.shape) + 2.0, rng.standard_normal(9)]
    clipped = reference.clipped(gradients, 1.5, 1.0 if optimizer == "lamb" else 4.0)

    def run(given: list[Any], limit: float | None) -> tuple[bytes, np.ndarray]:
        w, b = start.copy(), other.copy()
        groups = [{"params": {"conv": w}, "grad_centralization": True}, {"params": {"b": b}}]
        if optimizer == "lamb":
            opt: Any = nl.Lamb(groups, 0.01, weight_decay=0.5, max_grad_norm=limit)
        else:
            opt = nl.Momentum(groups, 0.01, 0.9, weight_decay=0.5, loss_scale=4.0, max_grad_norm=limit)
        if optimizer == "lars":
            opt = nl.Lars(opt, coefficient=0.5)
        opt.step(given)
        return b.tobytes(), w

    found, expected = run(gradients, 1.5)[1], run(clipped, None)[1]
    assert relative_to_largest(found, expected) <= 1e-14


def test_the_norm_is_exact_where_it_can_be() -> None:
    params = {
        "a": np.zeros(2, np.float32),
        "b": np.zeros(1),
        "c": np.zeros(3),
        "d": np.zeros((0, 2), np.float32),
    }
    opt = nl.Momentum(params, 1.0, 0.0, loss_scale=2.0, max_grad_norm=3.25)
    gradients = [np.array([6, 8], np.float32), np.array([24.0]), None, np.zeros((0, 2), np.float32)]
    opt.step(gradients)
    assert opt.stats()["grad_norm"] == 13.0
    # A quarter of g/2, with nothing added to the norm.
    assert params["a"].tolist() == [-0.75, -1.0]
    assert params["b"].tolist() == [-3.0]
    opt.step([None] * 4)
    assert opt.stats()["grad_norm"] == 0.0


def test_a_norm_at_the_limit_is_not_clipped() -> None:
    for limit, expected in ((5.0, [-3.0, -4.0]), (np.nextafter(5.0, 0), None), (1e300, [-3.0, -4.0])):
        w = np.zeros(2)
        nl.Momentum([w], 1.0, 0.0, max_grad_norm=float(limit)).step([np.array([3.0, 4.0])])
        assert (w.tolist() == expected) == (expected is not None)


def pinned_norm(gradients: list[np.ndarray | None]) -> float:
    """The table of `numba_lamb.numerics.rules` for one dtype, written out."""

    def tree(values: list[float]) -> float:
        lanes = np.zeros(LANES)
        for k, value in enumerate(values):
            lanes[k % LANES] += value
        half = LANES // 2
        while half:
            lanes[:half] += lanes[half : 2 * half]
            half //= 2
        return float(lanes[0])

    def chunk(values: np.ndarray) -> float:
        # A float32's square is exact in float64, so that an fma is a sum.
        return tree((values.astype(np.float64) ** 2).tolist())

    def layer(g: np.ndarray | None) -> float:
        if g is None:
            return 0.0
        return tree([chunk(g.ravel()[k : k + CHUNK]) for k in range(0, g.size, CHUNK)])

    return math.sqrt(tree([layer(g) for g in gradients]))


def test_the_order_of_the_sums_is_the_pinned_one() -> None:
    rng = np.random.default_rng(2)
    sizes = [*rng.integers(0, 300, size=200).tolist(), (LANES + 3) * CHUNK + 5, 3 * CHUNK]
    gradients = [
        np.asarray(rng.standard_normal(size) * 10.0 ** rng.integers(-3, 3), np.float32) for size in sizes
    ]
    gradients[7] = None
    opt = nl.Lamb([np.ones(size, np.float32) for size in sizes], 0.0, max_grad_norm=1.0)
    opt.step(gradients)
    assert opt.stats()["grad_norm"] == pinned_norm(gradients)


MAKERS: dict[str, Any] = {
    "lamb": lambda params, **more: nl.Lamb(params, 0.01, weight_decay=0.1, **more),
    "momentum": lambda params, **more: nl.Momentum(params, 0.01, 0.9, loss_scale=8.0, **more),
    "lars": lambda params, **more: nl.Lars(MAKERS["momentum"](params, **more)),
}


def small(optimizer: str, **more: Any) -> tuple[Any, dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    params = {"a": rng.standard_normal((6, 5)).astype(np.float32), "b": rng.standard_normal(9)}
    gradients = {"a": rng.standard_normal((6, 5)).astype(np.float32), "b": rng.standard_normal(9)}
    return MAKERS[optimizer](params, **more), gradients


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
@pytest.mark.parametrize("optimizer", MAKERS)
def test_a_limit_that_is_never_reached_changes_no_bit(optimizer: str, nonfinite: Any) -> None:
    plain, gradients = small(optimizer, nonfinite=nonfinite)
    limited, _ = small(optimizer, nonfinite=nonfinite, max_grad_norm=1e9)
    for opt in (plain, limited):
        opt.step(gradients)
        opt.step({**gradients, "a": None})
    assert frozen(dict(limited.params)) == frozen(dict(plain.params))
    assert "grad_norm" not in plain.stats()


@pytest.mark.parametrize("optimizer", MAKERS)
def test_the_limit_can_be_read_and_set(optimizer: str) -> None:
    opt, gradients = small(optimizer)
    assert opt.max_grad_norm is None
    opt.max_grad_norm = 1
    assert opt.max_grad_norm == opt.param_groups[0]["max_grad_norm"] == 1
    twin, _ = small(optimizer, max_grad_norm=1.0)
    for each in (opt, twin):
        each.step(gradients)
    assert snapshot(opt)["params"] == snapshot(twin)["params"]
    opt.max_grad_norm = None
    twin.max_grad_norm = 1e9
    for each in (opt, twin):
        each.step(gradients)
    assert snapshot(opt)["params"] == snapshot(twin)["params"]
    assert "grad_norm" not in opt.stats()


def test_lars_and_what_it_wraps_have_one_limit() -> None:
    momentum = nl.Momentum([np.ones(3)], 0.1, 0.9, max_grad_norm=2.0)
    lars = nl.Lars(momentum)
    assert lars.max_grad_norm == 2.0
    momentum.max_grad_norm = 3.0
    assert lars.max_grad_norm == 3.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("optimizer", MAKERS)
def test_gradients_that_are_not_finite(optimizer: str, bad: float) -> None:
    opt, gradients = small(optimizer, max_grad_norm=1.0)
    opt.step(gradients)
    before = snapshot(opt)
    broken = {**gradients, "b": gradients["b"].copy()}
    broken["b"][[2, 5]] = bad
    with pytest.raises(
        FloatingPointError,
        match=r"gradient of 'b' has 2 values that are infinite or NaN, or beyond .*; nothing",
    ):
        opt.step(broken)
    assert snapshot(opt) == before

    skipping, _ = small(optimizer, max_grad_norm=1.0, nonfinite="skip")
    assert skipping(broken) == (False, False)
    assert skipping.skipped_steps == 1
    assert skipping.stats() == {}
    skipping.step(gradients)
    assert frozen(dict(skipping.params)) == before["params"]

    careless, _ = small(optimizer, max_grad_norm=1.0, nonfinite="propagate")
    careless.step(broken)
    # A NaN makes the factor NaN; an infinity makes it 0, and infinity times 0 is NaN where it was.
    lost = np.isnan(careless.params["b"])
    assert lost[[2, 5]].all()
    assert np.isnan(careless.params["a"]).all() == np.isnan(bad)
    assert not math.isfinite(careless.stats()["grad_norm"])


@pytest.mark.parametrize("optimizer", MAKERS)
def test_finite_gradients_whose_norm_is_not(optimizer: str) -> None:
    opt, gradients = small(optimizer, max_grad_norm=1.0)
    before = snapshot(opt)
    large = {**gradients, "b": np.full(9, -1e200)}
    with pytest.raises(
        FloatingPointError, match=r"the norm of the gradients, .* that of 'b' is the largest; nothing"
    ):
        opt.step(large)
    assert snapshot(opt) == before
    opt.max_grad_norm = None
    with pytest.raises(FloatingPointError, match="'b' has 9 values that are infinite or NaN, or beyond"):
        opt.step(large)
    assert snapshot(opt)["params"] == before["params"]

    skipping, _ = small(optimizer, max_grad_norm=1.0, nonfinite="skip")
    assert skipping(large) == (False, False)
    assert skipping.skipped_steps == 1

    careless, _ = small(optimizer, max_grad_norm=1.0, nonfinite="propagate")
    none, _ = small(optimizer, nonfinite="propagate")
    careless.step(large)
    none.step({name: np.zeros_like(g) for name, g in gradients.items()})
    assert careless.stats()["grad_norm"] == math.inf
    assert all((careless.params[name] == none.params[name]).all() for name in gradients)


def test_large_float32_gradients_are_no_trouble() -> None:
    w = np.zeros(1000, np.float32)
    nl.Momentum([w], 1.0, 0.0, max_grad_norm=1.0).step([np.full(1000, 3e38, np.float32)])
    assert np.linalg.norm(w) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("optimizer", MAKERS)
def test_the_limit_travels_with_the_state(optimizer: str) -> None:
    opt, gradients = small(optimizer, max_grad_norm=0.5)
    opt.step(gradients)
    other, _ = small(optimizer)
    for name, array in opt.params.items():
        other.params[name][...] = array
    other.load_state_dict(opt.state_dict())
    assert other.max_grad_norm == 0.5
    assert "grad_norm" not in other.stats()
    again = copy.deepcopy(opt)
    assert again.stats() == opt.stats()
    copies = [other, again]
    if optimizer != "lars":
        copies.append(pickle.loads(pickle.dumps(opt)))
    for each in (opt, *copies):
        each.step(gradients)
        assert snapshot(each)["params"] == snapshot(opt)["params"]
    plain, _ = small(optimizer)
    opt.load_state_dict(plain.state_dict())
    assert opt.max_grad_norm is None


@pytest.mark.parametrize("optimizer", MAKERS)
def test_a_state_from_before_there_was_a_limit_leaves_it(optimizer: str) -> None:
    opt, gradients = small(optimizer, max_grad_norm=0.5)
    old, _ = small(optimizer)
    old.step(gradients)
    state = version_1(old)
    del state["numbers"]["max_grad_norm"]
    opt.load_state_dict(state)
    assert opt.max_grad_norm == 0.5
    assert opt.global_step == 1


def test_a_layer_of_that_name_may_not_be_missing_from_a_state() -> None:
    opt = nl.Lamb({"max_grad_norm": np.ones(2), "w": np.ones(2)}, 0.1)
    state = opt.state_dict()
    del state["layers"]["max_grad_norm"]
    with pytest.raises(ValueError, match="state\\['layers'\\] has no 'max_grad_norm'"):
        opt.load_state_dict(state)


def test_a_group_added_later_is_clipped_with_the_others() -> None:
    a, b = np.zeros(1), np.zeros(1, np.float32)
    opt = nl.Momentum({"a": a}, 1.0, 0.0, max_grad_norm=2.5)
    opt.add_param_group({"params": {"b": b}})
    opt.step([np.array([3.0]), np.array([4.0], np.float32)])
    assert (a[0], b[0]) == (-1.5, -2.0)
