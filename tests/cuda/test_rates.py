"""Rates that live in device memory: read there by each step, and refused there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import (
    OPTIMIZERS,
    Gpu,
    GpuArray,
    Pair,
    assert_same,
    fresh_gpu,
    gradients_like,
)

WEIGHTS = {"a": np.linspace(-1, 1, 200).astype("f4"), "b": np.linspace(0, 1, 7)}


def change(gpu: Gpu, rate: GpuArray, value: float) -> None:
    """Write a rate on the device, in the order of the default stream."""
    gpu.driver.queue(0, lambda: rate.memory.__setitem__((), value))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("maker", OPTIMIZERS)
def test_a_step_takes_the_value_of_its_time(gpu: Gpu, maker: str, dtype: str) -> None:
    rate, decay = gpu.array(np.zeros((), dtype)), gpu.array(np.zeros((), dtype))
    on_cpu = np.zeros((), dtype), np.zeros((), dtype)
    pair = Pair(
        gpu,
        WEIGHTS,
        lambda params: OPTIMIZERS[maker](
            params,
            rate if isinstance(params["a"], GpuArray) else on_cpu[0],
            weight_decay=decay if isinstance(params["a"], GpuArray) else on_cpu[1],
        ),
    )
    random = np.random.default_rng(1)
    before = gpu.driver.waits
    for step in range(4):
        change(gpu, rate, 0.1 * step)
        change(gpu, decay, 0.01 * step)
        on_cpu[0][()], on_cpu[1][()] = 0.1 * step, 0.01 * step
        pair.step(gradients_like(WEIGHTS, random))
    assert gpu.driver.waits == before
    pair.check()
    assert pair.gpu_optimizer.get_lr() == pair.cpu.get_lr()
    assert pair.gpu_optimizer.get_weight_decay() == pair.cpu.get_weight_decay()


def test_each_group_has_its_own(gpu: Gpu) -> None:
    rate, decay = gpu.array(np.float32(0.25)), gpu.array(np.float64(0.125))

    def make(params: Any) -> Any:
        on_gpu = isinstance(params["a"], GpuArray)
        groups = [
            {"params": {"a": params["a"]}, "lr": rate if on_gpu else 0.25},
            {"params": {"b": params["b"]}, "weight_decay": decay if on_gpu else 0.125},
        ]
        return nl.Lamb(groups, lambda step: 0.5 / (step + 1))

    pair = Pair(gpu, WEIGHTS, make)
    random = np.random.default_rng(2)
    for _ in range(2):
        pair.step(gradients_like(WEIGHTS, random))
    assert pair.gpu_optimizer.get_lr() == pair.cpu.get_lr() == (0.25, 0.5 / 3)
    # Numbers travel with a state, and what lives on the device does not.
    assert pair.gpu_optimizer.state_dict()["groups"][0]["lr"] is None
    for optimizer in pair.both:
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.param_groups[1]["lr"] = rate if optimizer is pair.gpu_optimizer else 0.25
        optimizer.param_groups[1]["weight_decay"] = 0.0
    pair.step(gradients_like(WEIGHTS, random))
    pair.cpu.param_groups[1]["lr"] = pair.gpu_optimizer.param_groups[1]["lr"] = 0.25
    pair.check()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5, 1e39])
@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_a_rate_that_is_none_changes_nothing(gpu: Gpu, value: float, limit: float | None, key: str) -> None:
    """1e39 is one for float64 alone, and there is a float32 parameter."""
    rate = gpu.array(np.float64(0.25))
    pair = Pair(
        gpu, WEIGHTS, lambda params: nl.Lamb([{"params": params, key: 0.25}], 0.5, max_grad_norm=limit)
    )
    pair.gpu_optimizer.param_groups[0][key] = rate
    random = np.random.default_rng(3)
    pair.step(gradients_like(WEIGHTS, random))
    change(gpu, rate, value)
    # A gradient that is not finite is no reason to count the step as skipped: there was none to take.
    pair.gpu_optimizer.step(gpu.arrays(gradients_like(WEIGHTS, random)))
    pair.gpu_optimizer.step(gpu.arrays({"a": np.full(200, np.nan, "f4"), "b": WEIGHTS["b"]}))
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"^2 steps changed nothing: a rate in device memory was negative"
        ):
            pair.gpu_optimizer.check()
    change(gpu, rate, 0.25)
    assert (pair.gpu_optimizer.global_step, pair.gpu_optimizer.skipped_steps) == (1, 0)
    pair.step(gradients_like(WEIGHTS, random))
    pair.gpu_optimizer.param_groups[0][key] = 0.25
    pair.check()
    # A state that is loaded begins a new account.
    pair.gpu_optimizer.load_state_dict(pair.cpu.state_dict())
    pair.gpu_optimizer.check()
    pair.check(stats=False)


def test_a_rate_below_0_by_rounding_is_0_and_options_are_live(gpu: Gpu) -> None:
    rates = [gpu.array(np.float64(-1e-12)), gpu.array(np.float32(-2.96e-20))]

    def make(params: dict[str, np.ndarray]) -> nl.Lamb:
        lr, decay = rates if isinstance(params["a"], GpuArray) else (0.0, 0.0)
        return nl.Lamb(
            [{"params": {"a": params["a"]}, "lr": lr}, {"params": {"b": params["b"]}}],
            0.25,
            weight_decay=decay,
        )

    pair = Pair(gpu, WEIGHTS, make)
    random = np.random.default_rng(5)
    for _ in range(2):
        pair.step(gradients_like(WEIGHTS, random))
    assert pair.gpu_optimizer.get_lr() == pair.cpu.get_lr() == (0.0, 0.25)
    pair.gpu_optimizer.check()
    for optimizer in pair.both:
        optimizer.weight_decay, optimizer.nonfinite = 0.125, "skip"
    pair.step(gradients_like(WEIGHTS, random))
    pair.step({"a": np.full(200, np.nan, "f4"), "b": WEIGHTS["b"]})
    pair.gpu_optimizer.param_groups[0]["lr"] = 0.0
    pair.check()
    pair.gpu_optimizer.nonfinite = "raise"
    with pytest.raises(FloatingPointError, match="has 200 values"):
        pair.gpu_optimizer.step(gpu.arrays({"a": np.full(200, np.nan, "f4"), "b": WEIGHTS["b"]}))


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_raise_does_so_at_the_step(gpu: Gpu, value: float) -> None:
    rate = gpu.array(np.float32(0.25))
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Lamb(params, 0.25, max_grad_norm=1.0, nonfinite="raise"))
    pair.gpu_optimizer.learning_rate = rate
    random = np.random.default_rng(4)
    pair.step(gradients_like(WEIGHTS, random))
    change(gpu, rate, value)
    with pytest.raises(ValueError, match="a rate in device memory was negative, not finite"):
        pair.gpu_optimizer.step(gpu.arrays(gradients_like(WEIGHTS, random)))
    with pytest.raises(ValueError, match="learning_rate at step 1 must be a number >= 0 and finite"):
        pair.gpu_optimizer.get_lr()
    change(gpu, rate, 0.25)
    pair.gpu_optimizer.check()
    pair.step(gradients_like(WEIGHTS, random))
    pair.gpu_optimizer.learning_rate = 0.25
    pair.check()


def test_a_captured_step_reads_it_at_each_replay(gpu: Gpu) -> None:
    rate = gpu.array(np.float32(0.5))
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Momentum(params, 0.5, 0.9))
    pair.gpu_optimizer.learning_rate = rate
    gradients = gpu.arrays(WEIGHTS)
    stream = gpu.driver.stream()
    gpu.driver.begin_capture(stream)
    pair.gpu_optimizer.step(gradients, stream)
    graph = gpu.driver.end_capture(stream)
    for value in (0.5, 0.125, 2.0):
        change(gpu, rate, value)
        gpu.driver.progress()
        gpu.driver.replay(graph, stream)
        gpu.driver.progress()
        pair.cpu.learning_rate = value
        pair.cpu.step(WEIGHTS)
    pair.gpu_optimizer.learning_rate = 2.0
    pair.check()


def test_all_refusals_of_a_step_are_told(gpu: Gpu) -> None:
    """Layers of one block refuse the same step, each for a reason of its own."""
    decay = gpu.array(np.float32(0.25))
    groups = [{"params": gpu.arrays({"a": WEIGHTS["a"]})}, {"params": gpu.arrays({"b": WEIGHTS["a"]})}]
    groups[0]["weight_decay"], groups[1]["lr"] = decay, rate_of
    optimizer = nl.Momentum(groups, 0.5, 0.9, capture_steps=1)
    gradients = gpu.arrays({"a": WEIGHTS["a"], "b": WEIGHTS["a"]})
    stream = gpu.driver.stream()
    gpu.driver.begin_capture(stream)
    optimizer.step(gradients, stream)
    graph = gpu.driver.end_capture(stream)
    gpu.driver.replay(graph, stream)
    optimizer.check()
    change(gpu, decay, -1.0)
    gpu.driver.replay(graph, stream)
    message = r"^1 steps changed nothing: .*past capture_steps.* and a rate in device memory was negative"
    with pytest.raises(RuntimeError, match=message):
        optimizer.check()
    optimizer.nonfinite = "raise"
    with pytest.raises(ValueError, match=r"past capture_steps.* and a rate in device memory was negative"):
        optimizer.step(gradients)


def rate_of(step: int) -> float:
    return 0.5 / (step + 1)


REFUSED: dict[str, tuple[Callable[[Gpu], Any], type[Exception], str]] = {
    "half": (lambda gpu: gpu.array(np.float16(0.1)), TypeError, "must be float32 or float64, not float16"),
    "int": (lambda gpu: gpu.array(np.int32(1)), TypeError, "must be float32 or float64, not int32"),
    "big-endian": (
        lambda gpu: gpu.array(np.array(0.1, ">f4")),
        TypeError,
        "must be float32 or float64, not >f4",
    ),
    "other GPU": (
        lambda gpu: gpu.array(np.float32(0.1), device=1),
        ValueError,
        "must be on GPU 0.*not on GPU 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_what_cannot_be_a_rate_is_refused(case: str, name: str) -> None:
    with fresh_gpu(devices=2) as gpu:
        rate, error, message = REFUSED[case][0](gpu), *REFUSED[case][1:]
        params = gpu.arrays(WEIGHTS)

        def make_and_step() -> None:
            # Where a rate lies is known to matter when it meets the parameters.
            nl.Lamb(params, **{"learning_rate": 0.1, name: rate}).step(gpu.arrays(WEIGHTS))

        with pytest.raises(error, match=f"{name}.* {message}"):
            make_and_step()
        optimizer = nl.Lamb(params, 0.1)
        key = {"learning_rate": "lr"}.get(name, name)
        optimizer.param_groups[0][key] = rate
        with pytest.raises(error, match=message):
            optimizer.step(gpu.arrays(WEIGHTS))
        assert gpu.driver.contexts == [0]
        assert_same({name: array.get() for name, array in params.items()}, WEIGHTS)


def test_arrays_on_the_cpu_may_have_one_too(gpu: Gpu) -> None:
    """It is read at the step then, which waits for the GPU."""
    rate = gpu.array(np.float32(0.25))
    weights = [np.ones(3), np.ones(3)]
    given, expected = nl.Momentum([weights[0]], rate, 0.9), nl.Momentum([weights[1]], 0.25, 0.9)
    for optimizer in (given, expected):
        optimizer.step([np.ones(3)])
    change(gpu, rate, 0.5)
    expected.learning_rate = 0.5
    for optimizer in (given, expected):
        optimizer.step([np.ones(3)])
    assert_same(weights[0], weights[1])
    assert given.get_lr() == 0.5
