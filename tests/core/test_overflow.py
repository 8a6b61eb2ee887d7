"""Finite gradients that would make a moment infinite: a step with one is left out, as if it were infinite."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.numerics import reference, rules
from tests.helpers import snapshot

MAKERS: dict[str, Callable[..., Any]] = {
    "lamb": lambda params, **options: nl.Lamb(params, 0.1, **options),
    "lans": lambda params, **options: nl.Lans(params, 0.1, **options),
    "momentum": lambda params, **options: nl.Momentum(params, 0.1, 0.9, **options),
    "lars": lambda params, **options: nl.Lars(
        nl.Momentum(params, 0.1, 0.9, **options), lars_filter=lambda layer: layer.name == "a"
    ),
}
BOUNDS = {
    ("lamb", "f4"): 2.0**63,
    ("lamb", "f8"): 2.0**511,
    ("lans", "f4"): 2.0**63,
    ("lans", "f8"): 2.0**480,
    ("momentum", "f4"): (1 - 0.9) * float(np.finfo("f4").max) / 2,
    ("momentum", "f8"): 2.0**480,
}


def bound_of(kind: str, dtype: str) -> float:
    return BOUNDS["momentum" if kind == "lars" else kind, dtype]


def of(value: float, dtype: str, size: int = 5) -> np.ndarray:
    values = np.zeros(size, dtype=dtype)
    values[2] = value
    return values


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_overflows_the_moments_is_refused(kind: str, dtype: str, sign: int) -> None:
    params = {"a": np.ones(5, dtype), "b": np.ones(5, dtype)}
    bound = bound_of(kind, dtype)
    opt = MAKERS[kind](params)
    opt.step({"a": of(1, dtype), "b": of(sign * bound / 1.001, dtype)})
    before = snapshot(opt)
    gradients = {"a": of(1, dtype), "b": of(sign * bound * 1.001, dtype)}
    with pytest.raises(
        FloatingPointError, match=r"gradient of 'b' has 1 values that are infinite or NaN, or beyond"
    ):
        opt.step(gradients)
    assert snapshot(opt) == before
    skipping = MAKERS[kind](params, nonfinite="skip")
    skipping.step(gradients)
    assert (skipping.global_step, skipping.skipped_steps) == (0, 1)
    letting = MAKERS[kind](params, nonfinite="propagate")
    letting.step(gradients)
    assert letting.global_step == 1


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MAKERS)),
    st.sampled_from(["f4", "f8"]),
    st.lists(st.floats(0, 1).map(lambda x: x * x), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.5, 0.9, 0.999]),
)
def test_moments_stay_finite_below_the_bound(kind: str, dtype: str, shares: list[float], beta: float) -> None:
    """Whatever is accepted keeps every moment, norm and weight finite, for ever."""
    w = np.ones(3, dtype)
    largest = float(np.finfo(dtype).max)
    if kind in ("lamb", "lans"):
        make, bound_rule = {
            "lamb": (nl.Lamb, rules.second_moment_bound),
            "lans": (nl.Lans, rules.lans_bound),
        }[kind]
        opt: Any = make([w], 1e-3, beta or 0.1, beta or 0.1)
        bound = bound_rule(largest)
    else:
        opt = nl.Momentum([w], 1e-3, beta)
        bound = rules.momentum_bound(largest, beta)
        opt = opt if kind == "momentum" else nl.Lars(opt)
    for share in shares:
        opt.step([np.full(3, share * bound, dtype)])
    (layer,) = opt.state_dict()["layers"].values()
    assert all(np.isfinite(layer[name]).all() for name in ("m", "v") if name in layer)
    assert all(np.isfinite(value) for value in opt.stats().values())
    assert np.isfinite(w).all()


def test_the_loss_scale_comes_first() -> None:
    for scale in (2.0**-20, 1.0, 2.0**16):
        w = np.ones(5, "f4")
        opt = nl.Momentum({"w": w}, 0.1, 0.9, loss_scale=scale)
        inside = min(bound_of("momentum", "f4") * scale / 1.001, float(np.finfo("f4").max))
        opt.step({"w": of(inside, "f4")})
        beyond = bound_of("momentum", "f4") * scale * 1.001
        if beyond < float(np.finfo("f4").max):
            with pytest.raises(FloatingPointError):
                opt.step({"w": of(beyond, "f4")})


@pytest.mark.parametrize("kind", ["lamb", "momentum", "lars"])
def test_what_is_clipped_to_less_may_be_any_number(kind: str) -> None:
    params = {"a": np.ones(5, "f4"), "b": np.ones(5, "f4")}
    opt = MAKERS[kind](params, max_grad_norm=1.0)
    opt.step({"a": of(1, "f4"), "b": of(3e38, "f4")})
    assert opt.global_step == 1
    assert all(np.isfinite(w).all() for w in params.values())
    opt = MAKERS[kind](params, max_grad_norm=3e38)
    with pytest.raises(FloatingPointError, match="'b'"):
        opt.step({"a": of(1, "f4"), "b": of(3e38, "f4")})


@settings(max_examples=200, deadline=None)
@given(
    st.floats(width=32),
    st.sampled_from([2.0**63, 1.7e37]),
    st.sampled_from([2.0**-8, 1.0, 3.0, 2.0**16]),
    st.sampled_from([0.0, 1.0, 1e30]),
)
def test_the_rule_is_the_references(g: float, bound: float, scale: float, limit: float) -> None:
    largest = float(np.finfo("f4").max)
    raw = float(np.float32(rules.raw_bound(bound, limit, scale, largest)))
    if abs(abs(g) - raw) <= 1e-6 * raw:
        return  # the reference does not round
    expected = reference.usable([np.array([g])], bound, scale, 0 < limit <= bound)
    assert bool(rules.is_usable(np.float32(g), np.float32(raw))) == expected


def test_pytorchs_optimizers_have_the_bounds() -> None:
    torch = pytest.importorskip("torch", reason="the peers extra is not installed")
    from numba_lamb.torch import Lamb, Lans, Lars, Momentum

    for kind, make in (("lamb", Lamb), ("lans", Lans), ("momentum", Momentum), ("lars", Lars)):
        p = torch.nn.Parameter(torch.ones(5))
        opt = make([("p", p)], lr=0.1, nonfinite="raise")
        p.grad = torch.tensor(of(bound_of(kind, "f4") / 1.001, "f4"))
        opt.step()
        p.grad = torch.tensor(of(bound_of(kind, "f4") * 1.001, "f4"))
        before = p.detach().clone()
        with pytest.raises(FloatingPointError, match="gradient of 'p' has 1 values"):
            opt.step()
        assert torch.equal(p, before)
        assert opt.state[p]["step"] == 1
