"""What another library's optimizer asks of a GPU: state and steps of its own, a loss scaler; and nothing more."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.engine.interface import Groups
from numba_lamb.kernels import columns
from tests.cuda.double import OPTIMIZERS, Gpu, GpuArray, Pair, assert_same, gradients_like
from tests.cuda.test_graphs import Captured, Static
from tests.cuda.test_waiting import waits

SHAPES = {"a": ((5000,), "f4"), "b": ((130,), "f8"), "c": ((3, 7), "f4"), "d": ((5,), "f8")}


def weights_of(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: random.standard_normal(shape).astype(dtype) for name, (shape, dtype) in SHAPES.items()}


# -- state and steps that somebody else owns -----------------------------------------------------------------


class Owner:
    """Holds the state of an optimizer that has none: buffers by layer, on the GPU also the steps."""

    def __init__(self, base: type, gpu: Gpu | None) -> None:
        self.gpu = gpu
        self.buffers: dict[tuple[str, int], Any] = {}
        self.steps: dict[np.dtype[Any], GpuArray] = {}
        write_columns: Callable[[Any, Any], Any] = base._write_columns  # type: ignore[attr-defined]

        def write(optimizer: Any, parts: Any) -> Any:
            options = write_columns(optimizer, parts)
            for part in parts:
                self.lend(part)
            return options

        stateless = property(lambda optimizer: replace(optimizer._groups.method, numpy_state=()))
        self.made: Any = type(base.__name__, (base,), {"_write_columns": write, "_method": stateless})

    def lend(self, part: Any) -> None:
        for column in (columns.EXP_AVG, columns.EXP_AVG_SQ):
            for row, layer in enumerate(part.layers):
                zeros = np.zeros(layer.shape, layer.dtype)
                if (layer.name, column) not in self.buffers:
                    self.buffers[layer.name, column] = zeros if self.gpu is None else self.gpu.array(zeros)
                buffer = self.buffers[layer.name, column]
                part.addresses[row, column] = buffer.ctypes.data if self.gpu is None else buffer.address
        if self.gpu is not None:
            if part.dtype not in self.steps:
                self.steps[part.dtype] = self.gpu.array(np.zeros(len(part.layers), "f4"))
            part.use_steps(self.steps[part.dtype].address)

    def values(self) -> list[np.ndarray]:
        return [buffer if self.gpu is None else buffer.get() for buffer in self.buffers.values()]


class OwnedPair(Pair):
    """A pair whose state is owned by somebody else on each side."""

    def __init__(self, gpu: Gpu, weights: Any, base: type, **options: Any) -> None:
        self.owners = [Owner(base, None), Owner(base, gpu)]
        owners = iter(self.owners)
        super().__init__(gpu, weights, lambda params: next(owners).made(params, 0.1, **options))

    def check(self, stats: bool = True) -> None:
        super().check(stats)
        on_cpu, on_gpu = self.owners
        assert_same(on_gpu.values(), on_cpu.values())
        for part in self.cpu._buckets:
            assert on_gpu.steps[part.dtype].get().tolist() == part.steps.tolist()


BASES: dict[str, tuple[type, dict[str, Any]]] = {
    "Lamb": (nl.Lamb, {}),
    "Momentum": (nl.Momentum, {"momentum": 0.9}),
}


@pytest.mark.parametrize("base", BASES)
def test_state_and_steps_may_be_somebody_elses(gpu: Gpu, base: str) -> None:
    """Layers have steps of their own, because gradients are missing."""
    random = np.random.default_rng(1)
    kind, options = BASES[base]
    pair = OwnedPair(gpu, weights_of(random), kind, nonfinite="skip", max_grad_norm=5.0, **options)
    for step in range(5):
        gradients: dict[str, Any] = gradients_like(pair.on_cpu, random)
        gradients["c"] = gradients["c"] if step % 2 else None
        gradients["d"] = gradients["d"] if step == 4 else None
        if step == 3:
            gradients["a"][7] = np.nan
        pair.step(gradients)
    pair.check()
    assert [array.get().tolist() for array in pair.owners[1].steps.values()] == [[4, 1], [4, 1]]


def test_steps_of_somebody_else_go_into_a_state_and_come_out_of_one(gpu: Gpu) -> None:
    random = np.random.default_rng(2)
    pair = OwnedPair(gpu, weights_of(random), nl.Lamb)
    pair.step({**gradients_like(pair.on_cpu, random), "a": None})
    state = pair.gpu_optimizer.state_dict()
    assert [layer["step"] for layer in state["layers"].values()] == [0, 1, 1, 1]
    pair.step(gradients_like(pair.on_cpu, random))
    for optimizer in pair.both:
        optimizer.load_state_dict(state)
    pair.step(gradients_like(pair.on_cpu, random))
    pair.check()
    assert pair.owners[1].steps[np.dtype("f4")].get().tolist() == [1, 2]


def test_steps_that_somebody_else_writes_are_taken_up(gpu: Gpu) -> None:
    """What is in the table counts; and with 0 the part's own table does, which nobody counted in."""
    random = np.random.default_rng(3)
    pair = OwnedPair(gpu, weights_of(random), nl.Lamb)
    pair.step(gradients_like(pair.on_cpu, random))
    gpu.driver.progress()
    for part in pair.cpu._buckets:
        part.steps[:] = [40, 7]
        part.use_steps(part.steps)
        pair.owners[1].steps[part.dtype].memory[:] = [40, 7]
    pair.step(gradients_like(pair.on_cpu, random))
    pair.check()
    for mine, other in zip(pair.cpu._buckets, pair.gpu_optimizer._buckets, strict=True):
        mine.steps[:] = 0
        mine.use_steps(mine.steps)
        other.use_steps(0)
    pair.step(gradients_like(pair.on_cpu, random))
    Pair.check(pair)
    assert [layer["step"] for layer in pair.gpu_optimizer.state_dict()["layers"].values()] == [1, 1, 1, 1]


