"""Which stream a step goes to, what it waits for there, and what is kept until it has run."""

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.memory import device_reader
from tests.cuda.double import Gpu, GpuArray, Pair, gradients_like

STREAMS: dict[str, Callable[[int], Any]] = {
    "int": lambda address: address,
    "protocol method": lambda address: SimpleNamespace(__cuda_stream__=lambda: (0, address)),
    "protocol value": lambda address: SimpleNamespace(__cuda_stream__=(0, address)),
    "PyTorch": lambda address: SimpleNamespace(cuda_stream=address),
    "CuPy": lambda address: SimpleNamespace(ptr=address),
    "Numba": lambda address: SimpleNamespace(handle=ctypes.c_void_p(address)),
}
WEIGHTS = {"a": np.linspace(-1, 1, 300).astype("f4"), "b": np.ones(3)}


def make(params: Any) -> Any:
    return nl.Lamb(params, lambda step: 0.1 / (step + 1), max_grad_norm=1.0, weight_decay=0.1)


def pending(gpu: Gpu, stream: int) -> bool:
    return gpu.driver.queues[stream].done < len(gpu.driver.queues[stream].work)


@pytest.mark.parametrize("kind", STREAMS)
def test_a_step_goes_to_the_stream_that_is_named(gpu: Gpu, kind: str) -> None:
    random = np.random.default_rng(1)
    pair = Pair(gpu, WEIGHTS, make)
    address = gpu.driver.stream()
    for _ in range(3):
        pair.step(gradients_like(WEIGHTS, random), STREAMS[kind](address))
    assert pending(gpu, address)
    assert not pending(gpu, 0)
    gpu.driver.queues[address].run()
    assert pair.on_gpu["a"].memory.tobytes() == pair.on_cpu["a"].tobytes()
    pair.check()


@pytest.mark.parametrize("stream", [0, 1, SimpleNamespace(handle=ctypes.c_void_p(0)), SimpleNamespace(ptr=1)])
def test_the_default_stream_has_several_names(gpu: Gpu, stream: Any) -> None:
    pair = Pair(gpu, WEIGHTS, make)
    pair.step(gradients_like(WEIGHTS, np.random.default_rng(2)), stream)
    assert pending(gpu, 0)
    pair.check()


@pytest.mark.parametrize(
    ("stream", "error"),
    [(True, TypeError), ("main", TypeError), (1.0, TypeError), (object(), TypeError), (-1, ValueError)],
)
def test_what_is_no_stream_is_refused(gpu: Gpu, stream: Any, error: type[Exception]) -> None:
    pair = Pair(gpu, WEIGHTS, make)
    launched = len(gpu.driver.launches)
    with pytest.raises(error, match="stream must be"):
        pair.gpu_optimizer.step(gpu.arrays(WEIGHTS), stream)
    assert len(gpu.driver.launches) == launched
    pair.check()


def test_all_is_in_place_before_a_first_step_on_any_stream(gpu: Gpu) -> None:
    """A non-blocking stream does not wait for what construction left on the default stream."""
    pair = Pair(gpu, WEIGHTS, make)
    assert not pending(gpu, 0)
    stream = gpu.driver.stream()
    pair.step(WEIGHTS, stream)
    gpu.driver.queues[stream].run()
    assert pair.on_gpu["a"].memory.tobytes() == pair.on_cpu["a"].tobytes()


def test_options_that_change_are_in_place_before_the_next_step(gpu: Gpu) -> None:
    weights = {"k": np.random.default_rng(3).standard_normal((3, 3, 5)).astype("f4")}
    pair = Pair(gpu, weights, lambda params: nl.Lars(nl.Momentum([{"params": params}], 0.1, 0.9)))
    stream = gpu.driver.stream()
    for centralized in (True, False, True, True):
        for optimizer in pair.both:
            optimizer.param_groups[0]["grad_centralization"] = centralized
        pair.step(gradients_like(weights, np.random.default_rng(4)), stream)
        gpu.driver.queues[stream].run()
        assert pair.on_gpu["k"].memory.tobytes() == pair.on_cpu["k"].tobytes()


