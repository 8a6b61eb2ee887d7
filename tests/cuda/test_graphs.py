"""Steps captured into graphs: a replay is a step, whatever happens between replays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import OPTIMIZERS, Gpu, Pair, assert_same, gradients_like

WEIGHTS = {
    "a": np.linspace(-1, 1, 5000).astype("f4"),
    "b": np.linspace(0, 1, 7),
    "k": np.linspace(-2, 2, 60).reshape(3, 4, 5).astype("f4"),
}


class Static:
    """Gradient arrays that stay where they are, as a graph needs, on both sides."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.on_cpu = gradients_like(pair.on_cpu, self.random)
        self.on_gpu = pair.gpu.arrays(self.on_cpu)
        self.gpu = pair.gpu

    def renew(self, value: float | None = None) -> None:
        """Fill in new values; with `value` somewhere."""
        self.gpu.driver.progress()
        for name, values in gradients_like(self.on_cpu, self.random).items():
            if value is not None and name == "b":
                values[3] = value
            self.on_cpu[name][...] = values
            self.on_gpu[name].memory[...] = values


class Captured:
    """A step in a graph."""

    def __init__(
        self, pair: Pair, gradients: Any, prepare: Callable[[int], None] = lambda stream: None
    ) -> None:
        self.driver = pair.gpu.driver
        self.stream = self.driver.stream()
        self.driver.begin_capture(self.stream)
        try:
            prepare(self.stream)
            pair.gpu_optimizer.step(gradients, self.stream)
        finally:
            self.graph = self.driver.end_capture(self.stream)

    def replay(self) -> None:
        self.driver.replay(self.graph, self.stream)


def play(pair: Pair, captured: Captured, static: Static, value: float | None = None) -> None:
    static.renew(value)
    captured.replay()
    pair.cpu.step(static.on_cpu)
    pair.gpu.driver.progress()


@pytest.mark.parametrize("maker", OPTIMIZERS)
@pytest.mark.parametrize("limit", [None, 1.0])
def test_replays_are_steps(gpu: Gpu, maker: str, limit: float | None) -> None:
    """Captured first of all: with no step taken before, and gradients that were never seen."""
    pair = Pair(
        gpu,
        WEIGHTS,
        lambda params: OPTIMIZERS[maker](
            [
                {"params": {"k": params["k"]}, "grad_centralization": True},
                {"params": [("a", params["a"]), ("b", params["b"])]},
            ],
            0.05,
            weight_decay=0.01,
            max_grad_norm=limit,
            nonfinite="skip",
        ),
    )
    static = Static(pair, 1)
    captured = Captured(pair, [static.on_gpu[name] for name in pair.cpu.params])
    pair.on_cpu = dict(pair.cpu.params)
    before = pair.gpu_optimizer.global_step
    for value in (None, None, np.nan, None):
        static.renew(value)
        captured.replay()
        pair.cpu.step(static.on_cpu)
    pair.check()
    assert before == 0
    assert (pair.gpu_optimizer.global_step, pair.gpu_optimizer.skipped_steps) == (3, 1)
    pair.gpu_optimizer.check()


RATES: dict[str, Callable[[], Any]] = {
    "callable": lambda: lambda step: 0.1 / (step + 1),
    "table": lambda: [0.1 / (step + 1) for step in range(5)],
    "generator": lambda: iter([0.1 / (step + 1) for step in range(5)]),
}


@pytest.mark.parametrize("kind", RATES)
def test_schedules_go_on_from_replay_to_replay(gpu: Gpu, kind: str) -> None:
    def make(params: Any, **options: Any) -> Any:
        decay = RATES["callable"]()
        return nl.Lamb(params, RATES[kind](), weight_decay=decay, nonfinite="skip", **options)

    pair = Pair(gpu, WEIGHTS, make)
    pair.gpu_optimizer = make(pair.on_gpu, capture_steps=5)
    static = Static(pair, 2)
    captured = Captured(pair, static.on_gpu)
    for value in (None, np.nan, None, None, np.inf, None):
        play(pair, captured, static, value)
    # Steps outside of the graph go on with the same table.
    pair.step(gradients_like(WEIGHTS, np.random.default_rng(3)))
    pair.check()
    assert pair.gpu_optimizer.global_step == 5
    # Past its end nothing changes, and that is said.
    pair.gpu_optimizer.check()
    for count in (1, 2):
        static.renew()
        captured.replay()
        pair.check()
        with pytest.raises(RuntimeError, match=rf"^{count} steps changed nothing: .*past capture_steps"):
            pair.gpu_optimizer.check()
    # A state that is loaded begins anew.
    state = make({name: array.copy() for name, array in WEIGHTS.items()}).state_dict()
    for optimizer in pair.both:
        optimizer.load_state_dict(state)
    if kind != "generator":
        play(pair, captured, static)
        pair.check()
    pair.gpu_optimizer.check()


def test_a_table_shorter_than_the_steps_to_be_captured_is_refused(gpu: Gpu) -> None:
    with pytest.raises(IndexError, match="learning_rate is a table of 5 values and has none for step 5"):
        nl.Lamb(gpu.arrays(WEIGHTS), [0.1] * 5, capture_steps=6)


