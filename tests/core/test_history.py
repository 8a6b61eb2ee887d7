"""`History`: what is recorded is what `stats` says, by step and layer; and nothing waits for it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import OPTIMIZERS, Gpu, Pair, gradients_like

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "a": RANDOM.standard_normal(300).astype("f4"),
    "bias": RANDOM.standard_normal(5),
    "c": RANDOM.standard_normal((2, 3)).astype("f4"),
}


def make(kind: str = "Lamb", weights: Any = WEIGHTS, **options: Any) -> Any:
    return OPTIMIZERS[kind]({name: value.copy() for name, value in weights.items()}, **options)


def gradients(scale: float = 1.0) -> dict[str, Any]:
    return {name: scale * value for name, value in gradients_like(WEIGHTS, RANDOM).items()}


def last_row(history: Any, given: Any) -> dict[str, float]:
    """What the last row says that `stats` says too, of layers that were given a gradient."""
    (row,) = history.rows(last=1)
    steps = {"step", "skipped", "clip_factor"}
    named = {"trust_ratio", "weight_norm", "update_norm", "gradient_norm"}
    assert all(key in steps | {"grad_norm"} or key.partition("/")[0] in named for key in row)
    assert {key.partition("/")[2] for key in row if "/" in key} <= given
    return {key: value for key, value in row.items() if key not in steps}


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_record_says_what_stats_says(kind: str, limit: float | None) -> None:
    opt = make(kind, max_grad_norm=limit)
    history = nl.History(opt)
    for absent in (None, "a", None, "c"):
        given = {name: None if name == absent else value for name, value in gradients().items()}
        opt.step(given)
        history.record()
        updated = {name for name, value in given.items() if value is not None}
        told = {k: v for k, v in opt.stats().items() if k == "grad_norm" or k.partition("/")[2] in updated}
        assert last_row(history, updated) == told
    assert np.isnan(history.trust_ratio).tolist() == [
        [False] * 3,
        [True, False, False],
        [False] * 3,
        [False, False, True],
    ]
    assert not history.skipped.any()
    if limit:
        np.testing.assert_array_equal(history.clip_factor, np.minimum(1, limit / history.grad_norm))
        assert (history.clip_factor < 1).all()
    else:
        assert np.isnan(history.grad_norm).all()
        assert (history.clip_factor == 1).all()


def test_the_oldest_steps_make_room() -> None:
    opt = make()
    short, long = nl.History(opt, steps=3), nl.History(opt)
    for _ in range(5):
        opt.step(gradients())
        short.record()
        long.record()
    assert (len(short), len(long)) == (3, 5)
    assert short.step.tolist() == [3, 4, 5]
    np.testing.assert_array_equal(short.trust_ratio, long.trust_ratio[2:])
    assert short.trust_ratio.shape == (3, 3)
    assert repr(short) == "History(Lamb, 3 of at most 3 steps, 3 layers)"


def test_steps_that_changed_nothing_have_no_values() -> None:
    opt = make(nonfinite="skip")
    history = nl.History(opt)
    history.record(step=10)
    opt.step(gradients())
    history.record(step=20)
    opt.step(gradients(np.inf))
    history.record()
    opt.nonfinite = "raise"
    with pytest.raises(FloatingPointError):
        opt.step(gradients(np.inf))
    history.record()
    assert history.step.tolist() == [10, 20, 21, 22]
    assert history.skipped.tolist() == [False, False, True, False]
    assert np.isnan(history.trust_ratio).all(axis=1).tolist() == [True, False, True, True]
    assert np.isnan(history.clip_factor).tolist() == [True, False, True, True]


def test_a_state_that_is_loaded_takes_no_step_with_it() -> None:
    """Going back by one step and taking it again leaves the counts as they were at the last record."""
    opt = make()
    opt.step(gradients())
    state = opt.state_dict()
    history = nl.History(opt)
    opt.step(gradients())
    history.record()
    opt.load_state_dict(state)
    history.record()
    opt.load_state_dict(state)
    opt.step(gradients())
    history.record()
    assert np.isnan(history.trust_ratio).all(axis=1).tolist() == [False, True, False]


def test_a_group_that_is_added_has_no_values_before() -> None:
    opt = make()
    history = nl.History(opt)
    opt.step(gradients())
    history.record()
    opt.add_param_group({"params": {"new": np.ones(3)}})
    opt.step({**gradients(), "new": np.ones(3)})
    history.record()
    assert history.layers == ("a", "bias", "c", "new")
    assert np.isnan(history.trust_ratio).tolist() == [[False, False, False, True], [False] * 4]
    assert "trust_ratio/new" not in history.rows()[0]


def test_lars_that_takes_over_has_its_ratios() -> None:
    momentum = make("Momentum")
    history = nl.History(momentum)
    for _ in range(2):
        momentum.step(gradients())
        history.record()
        nl.Lars(momentum)
    assert (history.trust_ratio[0] == 1).all()
    assert (history.trust_ratio[1] != 1).tolist() == [True, False, True]
    assert np.isnan(history.gradient_norm).tolist() == [[True] * 3, [False, True, False]]


def test_what_there_is_not_is_said() -> None:
    history = nl.History(make())
    with pytest.raises(
        AttributeError, match=r"History of Lamb has trust_ratio, .*update_norm, and no gradient"
    ):
        _ = history.gradient_norm
    with pytest.raises(TypeError, match=r"optimizer must be a Lamb, Lars or Momentum .* got builtins.int"):
        nl.History(3)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        nl.History(make(), steps=0)
    with pytest.raises(TypeError, match="steps must be an int, got float"):
        nl.History(make(), steps=1.5)  # type: ignore[arg-type]
    assert len(history) == len(history.rows()) == 0
    assert history.trust_ratio.shape == (0, 3)
    with pytest.raises(ValueError, match="trust ratio has no value above 0 to be drawn"):
        history.plot("nowhere.png")


# What others read ------------------------------------------------------------------------------------


def recorded(count: int = 3) -> Any:
    opt = make(weights={**WEIGHTS, 'quoted, "name"': np.ones(2)}, max_grad_norm=1.0)
    history = nl.History(opt)
    for _ in range(count):
        opt.step([*gradients().values(), None])
        history.record()
    return history


def test_the_table_has_a_line_for_each_step(tmp_path: Path) -> None:
    history = recorded()
    history.to_csv(tmp_path / "steps.csv")
    with open(tmp_path / "steps.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, history.rows(), strict=True):
        assert {key: float(value) for key, value in line.items() if value} == row
        assert line['trust_ratio/quoted, "name"'] == ""
    assert next(iter(lines[0])) == "step"
    assert [line["step"] for line in lines] == ["1", "2", "3"]
    assert [path.name for path in tmp_path.iterdir()] == ["steps.csv"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_map_is_drawn_into_a_file(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    recorded().plot(tmp_path / f"ratios.{suffix}")
    assert (tmp_path / f"ratios.{suffix}").stat().st_size > 5000


def test_the_map_is_drawn_into_axes() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    history = recorded()
    history.plot(axes, "weight_norm")
    (mesh,) = axes.collections
    drawn = np.ma.filled(mesh.get_array(), np.nan)
    np.testing.assert_array_equal(drawn, history.weight_norm.T)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(history.layers)
    assert axes.get_title(loc="left") == "weight norm"


def test_a_picture_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"path must end in .* such as \*.png"):
        recorded().plot(tmp_path / "ratios.txt")
    assert not [*tmp_path.iterdir()]


# On a GPU ---------------------------------------------------------------------------------------------


def test_a_record_does_not_wait_for_the_gpu(gpu: Gpu) -> None:
    weights = {"a": np.ones(7), "bias": np.ones(3)}
    pair = Pair(gpu, weights, lambda params: OPTIMIZERS["Lars"](params, max_grad_norm=0.5, nonfinite="skip"))
    histories = [nl.History(optimizer, steps=4) for optimizer in pair.both]
    before = gpu.driver.waits
    for step in range(6):
        given: dict[str, Any] = gradients_like(weights, RANDOM)
        if step == 3:
            given["bias"][:] = np.inf
        if step == 4:
            given["a"] = None
        pair.step(given)
        for history in histories:
            history.record()
    assert gpu.driver.waits == before
    on_cpu, on_gpu = histories
    for name in ("step", "trust_ratio", "weight_norm", "grad_norm", "clip_factor", "skipped"):
        np.testing.assert_array_equal(getattr(on_gpu, name), getattr(on_cpu, name))
    assert on_gpu.skipped.tolist() == [False, True, False, False]
    assert np.isnan(on_gpu.trust_ratio[:, 0]).tolist() == [False, True, True, False]


def test_records_that_have_come_leave_their_memory_to_later_ones(gpu: Gpu) -> None:
    opt = OPTIMIZERS["Momentum"](gpu.arrays({"w": np.ones(5)}))
    history = nl.History(opt)

    def run() -> None:
        opt.step(gpu.arrays({"w": np.ones(5)}))
        history.record()
        gpu.driver.progress()

    for _ in range(4):
        run()
    pinned = len(gpu.driver.host)
    for _ in range(20):
        run()
    assert len(gpu.driver.host) == pinned
    assert (history.trust_ratio == 1).all()


def test_a_new_group_on_the_gpu_has_no_values_before(gpu: Gpu) -> None:
    opt = OPTIMIZERS["Momentum"](gpu.arrays({"w": np.ones(5)}))
    history = nl.History(opt)
    opt.step(gpu.arrays({"w": np.ones(5)}))
    history.record()
    opt.add_param_group({"params": gpu.arrays({"v": np.ones(3)})})
    opt.step(gpu.arrays({"w": np.ones(5), "v": np.ones(3)}))
    history.record()
    np.testing.assert_array_equal(history.trust_ratio, [[1, np.nan], [1, 1]])


def test_a_record_cannot_be_captured(gpu: Gpu) -> None:
    opt = OPTIMIZERS["Momentum"](gpu.arrays({"w": np.ones(5)}))
    history = nl.History(opt)
    check: Callable[[Any], bool] = lambda stream: True  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opt._backend._device, "is_capturing", check)
        with pytest.raises(RuntimeError, match=r"record\(\) cannot be captured"):
            history.record()
    assert len(history) == 0
