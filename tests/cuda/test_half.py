"""Arrays in fewer bits on a GPU: the CPU's bytes, however parameters, moments and gradients are stored."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import Gpu, Pair, assert_same
from tests.cuda.test_graphs import Captured

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
pytestmark = pytest.mark.slow
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
F16, F32, F64 = (np.dtype(kind) for kind in ("f2", "f4", "f8"))
SHAPES = {"long": (4096 + 1100,), "conv": (3, 4, 50), "one": (1,), "row": (128,), "odd": (129,)}
"""Layers of more than a chunk, that end in a row, with one, and one past it."""
MAKERS: dict[str, Callable[..., Any]] = {
    "lamb": lambda params, **stored: nl.Lamb(
        params, 0.05, weight_decay=0.1, max_grad_norm=3.0, **{"nonfinite": "skip", **stored}
    ),
    "decoupled": lambda params, **stored: nl.Lamb(
        params,
        0.05,
        weight_decay=0.1,
        decoupled_decay=True,
        maximize=True,
        adapt_filter=lambda layer: layer.size != 129,
        **stored,
    ),
    "lans": lambda params, **stored: nl.Lans(params, 0.05, **stored),
    "lars": lambda params, **stored: nl.Lars(nl.Momentum(params, 0.5, 0.9, weight_decay=0.01, **stored)),
    "nesterov": lambda params, **stored: nl.Momentum(
        params, 0.5, 0.9, weight_decay=0.01, use_nesterov=True, loss_scale=8.0, **stored
    ),
}
STORED: list[dict[str, Any]] = [
    {"moments": None},
    {"moments": "bfloat16"},
    {"moments": "int8"},
    {"moments": "int8", "master": None, "seed": 2**40 + 3},
]


def grouped(params: dict[str, Any]) -> list[dict[str, Any]]:
    conv = {"params": {"conv": params["conv"]}, "grad_centralization": True}
    return [conv, {"params": {name: array for name, array in params.items() if name != "conv"}}]


def random_arrays(random: np.random.Generator, dtypes: Any) -> dict[str, Any]:
    return {
        name: random.standard_normal(shape).astype(dtypes[k % len(dtypes)])
        for k, (name, shape) in enumerate(SHAPES.items())
    }


def bytes_of(pair: Pair) -> Any:
    return {
        name: array.get().tobytes() for name, array in pair.on_gpu.items()
    }, pair.gpu_optimizer.state_dict()


@pytest.mark.parametrize("dtype", [BFLOAT16, F16], ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("maker", MAKERS)
def test_steps_give_the_cpus_bytes(gpu: Gpu, maker: str, stored: dict[str, Any], dtype: Any) -> None:
    random = np.random.default_rng(1)
    pair = Pair(gpu, random_arrays(random, [dtype]), lambda params: MAKERS[maker](grouped(params), **stored))
    for step in range(3):
        pair.step(random_arrays(random, [[dtype], [F32], [BFLOAT16, F64, F16]][step]))
    pair.check()


@pytest.mark.parametrize("misaligned_by", [0, 8])
def test_all_formats_beside_each_other(gpu: Gpu, misaligned_by: int) -> None:
    """In one bucket, a layer of float32 among them; in float64 only gradients are of other dtypes."""
    random = np.random.default_rng(2)
    weights = random_arrays(random, [F32, BFLOAT16, F64, F16, F64])

    def make(params: dict[str, Any]) -> Any:
        # Each centralized, by arithmetic.
        groups = [{"params": {"conv": params["conv"]}, "moments": "int8", "grad_centralization": True}]
        groups += [{"params": {"row": params["row"]}, "master": None, "moments": "bfloat16"}]
        rest = {name: array for name, array in params.items() if name not in ("conv", "row")}
        return nl.Lamb([*groups, {"params": rest}], 0.05, weight_decay=0.1, max_grad_norm=2.0)

    pair = Pair(gpu, weights, make, misaligned_by)
    for step in range(4):
        gradients: dict[str, Any] = random_arrays(
            random, [[F32, F64], [F64], [BFLOAT16, F16], [F16, F32]][step]
        )
        if step == 2:
            gradients["row"] = None
        pair.step(gradients, misaligned_by=misaligned_by)
        pair.check()


def test_kernels_follow_the_gradients_dtype(gpu: Gpu) -> None:
    """What is native in one step is not in the next, and a layer may lack a gradient."""
    random = np.random.default_rng(3)
    pair = Pair(gpu, random_arrays(random, [F32]), lambda params: MAKERS["lars"](params))
    for dtype in (F32, BFLOAT16, F32, F16):
        pair.step(random_arrays(random, [dtype]))
    pair.check()


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_extreme_values_give_the_cpus_bytes(gpu: Gpu, stored: dict[str, Any]) -> None:
    """Subnormal, huge, signed zeros, and what becomes infinite or NaN on the way."""
    random = np.random.default_rng(4)

    def values(dtype: Any) -> Any:
        with np.errstate(over="ignore"):
            return {
                name: (random.standard_normal(shape) * 10.0 ** random.integers(*exponents, shape)).astype(
                    dtype
                )
                for name, shape in SHAPES.items()
                for exponents in [(0, 1) if name == "row" else (-44, 36)]
            }

    def make(params: dict[str, Any]) -> Any:
        # Without norms what is not finite stays where it is.
        return nl.Lamb(
            params, 0.05, adapt_filter=lambda layer: layer.size == 1, nonfinite="propagate", **stored
        )

    for dtype in (BFLOAT16, F16):
        weights = values(dtype)
        weights["odd"][:5] = -0.0, 0.0, np.inf, -np.inf, np.nan
        pair = Pair(gpu, weights, make)
        for step in range(3):
            pair.step(values([BFLOAT16, F16, F32][step]))
            assert_same({name: array.get() for name, array in pair.on_gpu.items()}, pair.on_cpu)
            for found, own in zip(*(opt.state_dict()["layers"].values() for opt in pair.both), strict=True):
                assert_same(without_payloads(found), without_payloads(own))
        finite = {name: np.isfinite(array.astype(F32)).all() for name, array in pair.on_cpu.items()}
        assert (finite["row"], finite["long"]) == (True, False)


def without_payloads(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer's state with patterns of bfloat16 as numbers, whose NaNs are alike."""
    return {
        name: value.view(BFLOAT16) if getattr(value, "dtype", None) == np.uint16 else value
        for name, value in layer.items()
    }


