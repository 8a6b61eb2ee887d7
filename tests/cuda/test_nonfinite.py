"""Gradients that are not finite: what a GPU does about them, without asking the host, is what the CPU does."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import OPTIMIZERS, Gpu, Pair, assert_same, gradients_like

SHAPES = {"a": ((9000,), "f4"), "b": ((130,), "f8"), "c": ((3, 7), "f4"), "d": ((5,), "f8")}


def weights_of(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: random.standard_normal(shape).astype(dtype) for name, (shape, dtype) in SHAPES.items()}


def spoiled(gradients: dict[str, Any], name: str, place: int, value: float) -> dict[str, Any]:
    gradients = {key: array.copy() for key, array in gradients.items()}
    gradients[name].reshape(-1)[place] = value
    return gradients


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("maker", OPTIMIZERS)
@pytest.mark.parametrize("one_block_at_a_time", [False, True])
def test_a_step_with_such_a_gradient_changes_nothing(
    gpu: Gpu, maker: str, limit: float | None, one_block_at_a_time: bool
) -> None:
    gpu.driver.one_block_at_a_time = one_block_at_a_time
    random = np.random.default_rng(1)
    weights = weights_of(random)
    pair = Pair(gpu, weights, lambda params: OPTIMIZERS[maker](params, max_grad_norm=limit, nonfinite="skip"))
    bad = [("a", 0, np.inf), ("a", 8999, np.nan), ("b", 129, -np.inf), ("c", 20, np.nan), ("d", 4, np.inf)]
    pair.step(gradients_like(weights, random))
    for count, (name, place, value) in enumerate(bad, start=1):
        before = [array.get() for array in pair.on_gpu.values()]
        pair.step(spoiled(gradients_like(weights, random), name, place, value))
        assert_same([array.get() for array in pair.on_gpu.values()], before)
        pair.check()
        assert pair.gpu_optimizer.skipped_steps == count
        # The flags are down again: the next step is taken.
        pair.step(gradients_like(weights, random))
        pair.check()
        assert pair.gpu_optimizer.global_step == 1 + count


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("maker", OPTIMIZERS)
def test_raise_says_what_the_cpu_says_and_changes_nothing(gpu: Gpu, maker: str, limit: float | None) -> None:
    random = np.random.default_rng(2)
    weights = weights_of(random)
    pair = Pair(
        gpu, weights, lambda params: OPTIMIZERS[maker](params, max_grad_norm=limit, nonfinite="raise")
    )
    pair.step(gradients_like(weights, random))
    for name, place, value in [("a", 5000, np.nan), ("b", 0, np.inf)]:
        gradients = spoiled(gradients_like(weights, random), name, place, value)
        with pytest.raises(FloatingPointError) as on_cpu:
            pair.cpu.step(gradients)
        with pytest.raises(FloatingPointError) as on_gpu:
            pair.gpu_optimizer.step(gpu.arrays(gradients))
        assert str(on_gpu.value) == str(on_cpu.value)
        assert name in str(on_gpu.value)
        pair.check()
        pair.step(gradients_like(weights, random))
        pair.check()
    assert gpu.driver.contexts == [0]


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("maker", OPTIMIZERS)
def test_propagate_lets_them_through(gpu: Gpu, maker: str, limit: float | None) -> None:
    random = np.random.default_rng(3)
    weights = weights_of(random)
    pair = Pair(
        gpu, weights, lambda params: OPTIMIZERS[maker](params, max_grad_norm=limit, nonfinite="propagate")
    )
    for name, value in [("c", np.inf), ("b", np.nan)]:
        pair.step(gradients_like(weights, random))
        pair.step(spoiled(gradients_like(weights, random), name, 1, value))
    pair.check()
    assert np.isnan(pair.on_gpu["c"].get()).any()


@pytest.mark.parametrize("maker", OPTIMIZERS)
@pytest.mark.parametrize("nonfinite", ["skip", "propagate", "raise"])
def test_a_norm_that_float64_cannot_hold(gpu: Gpu, maker: str, nonfinite: str) -> None:
    random = np.random.default_rng(4)
    weights = weights_of(random)
    pair = Pair(
        gpu, weights, lambda params: OPTIMIZERS[maker](params, max_grad_norm=1.0, nonfinite=nonfinite)
    )
    pair.step(gradients_like(weights, random))
    huge = spoiled(gradients_like(weights, random), "d", 2, 1e200)
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError) as on_cpu:
            pair.cpu.step(huge)
        with pytest.raises(FloatingPointError) as on_gpu:
            pair.gpu_optimizer.step(gpu.arrays(huge))
        assert str(on_gpu.value) == str(on_cpu.value)
    else:
        pair.step(huge)
    pair.check()
    assert pair.gpu_optimizer.skipped_steps == (nonfinite == "skip")
    pair.step(gradients_like(weights, random))
    pair.check()


def generated(pulled: list[int]) -> Iterator[float]:
    for step in range(5):
        pulled.append(step)
        yield 0.1 / (step + 1)


RATES: dict[str, Callable[[list[int]], Any]] = {
    "callable": lambda pulled: lambda step: 0.1 / (step + 1),
    "table": lambda pulled: [0.1 / (step + 1) for step in range(5)],
    "array": lambda pulled: 0.1 / np.arange(1, 6),
    "generator": generated,
}


@pytest.mark.parametrize("kind", RATES)
def test_schedules_go_on_where_steps_were_skipped(gpu: Gpu, kind: str) -> None:
    """A table with exactly one value for each applied step lasts, and then ends where the CPU's does."""
    random = np.random.default_rng(5)
    weights = {"w": random.standard_normal(6).astype("f4")}
    pulled: list[list[int]] = [[], []]
    rates = iter([RATES[kind](pulled[0]), RATES[kind](pulled[1])])
    pair = Pair(
        gpu,
        weights,
        lambda params: nl.Lamb(
            [{"params": params, "lr": next(rates), "weight_decay": RATES["callable"]([])}],
            1.0,
            nonfinite="skip",
        ),
    )
    for bad in [True, False, True, True, False, False, True, False, True, False, True]:
        gradients = gradients_like(weights, random)
        if kind != "callable" and bad and pair.cpu.global_step == 5:
            break
        pair.step(spoiled(gradients, "w", 3, np.nan) if bad else gradients)
        pair.gpu.driver.progress()
    pair.check()
    assert pair.gpu_optimizer.global_step == 5
    if kind == "callable":
        return
    assert pulled[0] == pulled[1]
    for optimizer, gradients in (
        (pair.cpu, gradients_like(weights, random)),
        (pair.gpu_optimizer, gpu.arrays(gradients_like(weights, random))),
    ):
        with pytest.raises(IndexError, match="5 values and has none for step 5"):
            optimizer.step(gradients)
    pair.check()


