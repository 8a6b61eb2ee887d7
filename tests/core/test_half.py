"""The NumPy API in fewer bits: what equals a run in float32, what repeats, and what is left alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.helpers import frozen

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
pytestmark = pytest.mark.slow
BFLOAT16 = ml_dtypes.bfloat16
SHAPES = {"long": (9000,), "conv": (3, 4, 5), "one": (1,)}
Params = dict[str, np.ndarray]
MAKERS: dict[str, Callable[..., Any]] = {
    "lamb": lambda params, **stored: nl.Lamb(params, 0.01, weight_decay=0.1, max_grad_norm=3.0, **stored),
    "decoupled": lambda params, **stored: nl.Lamb(
        params, 0.01, weight_decay=0.1, decoupled_decay=True, maximize=True, **stored
    ),
    "centralized": lambda params, **stored: nl.Lamb(
        [{"params": {"conv": params.pop("conv")}, "grad_centralization": True}, {"params": params}],
        0.01,
        **stored,
    ),
    "lans": lambda params, **stored: nl.Lans(params, 0.01, **stored),
    "lars": lambda params, **stored: nl.Lars(nl.Momentum(params, 0.1, 0.9, weight_decay=0.01, **stored)),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
STORED: list[dict[str, Any]] = [
    {"moments": "bfloat16"},
    {"moments": "int8"},
    {"moments": "int8", "master": None, "seed": 3},
]


def start(dtype: Any) -> Params:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(BFLOAT16).astype(dtype) for name, shape in SHAPES.items()}


def train(opt: Any, steps: int, dtype: Any, seed: int = 1) -> None:
    """Take steps with gradients that bfloat16 holds, in the given dtype."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        given = {
            name: rng.standard_normal(shape).astype(BFLOAT16).astype(dtype) for name, shape in SHAPES.items()
        }
        opt.step(given)


def master_of(w: np.ndarray, layer: dict[str, Any]) -> np.ndarray:
    if w.dtype == np.float16:
        return layer["master"]
    bits = (w.view(np.uint16).astype(np.int64) << 16) + layer["remainder"]
    return bits.astype(np.uint32).view(np.float32)


@makers
@pytest.mark.parametrize("dtype", [BFLOAT16, np.float16], ids=["bfloat16", "float16"])
def test_masters_take_the_steps_of_float32(make: Callable[..., Any], dtype: Any) -> None:
    whole, half = start(np.float32), start(dtype)
    first, second = make(dict(whole)), make(dict(half))
    train(first, 3, np.float32)
    # Gradients have their own dtypes, which enter as they are.
    train(second, 3, np.float32 if dtype == np.float16 else BFLOAT16)
    layers = second.state_dict()["layers"]
    for name, w in half.items():
        found = master_of(w, layers[name])
        assert found.tobytes() == whole[name].tobytes(), name
        tied = found.view(np.uint32) & 0xFFFF == 0x8000
        assert (w == found.astype(dtype))[~tied].all()
    # Of what float16 cannot hold float32 has no count.
    told = {key: value for key, value in second.stats().items() if not key.startswith("beyond")}
    assert frozen(dict(first.stats())) == frozen(told)


@pytest.mark.parametrize("dtype", [BFLOAT16, np.float16, np.float64], ids=str)
def test_gradients_of_any_dtype_are_those_in_float32(dtype: Any) -> None:
    one, other = start(np.float32), start(np.float32)
    first, second = MAKERS["lamb"](one), MAKERS["lamb"](other)
    train(first, 3, np.float32)
    train(second, 2, dtype)
    rng = np.random.default_rng(1)
    for _ in range(3):
        last = {name: rng.standard_normal(shape).astype(BFLOAT16) for name, shape in SHAPES.items()}
    # One of each: a float32 one where others were before.
    second.step(
        {**{name: g.astype(dtype) for name, g in last.items()}, "long": last["long"].astype(np.float32)}
    )
    assert frozen(one) == frozen(other)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_random_bits_repeat_whatever_the_threads_and_after_a_resume(stored: dict[str, Any]) -> None:
    def run(threads: int, **others: Any) -> tuple[Params, Any]:
        params = start(BFLOAT16)
        opt = nl.Lamb(params, 0.01, num_threads=threads, **{**stored, **others})
        train(opt, 3, BFLOAT16)
        return params, opt

    params, opt = run(1)
    again, other = run(2)
    assert frozen((params, opt.state_dict())) == frozen((again, other.state_dict()))
    resumed = {name: w.copy() for name, w in params.items()}
    late = nl.Lamb(resumed, 0.01, **stored)
    late.load_state_dict(opt.state_dict())
    copied = copy.deepcopy(opt)
    for each in (opt, late, copied):
        train(each, 2, BFLOAT16, seed=9)
    assert frozen(params) == frozen(resumed) == frozen(dict(copied.params))
    assert frozen(run(1, seed=4)[0]) != frozen(again)