@pytest.mark.parametrize("case", ["schedule", "raise", "clip", "centralization", "new schedule"])
def test_what_cannot_be_captured_is_said_and_queues_nothing(gpu: Gpu, case: str) -> None:
    weights = {"k": WEIGHTS["k"]}
    options: dict[str, Any] = {"nonfinite": "raise"} if case == "raise" else {}
    if case == "new schedule":
        options["capture_steps"] = 9
    rate: Any = (lambda step: 0.1) if case in ("schedule", "new schedule") else 0.1
    pair = Pair(gpu, weights, lambda params: nl.Momentum([{"params": params}], rate, 0.9))
    optimizer = pair.gpu_optimizer = nl.Momentum([{"params": pair.on_gpu}], rate, 0.9, **options)
    if case == "raise":
        pair.cpu.nonfinite = "raise"
    if case == "clip":
        optimizer.max_grad_norm = pair.cpu.max_grad_norm = 1.0
    if case == "centralization":
        for one in pair.both:
            one.param_groups[0]["grad_centralization"] = True
    if case == "new schedule":
        optimizer.learning_rate = pair.cpu.learning_rate = lambda step: 0.2
    static = Static(pair, 3)
    gpu.driver.progress()
    launched = len(gpu.driver.launches)
    message = {
        "schedule": "give the optimizer capture_steps",
        "raise": 'nonfinite="raise" waits',
        "clip": "max_grad_norm.*one step outside of capture",
        "centralization": "'grad_centralization'.*one step outside of capture",
        "new schedule": "one step outside of capture",
    }[case]
    # That the capture was not spoiled is checked where it ends.
    with pytest.raises(RuntimeError, match=message):
        Captured(pair, static.on_gpu)
    assert len(gpu.driver.launches) == launched
    assert gpu.driver.contexts == [0]
    for _ in range(2):
        optimizer.step(static.on_gpu)
        pair.cpu.step(static.on_cpu)
    pair.check()
    if case not in ("schedule", "raise"):
        captured = Captured(pair, static.on_gpu)
        play(pair, captured, static)
        pair.check()


def test_steps_between_replays_do_not_disturb_them(gpu: Gpu) -> None:
    """Nor do replays the steps: each has its own gradients, rate and limit, wherever the device's tables stand."""
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Lamb(params, 0.05, max_grad_norm=1.0))
    eager, first, second = (Static(pair, seed) for seed in (4, 5, 6))

    def step() -> None:
        pair.gpu_optimizer.step(eager.on_gpu)
        pair.cpu.step(eager.on_cpu)

    step()
    one = Captured(pair, first.on_gpu)
    # The same as was captured, and as was sent before: neither is on the device for certain.
    step()
    play(pair, one, first)
    step()
    for optimizer in pair.both:
        optimizer.learning_rate = 0.2
        optimizer.max_grad_norm = 3.0
    two = Captured(pair, second.on_gpu)
    three = Captured(pair, {**second.on_gpu, "a": None})
    pair.check()

    def replay_one() -> None:
        # The graph keeps the rate and limit that it was captured with.
        pair.cpu.learning_rate, pair.cpu.max_grad_norm = 0.05, 1.0
        play(pair, one, first)
        pair.cpu.learning_rate, pair.cpu.max_grad_norm = 0.2, 3.0

    step()
    replay_one()
    step()
    play(pair, two, second)
    replay_one()
    static = {**second.on_cpu, "a": None}
    three.replay()
    pair.cpu.step(static)
    gpu.driver.progress()
    step()
    pair.check()
    pair.gpu_optimizer.check()
    assert pair.gpu_optimizer.global_step == 11


def test_a_capture_leaves_alone_what_is_still_queued(gpu: Gpu) -> None:
    """Steps that have not run when others are captured keep the tables that they were queued with."""
    random = np.random.default_rng(7)
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Momentum(params, 0.05, 0.9))
    static = Static(pair, 8)
    for _ in range(3):
        pair.step(gradients_like(WEIGHTS, random))
    captured = [Captured(pair, {**static.on_gpu, "b": None}) for _ in range(12)]
    pair.step(gradients_like(WEIGHTS, random))
    pair.check()
    captured[5].replay()
    pair.cpu.step({**static.on_cpu, "b": None})
    pair.check()


def test_statistics_of_replays(gpu: Gpu) -> None:
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Lamb(params, 0.05, max_grad_norm=1.0))
    static = Static(pair, 9)
    captured = Captured(pair, static.on_gpu)
    assert dict(pair.gpu_optimizer.stats()) == {}
    for _ in range(2):
        static.renew()
        captured.replay()
        pair.cpu.step(static.on_cpu)
        assert_same(dict(pair.gpu_optimizer.stats()), dict(pair.cpu.stats()))


