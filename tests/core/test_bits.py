"""The bit contract: the same bytes whatever the threads, the process, the CPU, or a layer's neighbours."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb._compile import bind, cpu_function
from numba_lamb.kernels.cpu.intrinsics import fma
from numba_lamb.kernels.cpu.sums import add_lanes
from numba_lamb.kernels.cpu.sums import rules as compiled_rules
from numba_lamb.layout import LANES
from numba_lamb.numerics import rules as rule_text
from tests.helpers import run_python

DIGESTS = """
import hashlib, sys
import numpy as np
import numba_lamb as nl

SHAPES = [(300, 171), (64, 3, 3, 3), (5,), (), (0,), (70001,), (128,), (4097,)]

def values(shape, seed, scale, dtype):
    # Exact in float32, and the same on every machine and for every version of NumPy.
    count = int(np.prod(shape))
    mixed = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)) % np.uint64(2**20)
    return np.asarray((mixed.astype(np.int64) - 2**19).reshape(shape) / 2**18 * scale, dtype=dtype)

def digest(make, dtype, threads):
    params = [values(shape, k, 1.0, dtype) for k, shape in enumerate(SHAPES)]
    groups = [
        {"params": params[:1] + params[2:]},
        {"params": params[1:2], "grad_centralization": True, "weight_decay": 0.05},
    ]
    opt = make(groups, threads)
    for step in range(3):
        given = opt.params.values()
        opt.step([values(p.shape, 100 * step + k, 2.0**-10, dtype) for k, p in enumerate(given, start=17)])
    found = hashlib.sha256()
    for layer in opt.state_dict()["layers"].values():
        for name, value in layer.items():
            found.update(np.asarray(value).tobytes())
    for p in params:
        found.update(p.tobytes())
    return found.hexdigest()

MAKERS = {
    "lamb": lambda g, n: nl.Lamb(g, 0.01, weight_decay=0.1, num_threads=n),
    "momentum": lambda g, n: nl.Momentum(g, 0.01, 0.9, weight_decay=0.1, use_nesterov=True, num_threads=n),
    "lars": lambda g, n: nl.Lars(nl.Momentum(g, 0.01, 0.9, weight_decay=0.1, num_threads=n)),
    "lamb, clipped": lambda g, n: nl.Lamb(g, 0.01, weight_decay=0.1, max_grad_norm=0.125, num_threads=n),
    "momentum, clipped": lambda g, n: nl.Momentum(
        g, 0.01, 0.9, 0.1, loss_scale=3.0, use_nesterov=True, max_grad_norm=0.125, num_threads=n
    ),
    "lars, clipped": lambda g, n: nl.Lars(
        nl.Momentum(g, 0.01, 0.9, 0.1, loss_scale=3.0, max_grad_norm=0.125, num_threads=n)
    ),
}
for threads in map(int, sys.argv[1:] or ["1"]):
    for name, make in MAKERS.items():
        for dtype in ("float32", "float64"):
            print(name, dtype, digest(make, dtype, threads))