def test_a_step_follows_the_one_before_it_on_another_stream(gpu: Gpu) -> None:
    random = np.random.default_rng(5)
    pair = Pair(gpu, WEIGHTS, make)
    streams = [gpu.driver.stream(), 0, gpu.driver.stream(), gpu.driver.stream()]
    for step in range(8):
        pair.step(gradients_like(WEIGHTS, random), streams[step % 4])
    # The last one alone runs, and all the others for it.
    gpu.driver.queues[streams[3]].run()
    assert pair.on_gpu["a"].memory.tobytes() == pair.on_cpu["a"].tobytes()
    pair.check()


def test_a_stream_may_end_before_the_optimizer(gpu: Gpu) -> None:
    random = np.random.default_rng(6)
    pair = Pair(gpu, WEIGHTS, make)
    for _ in range(3):
        stream = gpu.driver.stream()
        pair.step(gradients_like(WEIGHTS, random), stream)
        gpu.driver.destroy(stream)
        pair.gpu_optimizer.stats()
    pair.check()


def test_statistics_follow_the_step_and_the_next_step_follows_them(gpu: Gpu) -> None:
    random = np.random.default_rng(7)
    pair = Pair(gpu, WEIGHTS, make)
    pair.step(gradients_like(WEIGHTS, random), gpu.driver.stream())
    expected = dict(pair.cpu.stats())
    found = pair.gpu_optimizer.stats()
    last = gpu.driver.stream()
    pair.step(gradients_like(WEIGHTS, random), last)
    gpu.driver.queues[last].run()
    assert dict(found) == expected


# -- gradients made on other streams -------------------------------------------------------------------------