# -- a loss scaler -------------------------------------------------------------------------------------------


class Scaler:
    """The two float32 values of PyTorch's GradScaler on the GPU, and the scale in the CPU's optimizer."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.scale = pair.gpu.array(np.ones((), "f4"))
        self.found = pair.gpu.array(np.zeros((), "f4"))
        plan = pair.gpu_optimizer._plan
        plan.grad_scale, plan.found_inf = self.scale.address, self.found.address

    def set(self, scale: float, found: float = 0.0) -> None:
        self.pair.gpu.driver.progress()
        self.scale.memory[...] = scale
        self.found.memory[...] = found
        self.pair.cpu._plan.grad_scale = float(np.float32(scale))


SCALES = [1.0, 65536.0, 3.0, 0.1, 7.5]


@pytest.mark.parametrize("maker", OPTIMIZERS)
@pytest.mark.parametrize("limit", [None, 0.5])
def test_gradients_are_divided_by_the_scale_on_the_device(gpu: Gpu, maker: str, limit: float | None) -> None:
    random = np.random.default_rng(4)
    pair = Pair(
        gpu,
        weights_of(random),
        lambda params: OPTIMIZERS[maker](params, weight_decay=0.1, max_grad_norm=limit, nonfinite="skip"),
    )
    scaler = Scaler(pair)
    for scale in SCALES:
        scaler.set(scale)
        pair.step(gradients_like(pair.on_cpu, random))
        pair.check()
    assert ("grad_norm" in pair.gpu_optimizer.stats()) == (limit is not None)


def test_the_scale_meets_the_optimizers_own(gpu: Gpu) -> None:
    random = np.random.default_rng(5)
    pair = Pair(
        gpu,
        weights_of(random),
        lambda params: nl.Momentum(params, 0.1, 0.9, loss_scale=3.0, max_grad_norm=1.0),
    )
    scaler = Scaler(pair)
    scaler.set(7.5)
    pair.step(gradients_like(pair.on_cpu, random))
    pair.check()
    # Without a scaler the next step is as if there had never been one.
    plan = pair.gpu_optimizer._plan
    plan.grad_scale = plan.found_inf = 0
    scaler.set(1.0)
    pair.cpu.max_grad_norm = pair.gpu_optimizer.max_grad_norm = None
    pair.step(gradients_like(pair.on_cpu, random))
    pair.check()


@pytest.mark.parametrize("nonfinite", ["skip", "raise", "propagate"])
@pytest.mark.parametrize("maker", OPTIMIZERS)
def test_a_step_that_the_scaler_leaves_out_changes_nothing(gpu: Gpu, maker: str, nonfinite: str) -> None:
    """Whatever is done about gradients that are not finite, and whether they are; it is counted as skipped."""
    random = np.random.default_rng(6)
    pair = Pair(
        gpu,
        weights_of(random),
        lambda params: OPTIMIZERS[maker](params, max_grad_norm=1.0, nonfinite=nonfinite),
    )
    scaler = Scaler(pair)
    scaler.set(8.0)
    pair.step(gradients_like(pair.on_cpu, random))
    for count, (found, value) in enumerate([(1.0, 0.5), (1.0, np.inf), (2.0, 0.5)], start=1):
        before = [array.get() for array in pair.on_gpu.values()]
        scaler.set(8.0, found)
        gradients = gradients_like(pair.on_cpu, random)
        gradients["c"][1, 1] = value
        pair.gpu_optimizer.step(gpu.arrays(gradients))
        assert_same([array.get() for array in pair.on_gpu.values()], before)
        assert (pair.gpu_optimizer.global_step, pair.gpu_optimizer.skipped_steps) == (count, count)
        pair.cpu._backend.set_counters(count, count)
        scaler.set(4.0)
        pair.step(gradients_like(pair.on_cpu, random))
        pair.check()


def test_a_scaler_does_not_keep_other_gradients_from_being_refused(gpu: Gpu) -> None:
    random = np.random.default_rng(7)
    pair = Pair(gpu, weights_of(random), lambda params: nl.Momentum(params, 0.1, 0.9, nonfinite="raise"))
    scaler = Scaler(pair)
    scaler.set(2.0)
    gradients = gradients_like(pair.on_cpu, random)
    gradients["c"][0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="gradient of 'c' has 1 values"):
        pair.gpu_optimizer.step(gpu.arrays(gradients))
    pair.step(gradients_like(pair.on_cpu, random))
    pair.check()


def test_nothing_waits_for_a_scaler(gpu: Gpu) -> None:
    random = np.random.default_rng(8)
    optimizer = nl.Lamb(gpu.arrays(weights_of(random)), lambda step: 0.1 / (step + 1))
    scale, found = gpu.array(np.ones((), "f4")), gpu.array(np.ones((), "f4"))
    gradients = gpu.arrays(weights_of(random))

    def run() -> None:
        plan: Any = optimizer._plan
        for step in range(4):
            plan.grad_scale, plan.found_inf = (scale.address, found.address) if step % 2 else (0, 0)
            optimizer.step(gradients)

    assert waits(gpu, run) == 0
    assert (optimizer.global_step, optimizer.skipped_steps) == (2, 2)


def test_a_captured_step_reads_the_scaler_at_each_replay(gpu: Gpu) -> None:
    pair = Pair(
        gpu, weights_of(np.random.default_rng(9)), lambda params: nl.Lamb(params, 0.1, nonfinite="skip")
    )
    scaler, static = Scaler(pair), Static(pair, 9)
    with pytest.raises(RuntimeError, match="take one step outside of capture first"):
        Captured(pair, static.on_gpu)
    pair.step(static.on_cpu)
    captured = Captured(pair, static.on_gpu)
    for scale, found in ((2.0, 0.0), (1024.0, 0.0), (512.0, 1.0), (512.0, 0.0)):
        scaler.set(scale, found)
        static.renew()
        captured.replay()
        if not found:
            pair.cpu.step(static.on_cpu)
    gpu.driver.progress()
    assert pair.gpu_optimizer.skipped_steps == 1
    pair.cpu._backend.set_counters(4, 1)
    pair.check()


# -- what a backend reads of an optimizer --------------------------------------------------------------------


def narrowed(whole: Any, protocol: type) -> Any:
    """An object with nothing but what `protocol` names, as it is now in `whole`."""
    members = [name for name, value in vars(protocol).items() if isinstance(value, property | FunctionType)]
    names = [name for name in members if not name.startswith("__")]
    shown = {name: property(lambda self, name=name: getattr(whole, name)) for name in names}
    return type(protocol.__name__, (), shown)()


def take_step(optimizer: Any, groups: Any, gradients: Any) -> None:
    """Take a step of an optimizer with groups that stand in for its own."""
    backend = optimizer._backend
    backend.place(replace(optimizer._plan, groups=groups))
    assert backend.prepare(partial(optimizer._gradients.read, gradients))
    backend.commit()


@pytest.mark.parametrize("maker", OPTIMIZERS)
def test_a_backend_reads_of_groups_what_their_protocol_names(gpu: Gpu, maker: str) -> None:
    random = np.random.default_rng(10)
    pair = Pair(
        gpu,
        weights_of(random),
        lambda params: OPTIMIZERS[maker](params, lambda step: 0.1 / (step + 1), max_grad_norm=1.0),
    )
    for _ in range(2):
        gradients = gradients_like(pair.on_cpu, random)
        for optimizer, given in zip(pair.both, (gradients, gpu.arrays(gradients)), strict=True):
            take_step(optimizer, narrowed(optimizer._groups, Groups), given)
    pair.check()


def test_a_group_may_be_without_layers(gpu: Gpu) -> None:
    random = np.random.default_rng(11)
    pair = Pair(gpu, weights_of(random), lambda params: nl.Lamb(params, lambda step: 0.1 / (step + 1)))
    optimizer: Any = pair.gpu_optimizer

    class More:
        dicts = ({}, {})

        def rate(self, index: int, key: str) -> Any:
            return optimizer._groups.rate(0, key)

    gradients = gradients_like(pair.on_cpu, random)
    take_step(optimizer, More(), gpu.arrays(gradients))
    pair.cpu.step(gradients)
    pair.check()
