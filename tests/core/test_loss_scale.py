"""DynamicLossScale: it falls where a step is left out, rises while none is, and goes into files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl


def made(dtype: Any = np.float32, **options: Any) -> tuple[np.ndarray, nl.Lamb, nl.DynamicLossScale]:
    w = np.linspace(-1, 1, 300).astype(dtype)
    opt = nl.Lamb({"w": w}, 0.01, nonfinite="skip")
    return w, opt, nl.DynamicLossScale(opt, **options)


def test_steps_are_those_of_the_gradients_without_the_scale() -> None:
    w, _, scale = made()
    plain = w.copy()
    opt = nl.Lamb({"w": plain}, 0.01, nonfinite="skip")
    for seed in range(4):
        g = np.random.default_rng(seed).standard_normal(300).astype(np.float32)
        # Powers of 2 multiply exactly.
        assert scale.step([g * np.float32(scale.value)])
        opt.step([g])
    assert w.tobytes() == plain.tobytes()
    # A step of the optimizer alone has no scale.
    assert scale._optimizer._plan.grad_scale == 0


def test_it_falls_and_rises_within_its_bounds() -> None:
    w, opt, scale = made(initial=4.0, interval=3, minimum=1.0, maximum=4.0)
    before, values = w.copy(), []
    for bad in (True, True, True):
        assert not scale.step([np.full(300, np.inf if bad else 1.0, np.float32)])
        values.append(scale.value)
    assert values == [2.0, 1.0, 1.0]
    assert w.tobytes() == before.tobytes()
    assert (opt.global_step, opt.skipped_steps) == (0, 3)
    for _ in range(8):
        assert scale.step([np.ones(300, np.float32)])
        values.append(scale.value)
    assert values[3:] == [1.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0]


def test_a_step_that_raises_leaves_scale_and_optimizer() -> None:
    _, opt, scale = made()
    with pytest.raises(ValueError, match="gradient of 'w'"):
        scale.step([np.ones(4, np.float32)])
    assert (scale.value, scale._optimizer._plan.grad_scale, opt.global_step) == (65536.0, 0, 0)
    opt.nonfinite = "raise"
    with pytest.raises(ValueError, match=r"nonfinite must be 'skip' for a loss scale .* got 'raise'"):
        scale.step([np.ones(300, np.float32)])


def test_it_goes_into_the_file_of_its_optimizer(tmp_path: Path) -> None:
    file = tmp_path / "training.npz"
    w, opt, scale = made(interval=2)
    scale.step([np.full(300, np.nan, np.float32)])
    scale.step([np.ones(300, np.float32)])
    nl.save(file, opt, scale)
    other, again, resumed = made(interval=2)
    nl.load(file, again, resumed)
    assert resumed.state_dict() == {"value": 32768.0, "steps": 1} == scale.state_dict()
    for each in (scale, resumed):
        each.step([np.ones(300, np.float32) * 3])
    assert resumed.value == 65536.0
    assert w.tobytes() == other.tobytes()
    with pytest.raises(
        ValueError, match=r"loss_scale must be a DynamicLossScale for .*, which has a loss scale"
    ):
        nl.load(file, again)
    nl.save(file, opt)
    with pytest.raises(ValueError, match=r"loss_scale must be None for .*, which has no loss scale"):
        nl.load(file, again, resumed)


@pytest.mark.parametrize(
    "state", [{}, {"value": 0.5, "steps": 0}, {"value": "1", "steps": 0}, {"value": 2.0, "steps": 2000}, None]
)
def test_a_state_is_checked(state: Any) -> None:
    *_, scale = made()
    with pytest.raises(ValueError, match="state"):
        scale.load_state_dict(state)
    assert scale.state_dict() == {"value": 65536.0, "steps": 0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"growth": 1.0}, "growth must be a number > 1, got 1.0"),
        ({"backoff": 1.0}, "backoff must be a number > 0 and < 1, got 1.0"),
        ({"interval": 0}, "interval must be an int >= 1, got 0"),
        ({"minimum": 0.0}, "minimum must be a number > 0, got 0.0"),
        ({"maximum": 0.5}, "maximum must be a number >= 1.0, got 0.5"),
        ({"initial": float("inf")}, "initial must be a number >= 1.0 and <= 16777216.0, got inf"),
        ({"initial": "2"}, "initial must be a number >= 1.0 and <= 16777216.0, got '2'"),
    ],
)
def test_arguments_are_checked(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        made(**options)


def test_what_it_cannot_follow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nonfinite must be 'skip' .* got 'raise'"):
        nl.DynamicLossScale(nl.Lamb([np.ones(3)], 0.1))
    with pytest.raises(
        TypeError, match=r"optimizer must be a numba_lamb\.Lamb, Lans, Lars or Momentum, got a list"
    ):
        nl.DynamicLossScale([])  # type: ignore[arg-type]