def test_the_last_value_of_a_table_is_used_without_progress_in_between(gpu: Gpu) -> None:
    """The host cannot know that steps were skipped until it asks, which it does before it refuses."""
    weights = {"w": np.ones(6, "f4")}
    pair = Pair(gpu, weights, lambda params: nl.Momentum(params, [0.5, 0.25], 0.9, nonfinite="skip"))
    good, bad = {"w": np.ones(6, "f4")}, {"w": np.full(6, np.inf, "f4")}
    for gradients in (
        bad,
        good,
        bad,
        bad,
        bad,
        good,
    ):
        pair.step(gradients)
    pair.check()
    with pytest.raises(IndexError, match="2 values"):
        pair.gpu_optimizer.step(gpu.arrays(good))


def test_a_rate_that_fails_later_does_not_fail_now(gpu: Gpu) -> None:
    """What a callable raises for a step that is never reached, of whatever kind, is not the user's concern."""

    def rate(step: int) -> float:
        if step == 2:
            raise RuntimeError("no such step")
        return 0.5

    weights = {"w": np.ones(6, "f4")}
    pair = Pair(gpu, weights, lambda params: nl.Momentum(params, rate, 0.9, nonfinite="skip"))
    good, bad = {"w": np.ones(6, "f4")}, {"w": np.full(6, np.nan, "f4")}
    for gradients in (good, bad, bad, bad, good):
        pair.step(gradients)
    pair.check()
    with pytest.raises(RuntimeError, match="no such step"):
        pair.gpu_optimizer.step(gpu.arrays(good))
    pair.check()


def test_skip_is_the_default_on_a_gpu(gpu: Gpu) -> None:
    optimizer = nl.Lamb(gpu.arrays({"w": np.ones(3)}), 0.1)
    assert optimizer(gpu.arrays({"w": np.full(3, np.nan)})) == (True,)
    assert (optimizer.global_step, optimizer.skipped_steps) == (0, 1)
    assert dict(optimizer.stats()) == {}