@pytest.mark.parametrize("stored", [{}, *STORED], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0**64])
def test_a_step_that_is_left_out_changes_nothing(stored: dict[str, Any], bad: float) -> None:
    params = start(BFLOAT16)
    opt = nl.Lamb(params, 0.01, **stored)
    train(opt, 2, BFLOAT16)
    before = frozen((params, opt.state_dict()))
    spoilt = {name: np.ones(shape, BFLOAT16) for name, shape in SHAPES.items()}
    spoilt["long"][8999] = bad
    with pytest.raises(FloatingPointError, match="gradient of 'long' has 1 values"):
        opt.step(spoilt)
    assert frozen((params, opt.state_dict())) == before
    opt.nonfinite = "skip"
    opt.step(spoilt)
    opt.step({**spoilt, "long": np.ones(9000, np.float16) * np.float16(np.inf)})
    assert opt.skipped_steps == 2
    assert frozen(params) == before[0]


@pytest.mark.parametrize("value", [0.0, -0.0, np.inf, 1e-40, -3.0])
def test_parameters_that_were_written_give_no_nan(value: float) -> None:
    for dtype in (BFLOAT16, np.float16):
        params = start(dtype)
        opt = nl.Lamb(params, 0.01, nonfinite="propagate")
        train(opt, 3, dtype)
        with np.errstate(over="ignore"):
            params["long"][:100] = value
        before = params["long"][:100].astype(np.float32)
        opt.learning_rate = 0.0
        train(opt, 1, dtype)
        after = params["long"][:100].astype(np.float32)
        assert (np.abs(after - before) <= np.abs(before) / 128)[np.isfinite(before)].all()


def test_the_ratio_is_of_the_update_that_is_applied() -> None:
    for moments in ("bfloat16", "int8"):
        w = np.random.default_rng(2).standard_normal(5000).astype(np.float32)
        opt = nl.Lamb({"w": w}, 0.01, moments=moments)
        for step in range(3):
            before = w.astype(np.float64)
            opt.step([np.random.default_rng(step).standard_normal(5000).astype(np.float32)])
        moved = np.linalg.norm(w.astype(np.float64) - before)
        assert moved == pytest.approx(0.01 * np.linalg.norm(before), rel=1e-5)


def test_state_is_as_small_as_it_is_said() -> None:
    w = np.ones(128 * 100, BFLOAT16)
    sizes = []
    for moments in (None, "bfloat16", "int8"):
        layer = nl.Lamb({"w": w}, 0.01, moments=moments).state_dict()["layers"]["w"]
        state = sum(value.nbytes for value in layer.values() if isinstance(value, np.ndarray))
        sizes.append((w.nbytes + state) / w.size)
    assert sizes == [12, 8, 6.0625]


def test_how_things_are_stored_stays() -> None:
    w, g = np.ones(3, BFLOAT16), np.ones(3, BFLOAT16)
    opt = nl.Lamb({"w": w}, 0.01)
    opt.step([g])
    for name, value, was in (("moments", "int8", None), ("master", None, "'split'")):
        opt.param_groups[0][name] = value
        with pytest.raises(ValueError, match=f"{name} of group 0 must stay {was}, got "):
            opt.step([g])
        opt.param_groups[0][name] = None if name == "moments" else "split"
    opt.step([g])
    with pytest.raises(ValueError, match="moments must be None for parameter 'd' of float64, got 'int8'"):
        nl.Lamb({"d": np.ones(3)}, 0.01, moments="int8")
    other = nl.Lamb({"w": np.ones(3, BFLOAT16)}, 0.01, moments="bfloat16")
    with pytest.raises(ValueError, match="m"):
        other.load_state_dict(opt.state_dict())


def test_a_file_has_parameters_of_bfloat16(tmp_path: Path) -> None:
    params = start(BFLOAT16)
    opt = nl.Lamb(params, 0.01, moments="int8")
    train(opt, 2, BFLOAT16)
    nl.save(tmp_path / "run.npz", opt)
    again = start(BFLOAT16)
    resumed = nl.Lamb(again, 0.01, moments="int8")
    nl.load(tmp_path / "run.npz", resumed)
    for each in (opt, resumed):
        train(each, 2, BFLOAT16, seed=6)
    assert frozen(params) == frozen(again)


def test_a_master_that_float16_cannot_hold_is_told_by_name() -> None:
    w, others = np.array([64992, 1], np.float16), np.ones(3, BFLOAT16)
    opt = nl.Momentum({"w": w, "others": others}, 1.0, 0.0)
    assert not opt.stats()
    opt.step([np.array([-1000, 0], np.float32), np.zeros(3, BFLOAT16)])
    assert w.tolist() == [np.inf, 1]
    assert opt.stats()["beyond_float16/w"] == 1
    assert "beyond_float16/others" not in opt.stats()
    # The master goes on where it was.
    opt.step([np.array([1000, 0], np.float32), np.zeros(3, BFLOAT16)])
    assert w.tolist() == [64992, 1]
    assert opt.stats()["beyond_float16/w"] == 0