"""


# What runs leave behind, for good: a change here is a change of stored bits.
PINNED = """\
lamb float32 eca064b1da1bc17638fc0fe3ff8317d52eb8fd25f7271fdb79ea1ccc1e440caa
lamb float64 4ad3a4243c38a91b10d83197f3df33b5b22a9ce7b962518bc42ab831b3c01cf5
momentum float32 61c2db299ebd29ea4b749bc0e9f22ff88518b1cc4510ac60d081bcb538bf037e
momentum float64 932cd4f968addf017fd80cbb7da56cc23406bbc4c2b0fa9e05afc79e874dbbab
lars float32 197ca97922710d1a01d9173c465984f50f968422ae18f39260065c02b3ae6de3
lars float64 506b918347b885e675d12c19d029a7b88a56defc0c4dca2784f4c3ae80402afc
lamb, clipped float32 4d6a46321d3c343b238839a1dc0eb475f8fbae78099ecb96f9ea46829d6f425e
lamb, clipped float64 f735d23a1936b6d1bfd58d8389b19fdc4a55378843782364168592be38c77512
momentum, clipped float32 dda1887582e82b51ab54d1e856824e28367e49ea692ab2c3f4a45ee1800bed6e
momentum, clipped float64 b99dfa4888e6f1d884c15aee3a7eb591ddfed3578bbfa0ff71627e1f84917f24
lars, clipped float32 f090a62323648cdef36782eecdd4338b8aff84ad30607e2608e94c8a6d2b42d8
lars, clipped float64 f77ca192af96a6dd555978e006c1f97ac668dfb986d23ffe8e8ca028d03b6960
""".splitlines()


def digests(threads: list[int], **environment: str) -> list[str]:
    arguments = f"import sys; sys.argv[1:] = {[str(n) for n in threads]!r}"
    lines = run_python(arguments + DIGESTS, **environment).splitlines()
    assert len(lines) == len(PINNED) * len(threads)
    return lines


@pytest.mark.slow
def test_threads_processes_and_cpu_do_not_change_a_bit() -> None:
    one, two, five = np.array_split(digests([1, 2, 5], NUMBA_NUM_THREADS="5"), 3)
    assert one.tolist() == PINNED
    assert two.tolist() == one.tolist()
    assert five.tolist() == one.tolist()
    assert digests([2], NUMBA_NUM_THREADS="2") == one.tolist()
    # No FMA and no AVX: the same bits from fmaf() in the C library.
    assert digests([1], NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == one.tolist()


@pytest.mark.slow
def test_workqueue_layer_gives_the_same_bits() -> None:
    environment = {"NUMBA_NUM_THREADS": "3"}
    assert digests([3], NUMBA_THREADING_LAYER="workqueue", **environment) == digests([3], **environment)


SHAPES = {
    "embed": (517, 40),
    "conv": (8, 3, 3, 3),
    "bias": (40,),
    "scale": (),
    "empty": (0, 3),
    "big": (50_000,),
}
MAKERS: dict[str, Any] = {
    "lamb": lambda params: nl.Lamb(params, 0.02, weight_decay=0.1),
    "lars": lambda params: nl.Lars(nl.Momentum(params, 0.02, 0.9, weight_decay=0.1)),
    "momentum": lambda params: nl.Momentum(params, 0.02, 0.9, weight_decay=0.1),
}


def trained(make: Any, names: list[str], dtype: Any) -> dict[str, bytes]:
    """The bytes of each parameter after three steps, the model made of `names` in that order."""
    params = {name: layer_array(name, 0, dtype) for name in names}
    opt = make(params)
    for step in range(1, 4):
        opt.step({name: layer_array(name, step, dtype) for name in names})
    return {name: array.tobytes() for name, array in params.items()}


def layer_array(name: str, seed: int, dtype: Any) -> np.ndarray:
    rng = np.random.default_rng([seed, *name.encode()])
    return np.asarray(rng.standard_normal(SHAPES[name]), dtype=dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", MAKERS)
def test_neighbours_do_not_change_a_bit(optimizer: str, dtype: Any) -> None:
    make = MAKERS[optimizer]
    together = trained(make, list(SHAPES), dtype)
    assert trained(make, list(SHAPES)[::-1], dtype) == together
    for name in SHAPES:
        assert trained(make, [name], dtype)[name] == together[name]


def test_where_an_array_lies_does_not_change_a_bit() -> None:
    def run(skip: int) -> bytes:
        w = np.zeros(5000 + skip, dtype=np.float32)[skip:]
        g = np.zeros(5000 + 2 * skip, dtype=np.float32)[2 * skip :]
        w[:], g[:] = layer_array("big", 0, np.float32)[:5000], layer_array("big", 1, np.float32)[:5000]
        opt = nl.Lamb([w], 0.01, weight_decay=0.1)
        opt.step([g])
        opt.step([g])
        return w.tobytes()

    assert run(0) == run(1) == run(3)


def test_momentum_is_lars_with_ratio_one() -> None:
    rng = np.random.default_rng(8)
    start, gradients = rng.standard_normal(6000), [rng.standard_normal(6000) for _ in range(4)]

    def run(wrap: Any, nesterov: bool) -> bytes:
        w = start.astype(np.float32)
        opt = wrap(nl.Momentum({"w": w}, 0.1, 0.9, use_nesterov=nesterov))
        for gradient in gradients:
            # Equal norms, coefficient 1, no epsilon: the ratio is exactly 1, and computed.
            scaled = np.asarray(gradient, dtype=np.float32)
            scaled[:] = np.roll(w, 7) * np.sign(scaled)
            opt.step([scaled])
        return w.tobytes()

    for nesterov in (False, True):
        plain = run(lambda opt: opt, nesterov)
        assert run(lambda opt: nl.Lars(opt, epsilon=0.0, coefficient=1.0), nesterov) == plain
        assert run(lambda opt: nl.Lars(opt, lars_filter=lambda layer: False), nesterov) == plain


numbers = st.floats(-1e6, 1e6) | st.floats(allow_nan=False, allow_infinity=False)


@given(a=numbers, b=numbers, c=numbers)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    compiled, exact = float(bound_fma(a, b, c)), rule_text.fma(a, b, c) if finite_product(a, b, c) else None
    if exact is not None:
        assert compiled == exact
        assert math.copysign(1, compiled) == math.copysign(1, exact)


def finite_product(a: float, b: float, c: float) -> bool:
    try:
        rule_text.fma(a, b, c)
    except OverflowError:
        return False
    return True


@cpu_function
def bound_fma(a: Any, b: Any, c: Any) -> Any:
    return fma(a, b, c)


positive = st.floats(1e-12, 1e12)


@given(w=numbers, m=numbers, v=positive, k1=positive, k2=positive, decay=st.floats(0, 1))
def test_the_compiled_rules_are_the_written_ones(
    w: float, m: float, v: float, k1: float, k2: float, decay: float
) -> None:
    def value_of(rules: Any) -> float:
        m_next = rules.first_moment(m, w, 0.9, 0.1)
        v_next = rules.second_moment(v, w, 0.999, 0.001)
        u = rules.lamb_direction(w, m_next, v_next, k1, k2, 1e-6, decay)
        return float(rules.descend(w, u, 0.01))

    try:
        expected = value_of(rule_text)
    except OverflowError:
        return
    if math.isfinite(expected):
        assert value_of(compiled_rules) == expected


@given(step=st.integers(1, 10**7), beta=st.floats(0.5, 0.99999))
def test_bias_correction_is_the_closed_form(step: int, beta: float) -> None:
    found = rule_text.bias_correction(beta, step)
    assert compiled_rules.bias_correction(beta, step) == found
    assert found == pytest.approx(1 / -math.expm1(step * math.log(beta)), rel=1e-9)


def test_the_lane_tree_is_the_pinned_one() -> None:
    values = np.random.default_rng(1).standard_normal(LANES)
    expected = values.copy()
    half = LANES // 2
    while half:
        expected[:half] += expected[half : 2 * half]
        half //= 2
    assert add_lanes(values.copy()) == expected[0]


def test_bound_rules_leave_the_text_alone() -> None:
    bound = bind(rule_text, cpu_function, fma=bound_fma)
    assert bound.descend is not rule_text.descend
    assert rule_text.descend.__globals__["fma"] is rule_text.fma


def test_powers_are_made_of_products_that_a_target_can_bind() -> None:
    taken = []

    def multiply(a: float, b: float) -> float:
        taken.append((a, b))
        return a * b

    bound = bind(rule_text, lambda function: function, multiply=multiply)
    assert bound.bias_correction(0.5, 3) == 1 / (1 - 0.125)
    assert taken == [(1.0, 0.5), (0.5, 0.5), (0.5, 0.25), (0.25, 0.25)]