@pytest.mark.parametrize(("maker", "bad"), [("lamb", np.nan), ("lans", np.inf), ("decoupled", 2.0**64)])
def test_a_step_that_is_left_out_changes_nothing(gpu: Gpu, maker: str, bad: float) -> None:
    random = np.random.default_rng(5)
    pair = Pair(
        gpu,
        random_arrays(random, [BFLOAT16]),
        lambda params: MAKERS[maker](params, moments="int8", nonfinite="skip"),
    )
    good = random_arrays(random, [BFLOAT16])
    pair.step(good)
    before = bytes_of(pair)
    spoilt = {**good, "long": np.full(SHAPES["long"], bad, BFLOAT16)}
    pair.step(spoilt)
    for optimizer, given in zip(pair.both, (spoilt, gpu.arrays(spoilt)), strict=True):
        optimizer.nonfinite = "raise"
        with pytest.raises(FloatingPointError, match="gradient of 'long' has 5196 values"):
            optimizer.step(given)
    assert_same(bytes_of(pair)[0], before[0])
    assert_same(pair.gpu_optimizer.state_dict()["layers"], before[1]["layers"])
    pair.step(good)
    pair.check()
    assert [opt.skipped_steps for opt in pair.both] == [1, 1]


@pytest.mark.parametrize("stored", STORED[2:], ids=str)
def test_a_state_goes_from_one_side_to_the_other(gpu: Gpu, stored: dict[str, Any]) -> None:
    """Random bits go on as if nothing had been."""
    random = np.random.default_rng(6)
    make = lambda params: MAKERS["decoupled"](params, **stored)  # noqa: E731
    first = Pair(gpu, random_arrays(random, [BFLOAT16]), make)
    for _ in range(2):
        first.step(random_arrays(random, [BFLOAT16]))
    later = Pair(gpu, first.on_cpu, make)
    later.cpu.load_state_dict(first.gpu_optimizer.state_dict())
    later.gpu_optimizer.load_state_dict(first.cpu.state_dict())
    gradients = random_arrays(random, [BFLOAT16])
    for pair in (first, later):
        pair.step(gradients)
        pair.check()
    assert_same(later.on_cpu, first.on_cpu)


def test_replays_draw_random_bits_of_their_own(gpu: Gpu) -> None:
    random = np.random.default_rng(7)
    pair = Pair(
        gpu,
        random_arrays(random, [BFLOAT16]),
        lambda params: MAKERS["nesterov"](params, moments="bfloat16", master=None),
    )
    gradients = random_arrays(random, [BFLOAT16])
    static = gpu.arrays(gradients)
    captured = Captured(pair, static)
    for _ in range(3):
        captured.replay()
        pair.cpu.step(gradients)
    pair.check()


def test_kernels_that_a_capture_lacks_are_made_beforehand(gpu: Gpu) -> None:
    random = np.random.default_rng(8)
    pair = Pair(gpu, random_arrays(random, [F32]), lambda params: MAKERS["nesterov"](params))
    given = gpu.arrays(random_arrays(random, [F16]))
    with pytest.raises(
        RuntimeError, match=r"a gradient's dtype.* was changed.*one step outside of capture first"
    ):
        Captured(pair, given)
    assert pair.gpu_optimizer.global_step == 0