class Late:
    """A gradient array that is written on a stream of its own, which nobody waits for by itself."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...]) -> None:
        self.stream = gpu.driver.stream()
        self.array = gpu.array(np.full(shape, np.nan, "f4"), stream=self.stream)
        self.gpu = gpu

    def write(self, values: np.ndarray, stream: int | None = None) -> None:
        self.array.stream = stream = stream or self.stream
        self.gpu.driver.queue(stream, lambda: self.array.memory.__setitem__(..., values))


@pytest.mark.parametrize("explicit", [False, True])
def test_a_step_waits_for_the_streams_that_its_gradients_name(gpu: Gpu, explicit: bool) -> None:
    """Each time: the second step is given the same arrays, and the third finds one on yet another stream."""
    weights = {"a": np.ones(6, "f4"), "b": np.ones(3, "f4")}
    pair = Pair(gpu, weights, lambda params: nl.Momentum(params, 0.1, 0.9, nonfinite="raise"))
    stream = gpu.driver.stream() if explicit else None
    late = {name: Late(gpu, value.shape) for name, value in weights.items()}
    for step in range(3):
        values = gradients_like(weights, np.random.default_rng(step))
        for name, gradient in late.items():
            gradient.write(values[name], gpu.driver.stream() if step == 2 else None)
        pair.cpu.step(values)
        pair.gpu_optimizer.step({name: gradient.array for name, gradient in late.items()}, stream)
    pair.check()


def test_the_numbers_of_the_default_streams_are_the_protocols(gpu: Gpu) -> None:
    pair = Pair(gpu, {"a": np.ones(4, "f4")}, lambda params: nl.Momentum(params, 0.1, 0.9))
    gradient = gpu.array(np.full(4, np.nan, "f4"), stream=1)
    gpu.driver.queue(0, lambda: gradient.memory.fill(0.5))
    stream = gpu.driver.stream()
    pair.cpu.step({"a": np.full(4, 0.5, "f4")})
    pair.gpu_optimizer.step({"a": gradient}, stream)
    gpu.driver.queues[stream].run()
    pair.check()


# -- what is kept --------------------------------------------------------------------------------------------


def test_gradients_are_kept_until_a_step_on_another_stream_has_run(gpu: Gpu) -> None:
    optimizer = nl.Momentum(gpu.arrays(WEIGHTS), 0.1, 0.9)
    stream = gpu.driver.stream()
    gradients = gpu.arrays(WEIGHTS)
    watched = [weakref.ref(gradient) for gradient in gradients.values()]
    optimizer.step(gradients, stream)
    del gradients
    gc.collect()
    optimizer.step(gpu.arrays(WEIGHTS), stream)
    assert all(reference() is not None for reference in watched)
    gpu.driver.progress()
    optimizer.step(gpu.arrays(WEIGHTS))
    gc.collect()
    assert all(reference() is None for reference in watched)


def test_reading_results_lets_go_of_gradients_too(gpu: Gpu) -> None:
    optimizer = nl.Momentum(gpu.arrays(WEIGHTS), 0.1, 0.9)
    gradients = gpu.arrays(WEIGHTS)
    watched = [weakref.ref(gradient) for gradient in gradients.values()]
    optimizer.step(gradients, gpu.driver.stream())
    del gradients
    assert optimizer.global_step == 1
    gc.collect()
    assert all(reference() is None for reference in watched)


def test_gradients_are_not_kept_on_the_usual_stream(gpu: Gpu) -> None:
    """Their memory is given away in the order of that stream, so that the step has read it before."""
    optimizer = nl.Momentum(gpu.arrays(WEIGHTS), 0.1, 0.9)
    gradients = gpu.arrays(WEIGHTS)
    watched = [weakref.ref(gradient) for gradient in gradients.values()]
    optimizer.step(gradients)
    del gradients
    gc.collect()
    assert all(reference() is None for reference in watched)


# -- the libraries' own streams ------------------------------------------------------------------------------


class Tensor(GpuArray):
    """What there is of a PyTorch tensor here."""

    recorded: list[int]
    layout = "strided"
    requires_grad = False
    device = SimpleNamespace(type="cuda")

    def get_device(self) -> int:
        return 0

    def is_contiguous(self) -> bool:
        return True

    def is_neg(self) -> bool:
        return False

    def data_ptr(self) -> int:
        return self.address

    def record_stream(self, stream: Any) -> None:
        self.__dict__.setdefault("recorded", []).append(stream)


Tensor.__module__ = "torch"


class Array(GpuArray):
    """What there is of a CuPy array here."""


Array.__module__ = "cupy.core"


@pytest.fixture
def torch(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("torch")
    module.Tensor = Tensor
    module.float32, module.float64, module.strided = np.dtype("f4"), np.dtype("f8"), Tensor.layout
    module.nn = SimpleNamespace(Module=type("Module", (), {}), Parameter=Tensor)
    module.stream = gpu.driver.stream()
    module.cuda = SimpleNamespace(
        current_stream=lambda index: SimpleNamespace(cuda_stream=module.stream),
        ExternalStream=lambda stream, device: (stream, device),
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    # It has no structs to read, nor all the attributes that stand for them.
    monkeypatch.setattr(device_reader._Tensors, "_made", lambda reader, torch, arrays: None)
    return module


def test_steps_on_tensors_go_to_pytorchs_current_stream(gpu: Gpu, torch: Any) -> None:
    optimizer = nl.Momentum({"w": Tensor(gpu, np.ones(3))}, 0.1, 0.9)
    optimizer.step({"w": Tensor(gpu, np.ones(3))})
    assert pending(gpu, torch.stream)
    assert not pending(gpu, 0)
    gradient = Tensor(gpu, np.ones(3))
    torch.stream = gpu.driver.stream()
    optimizer.step({"w": gradient})
    assert pending(gpu, torch.stream)
    assert not hasattr(gradient, "recorded")
    assert optimizer.global_step == 2


def test_a_tensor_is_told_of_another_stream_rather_than_kept(gpu: Gpu, torch: Any) -> None:
    """PyTorch's allocator then waits for that stream before it gives the memory away."""
    optimizer = nl.Momentum({"w": Tensor(gpu, np.ones(3)), "n": Tensor(gpu, np.ones(1))}, 0.1, 0.9)
    stream = gpu.driver.stream()
    gradient = Tensor(gpu, np.ones(3))
    optimizer.step({"w": gradient, "n": None}, stream)
    assert gradient.recorded == [(stream, 0)]
    watched = weakref.ref(gradient)
    del gradient
    gc.collect()
    assert watched() is None


def test_steps_on_cupy_arrays_go_to_its_current_stream(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = gpu.driver.stream()
    module: Any = ModuleType("cupy")
    module.cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=stream))
    monkeypatch.setitem(sys.modules, "cupy", module)
    optimizer = nl.Momentum({"w": Array(gpu, np.ones(3))}, 0.1, 0.9)
    optimizer.step({"w": Array(gpu, np.ones(3), stream=stream)})
    assert pending(gpu, stream)
    assert not pending(gpu, 0)
    assert optimizer.global_step == 1
