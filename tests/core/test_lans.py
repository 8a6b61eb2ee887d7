"""LANS against the specification, against the paper's lines, and what normalizing promises."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.kernels.cpu import launch
from numba_lamb.layout import CHUNK
from numba_lamb.numerics import reference
from tests.helpers import float32, frozen, relative_to_largest, snapshot

SIZES = [0, 1, 2, 127, 128, 129, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17]
shapes = st.lists(
    st.one_of(
        st.sampled_from(SIZES).map(lambda size: (size,)),
        st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=4,
)
LIMITS = {"f4": 4e-6, "f8": 1e-14}


def random_arrays(shapes: Any, dtype: str, seed: int, scale: float = 1.0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [np.asarray(random.standard_normal(shape) * scale, dtype=dtype) for shape in shapes]


def check_against_reference(
    shapes: Any, dtype: str, steps: int, scale: float, decay: float, seed: int = 0
) -> None:
    def number(value: float) -> float:
        return float32(value) if dtype == "f4" else value

    options = {"beta1": number(0.9), "beta2": number(0.99), "eps": number(1e-6)}
    params = random_arrays(shapes, dtype, seed)
    opt = nl.Lans(params, 0.01, **options, weight_decay=number(decay))
    expected = [(p.astype("f8"), np.zeros(p.shape), np.zeros(p.shape)) for p in params]
    worst = [1.0] * len(params)
    terms_of_m = [np.zeros(p.shape) for p in params]
    for t in range(1, steps + 1):
        gradients = random_arrays(shapes, dtype, seed + t, scale)
        opt.step(gradients)
        found = opt.stats()
        for k, gradient in enumerate(gradients):
            w, m, v = expected[k]
            step = {"t": t, "learning_rate": 0.01, "weight_decay": number(decay), **options}
            made = reference.lans(w, gradient, m, v, **step)
            terms = reference.lans(np.abs(w), np.abs(gradient), terms_of_m[k], v, **step)
            expected[k], terms_of_m[k] = made[:3], terms.m
            # A direction may cancel, in its moment or with the decay: what is rounded is as large as the terms.
            for whole, rest in (
                (terms.update_norm, made.update_norm),
                (terms.gradient_update_norm, made.gradient_update_norm),
            ):
                worst[k] = max(worst[k], whole / rest if rest else 1.0)
            for name, value in made._asdict().items():
                if name not in ("w", "m", "v"):
                    assert found[f"{name}/param_{k}"] == pytest.approx(
                        value, rel=30 * LIMITS[dtype] * worst[k], abs=1e-300
                    )
    state = opt.state_dict()["layers"]
    for k, (w, m, v) in enumerate(expected):
        own = state[f"param_{k}"]
        # A moment may cancel to almost nothing: its rounding is that of gradients, which are of length 1.
        for one, other, terms in (
            (params[k], w, np.abs(w).max(initial=0) * worst[k]),
            (own["m"], m, 1.0),
            (own["v"], v, 1.0),
        ):
            assert np.abs(one - other).max(initial=0) <= LIMITS[dtype] * terms


@settings(max_examples=40)
@given(
    shapes,
    st.sampled_from(["f4", "f8"]),
    st.integers(1, 4),
    st.sampled_from([1e-6, 1.0, 1e4]),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.integers(0, 2**31),
)
def test_lans_follows_the_reference(
    shapes: Any, dtype: str, steps: int, scale: float, decay: float, seed: int
) -> None:
    check_against_reference(shapes, dtype, steps, scale, decay, seed)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_twenty_steps_follow_the_reference(dtype: str) -> None:
    check_against_reference([(1,), (127,), (3, 43), (CHUNK + 1,)], dtype, 20, 1.0, 0.01)


class Paper:
    """Algorithm 2 of arXiv 2006.13484, line by line, on lists of numbers; a layer is a block there."""

    def __init__(
        self, weights: list[list[float]], eta: float, beta1: float, beta2: float, lam: float, eps: float
    ):
        self.x = [[*block] for block in weights]
        self.m = [[0.0] * len(block) for block in weights]
        self.v = [[0.0] * len(block) for block in weights]
        self.eta, self.beta1, self.beta2, self.lam, self.eps, self.t = eta, beta1, beta2, lam, eps, 0

    def step(self, gradients: list[list[float]]) -> None:
        self.t += 1
        for b, gradient in enumerate(gradients):
            length = math.sqrt(math.fsum(g * g for g in gradient))
            normalized = [g / length for g in gradient]
            self.m[b] = [
                self.beta1 * m + (1 - self.beta1) * g for m, g in zip(self.m[b], normalized, strict=True)
            ]
            self.v[b] = [
                self.beta2 * v + (1 - self.beta2) * g * g for v, g in zip(self.v[b], normalized, strict=True)
            ]
            m_hat = [m / (1 - self.beta1**self.t) for m in self.m[b]]
            v_hat = [v / (1 - self.beta2**self.t) for v in self.v[b]]
            r = [m / (math.sqrt(v) + self.eps) for m, v in zip(m_hat, v_hat, strict=True)]
            c = [g / (math.sqrt(v) + self.eps) for g, v in zip(normalized, v_hat, strict=True)]
            phi = math.sqrt(math.fsum(x * x for x in self.x[b]))
            d = [0.0] * len(gradient)
            for share, direction in ((self.beta1, r), (1 - self.beta1, c)):
                decayed = [value + self.lam * x for value, x in zip(direction, self.x[b], strict=True)]
                norm = math.sqrt(math.fsum(value * value for value in decayed))
                d = [sum_ + share * phi / norm * value for sum_, value in zip(d, decayed, strict=True)]
            self.x[b] = [x - self.eta * value for x, value in zip(self.x[b], d, strict=True)]


def test_twenty_steps_follow_the_papers_lines() -> None:
    params = random_arrays([(1,), (5,), (130,), (300,)], "f8", 1)
    paper = Paper([p.tolist() for p in params], 0.02, 0.8, 0.95, 0.1, 1e-6)
    opt = nl.Lans(params, 0.02, 0.8, 0.95, 1e-6, 0.1)
    for t in range(20):
        gradients = random_arrays([p.shape for p in params], "f8", 2 + t, 3.0)
        opt.step(gradients)
        paper.step([g.tolist() for g in gradients])
    for p, expected in zip(params, paper.x, strict=True):
        assert relative_to_largest(p, np.array(expected)) < 1e-13


# -- what normalizing promises ---------------------------------------------------------------------------------


def trained(params: list[np.ndarray], factors: Any, **options: Any) -> Any:
    params = [p.copy() for p in params]
    opt = nl.Lans(params, 0.1, **options)
    for step, factor in enumerate(factors):
        gradients = random_arrays([p.shape for p in params], params[0].dtype.str[1:], step)
        opt.step([np.asarray(g * factor, dtype=g.dtype) for g in gradients])
    return params, opt


@settings(max_examples=30)
@given(shapes, st.lists(st.integers(-40, 40), min_size=1, max_size=3), st.sampled_from(["f4", "f8"]))
def test_a_power_of_two_before_the_gradients_changes_no_bit(shapes: Any, exponents: Any, dtype: str) -> None:
    params = random_arrays(shapes, dtype, 5)
    one, opt = trained(params, [1.0] * len(exponents), weight_decay=0.1)
    other, scaled = trained(params, [2.0**k for k in exponents], weight_decay=0.1)
    assert frozen(one) == frozen(other)
    assert frozen(opt.state_dict()) == frozen(scaled.state_dict())


@settings(max_examples=30)
@given(shapes, st.floats(1e-5, 1e5))
def test_a_factor_before_the_gradients_changes_roundings_alone(shapes: Any, factor: float) -> None:
    params = random_arrays(shapes, "f8", 5)
    one, _ = trained(params, [1.0] * 3)
    other, _ = trained(params, [factor] * 3)
    for p, q in zip(one, other, strict=True):
        assert relative_to_largest(p, q) < 1e-13


@settings(max_examples=30)
@given(shapes, st.sampled_from([0.0, 0.3]), st.sampled_from([1e-6, 1.0, 1e6]))
def test_no_step_is_longer_than_the_rate_times_the_weights(shapes: Any, decay: float, scale: float) -> None:
    params = random_arrays(shapes, "f8", 7)
    before = [p.copy() for p in params]
    opt = nl.Lans(params, 0.25, weight_decay=decay)
    opt.step(random_arrays(shapes, "f8", 8, scale))
    for p, old in zip(params, before, strict=True):
        assert np.linalg.norm(p - old) <= 0.25 * np.linalg.norm(old) * (1 + 1e-12)


def test_ratios_are_1_where_a_norm_is_0() -> None:
    params = {"w": np.zeros(3), "g": np.array([3.0, 4.0])}
    opt = nl.Lans(params, 0.5)
    opt.step({"w": np.array([1.0, 2.0, 2.0]), "g": np.zeros(2)})
    stats = opt.stats()
    assert [
        stats[f"{ratio}/{name}"] for ratio in ("trust_ratio", "gradient_trust_ratio") for name in "wg"
    ] == [1.0] * 4
    # A layer that starts at 0 moves by the rate, one whose gradient is 0 stays, bit for bit.
    np.testing.assert_allclose(params["w"], [-0.5] * 3, rtol=1e-5)
    assert params["g"].tolist() == [3.0, 4.0]
    assert (stats["gradient_norm/w"], stats["gradient_norm/g"]) == (3.0, 0.0)
    # Decay alone makes a direction along the weights: both ratios take its length out.
    opt = nl.Lans(params, 0.5, weight_decay=0.1)
    opt.step({"w": np.ones(3), "g": np.zeros(2)})
    np.testing.assert_allclose(params["g"], [1.5, 2.0], rtol=1e-12)


@pytest.mark.parametrize("size", [1, 127, CHUNK + 1])
@pytest.mark.parametrize("value", [1e-45, 1e-40, 1e-30, 1e18])
def test_gradients_of_any_size_are_normalized(size: int, value: float) -> None:
    w = np.ones(size, "f4")
    opt = nl.Lans([w], 0.1)
    opt.step([np.full(size, value, "f4")])
    m = opt.state_dict()["layers"]["param_0"]["m"].astype("f8")
    assert np.linalg.norm(m) == pytest.approx(0.1, rel=1e-3 if value > 1e-42 else 0.5)
    assert np.isfinite(w).all()
    np.testing.assert_allclose(w, 0.9, rtol=1e-5)


def test_gradients_that_are_too_small_to_square_are_0() -> None:
    w = np.ones(3)
    nl.Lans([w], 0.1).step([np.full(3, 1e-200)])
    assert w.tolist() == [1.0] * 3


def test_maximize_is_the_other_gradient_and_filters_hold() -> None:
    params, gradients = random_arrays([(130,), (4, 5)], "f4", 3), random_arrays([(130,), (4, 5)], "f4", 4)
    up, down = [[p.copy() for p in params] for _ in range(2)]
    nl.Lans(up, 0.1, maximize=True).step(gradients)
    nl.Lans(down, 0.1).step([-g for g in gradients])
    assert frozen(up) == frozen(down)
    opt = nl.Lans(
        params, 0.1, weight_decay=0.5, adapt_filter=lambda layer: layer.ndim > 1, decay_filter=lambda _: False
    )
    opt.step([-g for g in gradients])
    stats = opt.stats()
    assert stats["trust_ratio/param_0"] == stats["gradient_trust_ratio/param_0"] == 1.0
    assert stats["trust_ratio/param_1"] != 1.0
    assert frozen(params[1]) == frozen(down[1])


def test_bounds_of_the_weight_norm_are_phi() -> None:
    w = np.array([3.0, 4.0])
    opt = nl.Lans([w], 0.1, weight_norm_bounds=(0.0, 2.5))
    opt.step([np.array([1.0, 1.0])])
    stats = opt.stats()
    assert stats["trust_ratio/param_0"] * stats["update_norm/param_0"] == pytest.approx(2.5)
    assert stats["gradient_trust_ratio/param_0"] * stats["gradient_update_norm/param_0"] == pytest.approx(2.5)
    made = reference.lans([3, 4], [1, 1], [0, 0], [0, 0], 1, learning_rate=0.1, weight_limit=2.5)
    np.testing.assert_allclose(w, made.w, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_centralized_gradient_is_normalized(dtype: str) -> None:
    params = random_arrays([(7, 3, 5), (2, CHUNK, 2)], dtype, 1)
    expected = [p.astype("f8") for p in params]
    opt = nl.Lans([{"params": params, "grad_centralization": True}], 0.1)
    gradients = [g + 1 for g in random_arrays([p.shape for p in params], dtype, 2)]
    opt.step(gradients)
    for k, (p, w, g) in enumerate(zip(params, expected, gradients, strict=True)):
        made = reference.lans(w, reference.centralized(g), 0 * w, 0 * w, 1, learning_rate=0.1)
        assert relative_to_largest(p, made.w) < 10 * LIMITS[dtype]
        assert opt.stats()[f"gradient_norm/param_{k}"] == pytest.approx(made.gradient_norm, rel=LIMITS[dtype])


# -- what the engine gives -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_threads_change_no_bit() -> None:
    found = []
    for threads in (1, launch.thread_limit()):
        params = random_arrays([(40 * CHUNK + 3,), (129,), (5, 3 * CHUNK, 2)], "f4", 1)
        groups = [{"params": params[:2]}, {"params": params[2:], "grad_centralization": True}]
        opt = nl.Lans(groups, 0.1, num_threads=threads)
        for step in range(3):
            opt.step(random_arrays([p.shape for p in params], "f4", 9 + step))
        found.append((frozen(params), frozen(opt.state_dict()), frozen(opt.stats())))
    assert found[0] == found[1]


BOUNDS = {"f4": 2.0**63, "f8": 2.0**480}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("bad", ["beyond", np.inf, np.nan])
def test_a_step_that_cannot_be_used_changes_nothing(dtype: str, bad: Any) -> None:
    params = {"a": np.ones(5, dtype), "b": np.full(5, 2, dtype)}
    opt = nl.Lans(params, 0.1)
    opt.step({"a": np.ones(5, dtype), "b": np.full(5, BOUNDS[dtype] / 1.001, dtype)})
    assert all(np.isfinite(p).all() for p in params.values())
    before = snapshot(opt)
    gradients = {
        "a": np.ones(5, dtype),
        "b": np.full(5, BOUNDS[dtype] * 1.001 if bad == "beyond" else bad, dtype),
    }
    with pytest.raises(FloatingPointError, match="gradient of 'b' has 5 values"):
        opt.step(gradients)
    assert snapshot(opt) == before
    skipping = nl.Lans(params, 0.1, nonfinite="skip")
    held = frozen(params)
    skipping.step(gradients)
    assert (skipping.global_step, skipping.skipped_steps, frozen(params)) == (0, 1, held)
    letting = nl.Lans(params, 0.1, nonfinite="propagate")
    letting.step(gradients)
    assert letting.global_step == 1
    assert np.isfinite(params["a"]).all()


def test_the_bound_keeps_norms_within_the_dtype() -> None:
    # As many values as there can be, all at the bound.
    for dtype, bound in BOUNDS.items():
        assert math.log2(bound) + 63 / 2 < math.log2(np.finfo(dtype).max)
        assert 2 * math.log2(bound) + 63 < 1024


def test_a_layer_without_a_gradient_stays() -> None:
    params = random_arrays([(5,), (129,)], "f4", 1)
    opt = nl.Lans(params, 0.1)
    opt.step(random_arrays([(5,), (129,)], "f4", 2))
    before, state = params[0].copy(), copy.deepcopy(opt.state_dict()["layers"]["param_0"])
    opt.step([None, random_arrays([(129,)], "f4", 3)[0]])
    assert frozen(params[0]) == frozen(before)
    assert frozen(opt.state_dict()["layers"]["param_0"]) == frozen(state)


def test_training_goes_on_from_a_state_and_a_pickle() -> None:
    shapes = [(5,), (129,)]
    whole, parts = random_arrays(shapes, "f4", 1), random_arrays(shapes, "f4", 1)
    one, two = nl.Lans(whole, 0.1), nl.Lans(parts, 0.1)
    for step in range(4):
        gradients = random_arrays(shapes, "f4", 5 + step)
        one.step(gradients)
        two.step(gradients)
        if step == 1:
            state = two.state_dict()
            two = nl.Lans(parts, 0.1)
            two.load_state_dict(state)
        if step == 2:
            two = pickle.loads(pickle.dumps(two))
            parts = [*two.params.values()]
    assert frozen(whole) == frozen(parts)
    with pytest.raises(ValueError, match="optimizer"):
        nl.Lamb(whole, 0.1).load_state_dict(one.state_dict())


def test_a_history_has_both_directions() -> None:
    opt = nl.Lans({"w": np.ones(3)}, 0.1)
    history = nl.History(opt, 5)
    opt.step([np.ones(3)])
    history.record()
    (row,) = history.rows()
    assert {key: row[key] for key in opt.stats()} == opt.stats()


def test_there_is_no_clip() -> None:
    w = np.ones(3)
    with pytest.raises(TypeError, match=r"'max_grad_norm' is no option of numba_lamb\.Lans; its options are"):
        nl.Lans([w], 0.1, max_grad_norm=1.0)  # type: ignore[call-arg]
    with pytest.raises((KeyError, ValueError), match="max_grad_norm"):
        nl.Lans([{"params": [w], "max_grad_norm": 1.0}], 0.1)
    opt = nl.Lans([w], 0.1)
    assert not hasattr(opt, "max_grad_norm")
    with pytest.raises(AttributeError, match="it is no option of Lans"):
        opt.max_grad_norm = 1.0
