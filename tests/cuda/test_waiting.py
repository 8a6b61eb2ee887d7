"""Nothing waits for a GPU but what reads its results; and nothing that a queued step reads is written over."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.kernels.cuda import fields
from tests.cuda.double import Gpu, Pair, assert_same, gradients_like


class Model:
    """In place of kernels: what a step does to the counters, and a note of the rate that it took.

    Steps in `skipped`, by the order they were queued in, have a gradient that is not finite.
    """

    def __init__(self, gpu: Gpu, skipped: Callable[[int], bool] = lambda k: False) -> None:
        self.driver = gpu.driver
        self.skipped = skipped
        self.taken = 0
        self.rates: list[float] = []
        self.decays: list[float] = []
        gpu.driver.perform = self.perform

    def longs(self, address: int, count: int) -> np.ndarray:
        return self.driver._bytes(int(address), 8 * count).view(np.int64)

    def perform(self, name: str, arguments: list[int]) -> None:
        args = self.longs(arguments[0], fields.FIELDS)
        control = self.longs(args[fields.CONTROL], fields.CONTROLS)
        if name == "open_step":
            assert args[fields.GENERATION] == control[fields.CURRENT]
            rate, decay = (self.value(args, control, quantity) for quantity in range(fields.QUANTITIES))
            if not self.skipped(self.taken):
                self.rates.append(rate)
                self.decays.append(decay)
        if name.endswith(("_descend", "_update")):
            control[fields.SKIPPED if self.skipped(self.taken) else fields.APPLIED] += 1
            self.taken += 1

    def value(self, args: np.ndarray, control: np.ndarray, quantity: int) -> float:
        source, payload = self.longs(args[fields.GROUPS] + 16 * quantity, fields.SOURCE_FIELDS)
        if source == fields.NUMBER:
            return float(payload.view(np.float64))
        step = control[fields.APPLIED] % args[fields.TABLE_STEPS]
        row = self.longs(args[fields.RATE_TABLE] + 16 * step, fields.QUANTITIES).view(np.float64)
        return float(row[quantity])


def waits(gpu: Gpu, work: Callable[[], Any]) -> int:
    before = gpu.driver.waits
    work()
    return gpu.driver.waits - before


RATES: dict[str, Callable[[], Any]] = {
    "number": lambda: 0.1,
    "callable": lambda: lambda step: 0.1 / (step + 1),
    "table": lambda: [0.1 / (step + 1) for step in range(4000)],
    "generator": lambda: iter([0.1 / (step + 1) for step in range(4000)]),
}


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("limit", [None, 1.0])
def test_steps_are_queued_without_waiting(gpu: Gpu, kind: str, nonfinite: str, limit: float | None) -> None:
    """The GPU does not get on with anything, and a new gradient array comes with each step."""
    model = Model(gpu)
    optimizer = nl.Momentum(
        gpu.arrays({"w": np.ones(5)}), RATES[kind](), 0.9, max_grad_norm=limit, nonfinite=nonfinite
    )
    gradients = [gpu.arrays({"w": np.ones(5)}) for _ in range(3)]
    assert waits(gpu, lambda: [optimizer.step(gradients[k % 3]) for k in range(400)]) == 0
    assert model.taken == 0
    assert waits(gpu, lambda: optimizer.global_step) == 1
    assert model.rates == [0.1 if kind == "number" else 0.1 / (step + 1) for step in range(400)]


@pytest.mark.parametrize("kind", RATES)
def test_no_wait_ever_on_a_gpu_that_gets_on(gpu: Gpu, kind: str) -> None:
    model = Model(gpu, skipped=lambda k: k % 3 == 1)
    optimizer = nl.Momentum(gpu.arrays({"w": np.ones(5)}), RATES[kind](), 0.9)
    gradients = gpu.arrays({"w": np.ones(5)})

    def run() -> None:
        for step in range(3000):
            optimizer.step(gradients)
            if step % 100 == 99:
                gpu.driver.progress()

    assert waits(gpu, run) == 0
    assert optimizer.global_step == 2000
    assert model.rates == [0.1 if kind == "number" else 0.1 / (step + 1) for step in range(2000)]


@pytest.mark.parametrize("all_skipped", [False, True])
def test_the_window_of_rates_holds_however_far_the_gpu_is_behind(gpu: Gpu, all_skipped: bool) -> None:
    """Only where hundreds of steps are in doubt does the host wait, and then for the older ones of them."""
    model = Model(gpu, skipped=lambda k: all_skipped and k < 2000)
    optimizer = nl.Momentum(gpu.arrays({"w": np.ones(5)}), RATES["callable"](), 0.9)
    gradients = gpu.arrays({"w": np.ones(5)})
    assert waits(gpu, lambda: [optimizer.step(gradients) for _ in range(512)]) == 0
    assert (
        1 <= waits(gpu, lambda: [optimizer.step(gradients) for _ in range(2000)]) <= 16 + 2000 * all_skipped
    )
    assert model.taken < 2512
    applied = 512 if all_skipped else 2512
    assert optimizer.global_step == applied
    assert model.rates == [0.1 / (step + 1) for step in range(applied)]


def test_rates_in_use_are_not_written_over(gpu: Gpu) -> None:
    """Steps that are queued keep the rates that they were queued with, whatever is assigned after them."""
    model = Model(gpu)
    optimizer = nl.Momentum(gpu.arrays({"w": np.ones(5)}), 1.0, 0.9, 0.0)
    gradients = gpu.arrays({"w": np.ones(5)})
    expected: list[tuple[float, float]] = []

    def run() -> None:
        for step in range(60):
            kind = step // 20
            if step % 20 == 0:
                optimizer.learning_rate = [2.0, lambda step: 100.0 + step, lambda step: 200.0 + step][kind]
            if kind == 0:
                optimizer.learning_rate = float(step)
            optimizer.param_groups[0]["weight_decay"] = [lambda s: 7.0 + s, 3.0][step % 7 == 0]
            optimizer.step(gradients)
            rate = [float(step), 100.0 + step, 200.0 + step][kind]
            expected.append((rate, 3.0 if step % 7 == 0 else 7.0 + step))

    assert waits(gpu, run) == 0
    assert optimizer.global_step == 60
    assert list(zip(model.rates, model.decays, strict=True)) == expected


def test_tables_are_not_written_over_before_they_were_copied(gpu: Gpu) -> None:
    """Each step has gradients, rates and options of its own, and all run only after the last was queued."""
    random = np.random.default_rng(1)
    weights = {"a": np.ones(6, "f4"), "b": np.ones((2, 2, 3)), "c": np.ones(3, "f4")}

    def make(params: dict[str, Any]) -> Any:
        groups = [{"params": {"b": params.pop("b")}}, {"params": params}]
        return nl.Momentum(groups, lambda step: 0.5 / (step + 1), 0.9)

    pair = Pair(gpu, weights, lambda params: make(dict(params)))
    waited = 0
    for step in range(24):
        for optimizer in pair.both:
            optimizer.param_groups[0]["weight_decay"] = step * 0.01
            optimizer.param_groups[1]["lr"] = [0.1, lambda step: 0.3 / (step + 2), 0.2][step % 3]
            optimizer.max_grad_norm = [None, 0.1, 10.0, 0.2][step % 4]
        gradients: dict[str, Any] = gradients_like(weights, random)
        gradients["a"] = None if step % 5 == 1 else gradients["a"]
        waited += waits(gpu, lambda gradients=gradients: pair.step({"b": None, "c": None, **gradients}))
    assert waited == 0
    pair.check()


READERS: dict[str, Callable[[Any], Any]] = {
    "global_step": lambda optimizer: optimizer.global_step,
    "skipped_steps": lambda optimizer: optimizer.skipped_steps,
    "state_dict": lambda optimizer: optimizer.state_dict(),
    "check": lambda optimizer: optimizer.check(),
    "stats": lambda optimizer: optimizer.stats()["trust_ratio/w"],
    "len of stats": lambda optimizer: len(optimizer.stats()),
    "get_lr": lambda optimizer: optimizer.get_lr(),
}


@pytest.mark.parametrize("read", READERS)
def test_what_reads_results_waits_for_them(gpu: Gpu, read: str) -> None:
    optimizer = nl.Momentum(gpu.arrays({"w": np.ones(5)}), 0.1, 0.9)
    optimizer.step(gpu.arrays({"w": np.ones(5)}))
    assert waits(gpu, lambda: READERS[read](optimizer)) >= 1
    assert optimizer.global_step == 1


def test_statistics_are_those_of_their_time(gpu: Gpu) -> None:
    random = np.random.default_rng(2)
    weights = {"a": random.standard_normal(300).astype("f4"), "b": random.standard_normal(5)}
    pair = Pair(gpu, weights, lambda params: nl.Lamb(params, 0.5, max_grad_norm=0.1))
    on_cpu, on_gpu = [], []

    def run() -> None:
        for step in range(4):
            gradients: dict[str, Any] = gradients_like(weights, random)
            pair.step({**gradients, "b": None} if step == 0 else gradients)
            on_cpu.append(pair.cpu.stats())
            on_gpu.append(pair.gpu_optimizer.stats())

    assert waits(gpu, run) == 0
    pair.gpu_optimizer.add_param_group({"params": gpu.arrays({"c": np.ones(3, "f4")})})
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        assert_same(dict(found), dict(expected))
        assert repr(found) == repr(dict(found))
        assert found == expected
        assert len(found) == len(expected)
    assert "trust_ratio/b" not in on_gpu[0]


def test_statistics_outlive_what_they_are_of(gpu: Gpu) -> None:
    optimizer: Any = nl.Momentum(gpu.arrays({"w": np.ones(5)}), 0.1, 0.9)
    optimizer.step(gpu.arrays({"w": np.ones(5)}))
    stats = optimizer.stats()
    nl.Lars(optimizer)
    del optimizer
    assert dict(stats) == {"trust_ratio/w": 1.0}


def test_dropped_statistics_leave_their_memory_to_later_ones(gpu: Gpu) -> None:
    optimizer = nl.Momentum(gpu.arrays({"w": np.ones(5)}), 0.1, 0.9)
    gradients = gpu.arrays({"w": np.ones(5)})
    for _ in range(3):
        optimizer.step(gradients)
        optimizer.stats()
    pinned = len(gpu.driver.host)
    for _ in range(10):
        gpu.driver.progress()
        optimizer.stats()
    assert len(gpu.driver.host) == pinned