def test_statistics_cannot_be_captured(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = nl.Lamb(gpu.arrays(WEIGHTS), 0.05)
    stream = gpu.driver.stream()
    monkeypatch.setattr("numba_lamb.memory.device.current_stream", lambda library, index: stream)
    gpu.driver.begin_capture(stream)
    with pytest.raises(RuntimeError, match="cannot be captured"):
        optimizer.stats()
    assert gpu.driver.end_capture(stream) == []


def test_memory_that_goes_during_a_capture_does_not_spoil_it(gpu: Gpu) -> None:
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Lamb(params, 0.05))
    other: list[Any] = [nl.Lamb(gpu.arrays(WEIGHTS), 0.1)]
    other[0].step(gpu.arrays(WEIGHTS))
    gpu.driver.progress()
    static = Static(pair, 10)
    owned = len(gpu.driver.owners)
    captured = Captured(pair, static.on_gpu, lambda stream: other.clear())
    assert len(gpu.driver.owners) == owned
    play(pair, captured, static)
    pair.check()
    assert len(gpu.driver.owners) < owned


@pytest.mark.parametrize("change", ["group", "Lars"])
def test_a_graph_from_before_a_change_is_refused(gpu: Gpu, change: str) -> None:
    """It would update moments that are used no more; its memory stays, so that nothing else is harmed."""
    pair = Pair(gpu, {"a": WEIGHTS["a"]}, lambda params: nl.Momentum(params, 0.05, 0.9))
    static = Static(pair, 11)
    captured = Captured(pair, static.on_gpu)
    play(pair, captured, static)
    if change == "group":
        more = np.ones(5)
        pair.cpu.add_param_group({"params": [("m", more)]})
        pair.on_cpu["m"], pair.on_gpu["m"] = more, gpu.array(more)
        pair.gpu_optimizer.add_param_group({"params": [("m", pair.on_gpu["m"])]})
    else:
        pair.cpu, pair.gpu_optimizer = nl.Lars(pair.cpu), nl.Lars(pair.gpu_optimizer)
    pair.gpu_optimizer.check()
    static.renew()
    captured.replay()
    pair.check()
    with pytest.raises(RuntimeError, match=r"1 steps changed nothing: a graph .* captured before"):
        pair.gpu_optimizer.check()
    static = Static(pair, 12)
    captured = Captured(pair, static.on_gpu)
    play(pair, captured, static)
    pair.check()


def test_gradients_of_a_graph_may_come_from_its_other_branches(gpu: Gpu) -> None:
    """They are waited for if they are in the graph; what is made outside of it is there before a replay."""
    driver = gpu.driver
    pair = Pair(
        gpu, {"a": np.ones(4, "f4"), "b": np.ones(3, "f4")}, lambda params: nl.Momentum(params, 0.1, 0.9)
    )
    inside, outside = driver.stream(), driver.stream()
    gradients = {
        "a": gpu.array(np.full(4, np.nan, "f4"), stream=inside),
        "b": gpu.array(np.full(3, 0.5, "f4"), stream=outside),
    }

    def fork(stream: int) -> None:
        _, event = driver.cuEventCreate(0)
        driver.cuEventRecord(event, stream)
        driver.cuStreamWaitEvent(inside, event, 0)
        driver.queue(inside, lambda: gradients["a"].memory.fill(0.25))

    with_context = driver.contexts
    with_context.append(1)
    captured = Captured(pair, gradients, fork)
    with_context.pop()
    captured.replay()
    pair.cpu.step({"a": np.full(4, 0.25, "f4"), "b": np.full(3, 0.5, "f4")})
    pair.check()


def test_rates_may_change_again_after_a_capture(gpu: Gpu) -> None:
    """Without capture_steps too: schedules of later steps begin where replays have brought the count."""
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Lamb(params, 0.05))
    static = Static(pair, 13)
    captured = Captured(pair, static.on_gpu)
    for _ in range(3):
        play(pair, captured, static)
    for optimizer in pair.both:
        optimizer.learning_rate = [0.1 / (step + 1) for step in range(6)]
    pair.step(gradients_like(WEIGHTS, static.random))
    pair.cpu.learning_rate = 0.05
    play(pair, captured, static)
    pair.cpu.learning_rate = pair.gpu_optimizer.learning_rate
    pair.step(gradients_like(WEIGHTS, static.random))
    pair.check()
    with pytest.raises(IndexError, match="none for step 6"):
        pair.gpu_optimizer.step(static.on_gpu)


def test_a_group_whose_rates_cannot_be_tabulated_is_refused(gpu: Gpu) -> None:
    """Before anything has changed."""
    pair = Pair(
        gpu, {"a": WEIGHTS["a"]}, lambda params: nl.Momentum(params, lambda step: 0.5 / (step + 1), 0.9)
    )
    optimizer = nl.Momentum(pair.on_gpu, lambda step: 0.5 / (step + 1), 0.9, capture_steps=4)
    pair.gpu_optimizer = optimizer
    pair.step({"a": WEIGHTS["a"]})
    for key in ("lr", "weight_decay"):
        with pytest.raises(IndexError, match=f"{key}.*3 values and has none for step 3"):
            optimizer.add_param_group({"params": [("b", gpu.array(np.ones(3)))], key: [0.1, 0.2, 0.3]})
    assert [layer.name for layer in optimizer.layout.layers] == ["a"]
    pair.step({"a": WEIGHTS["a"]})
    pair.check()
