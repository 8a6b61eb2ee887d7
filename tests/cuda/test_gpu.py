"""A step on a real GPU: the CPU's bits, streams, graphs, checkpoints; skipped where there is none."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.memory import device
from tests.cuda.gpu_arrays import MAKERS as LIBRARIES
from tests.cuda.gpu_arrays import NO_GPU, bare, cuda_torch, finish, library_called
from tests.cuda.gpu_twins import OPTIMIZERS, Twins, grouped
from tests.helpers import frozen

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=NO_GPU or "")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_bits_are_the_cpus(library: str, optimizer: str, dtype: Any) -> None:
    twins = Twins(OPTIMIZERS[optimizer], library_called(library), dtype)
    for step in range(3):
        gradients = twins.gradients(step)
        if step == 1:
            gradients["conv.bias"] = gradients["matrix"] = None
        twins.step(gradients)
    twins.assert_same()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", ["lamb", "lamb, clipped", "momentum", "lars"])
def test_the_bits_of_a_large_layer_are_the_cpus(optimizer: str, dtype: Any) -> None:
    twins = Twins(OPTIMIZERS[optimizer], bare(), dtype, {"large": (3_000_001,), "small": (5,)})
    for step in range(2):
        twins.step(twins.gradients(step))
    twins.assert_same()


@pytest.mark.parametrize(
    "stored", [{}, {"moments": "bfloat16"}, {"moments": "int8", "master": None}], ids=str
)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_bits_in_half_precision(library: str, stored: dict[str, Any]) -> None:
    make = lambda params: nl.Lamb(params, 0.01, weight_decay=0.1, max_grad_norm=0.5, **stored)  # noqa: E731
    twins = Twins(make, library_called(library), np.float16)
    for step in range(3):
        twins.step(twins.gradients(step))
    twins.assert_same()


def test_both_dtypes_share_a_step() -> None:
    library = bare()
    host = {"a": np.linspace(-1, 1, 300, dtype=np.float32), "b": np.linspace(-2, 1, 300)}
    gpu = {name: library.put(array) for name, array in host.items()}
    gradients = {name: array * array for name, array in host.items()}
    for params, given in ((host, gradients), (gpu, {n: library.put(g) for n, g in gradients.items()})):
        opt = nl.Lamb(params, 0.1, max_grad_norm=0.5)
        opt.step(given)
        opt.step(given)
    assert frozen({name: library.get(array) for name, array in gpu.items()}) == frozen(host)


def test_thousands_of_steps_are_queued_without_losing_their_place() -> None:
    schedule = nl.schedules.CosineWithWarmUpLR(0.01, warmup_steps=100, total_steps=3000)
    twins = Twins(lambda p: nl.Lamb(p, schedule), bare(), shapes={"w": (257,)})
    gradients = twins.gradients(0)
    given = twins.put(gradients)
    for _ in range(2500):
        twins.on_cpu.step(gradients)
        twins.on_gpu.step(given)
    twins.assert_same()


# -- gradients that are not finite ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_step_that_is_not_finite_is_skipped(bad: float, limit: float | None) -> None:
    schedule = nl.schedules.CosineWithWarmUpLR(0.01, warmup_steps=2, total_steps=9)
    twins = Twins(lambda p: nl.Lamb(p, schedule, nonfinite="skip", max_grad_norm=limit), bare())
    twins.step(twins.gradients(0))
    spoilt = twins.gradients(1)
    spoilt["matrix"][7, 3] = bad
    twins.step(spoilt)
    twins.assert_same()
    assert twins.on_gpu.skipped_steps == 1
    twins.step(twins.gradients(2))
    twins.assert_same()


def test_a_step_that_is_not_finite_raises_before_anything_changes() -> None:
    twins = Twins(lambda p: nl.Lamb(p, 0.01, nonfinite="raise"), bare())
    twins.step(twins.gradients(0))
    spoilt = twins.gradients(1)
    spoilt["matrix"][7, 3] = np.nan
    said = []
    for optimizer, given in ((twins.on_cpu, spoilt), (twins.on_gpu, twins.put(spoilt))):
        with pytest.raises(FloatingPointError) as raised:
            optimizer.step(given)
        said.append(str(raised.value))
    assert said[0] == said[1]
    twins.step(twins.gradients(2))
    twins.assert_same()


def test_a_loss_scaler_is_read_on_the_device() -> None:
    twins = Twins(lambda p: nl.Momentum(p, 0.01, 0.9, max_grad_norm=0.5), bare())
    twins.on_cpu = nl.Momentum(grouped(twins.host), 0.01, 0.9, loss_scale=1024.0, max_grad_norm=0.5)
    scale, found = (twins.library.put(np.array(value, np.float32)) for value in (1024.0, 0.0))
    twins.on_gpu._backend.grad_scale = scale.__cuda_array_interface__["data"][0]
    twins.on_gpu._backend.found_inf = found.__cuda_array_interface__["data"][0]
    for step in range(2):
        twins.step(twins.gradients(step))
    found.write(np.array(1.0, np.float32))
    twins.on_gpu.step(twins.put(twins.gradients(2)))
    assert (twins.on_gpu.global_step, twins.on_gpu.skipped_steps) == (2, 1)
    assert frozen(twins.weights()) == frozen(twins.host)


# -- rates and checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rate_on_the_device_is_read_at_each_step(dtype: Any) -> None:
    library = bare()
    host = {"w": np.linspace(-1, 1, 500, dtype=np.float32)}
    gpu = {"w": library.put(host["w"])}
    gradient = np.linspace(1, 2, 500, dtype=np.float32)
    rate = library.put(np.array(0.1, dtype))
    on_cpu, on_gpu = nl.Lamb(host, float(dtype(0.1))), nl.Lamb(gpu, rate)
    for value in (0.1, 0.025):
        new = np.array(value, dtype)
        rate.write(new)
        on_cpu.learning_rate = float(new)
        on_cpu.step({"w": gradient})
        on_gpu.step({"w": library.put(gradient)})
    assert frozen({"w": library.get(gpu["w"])}) == frozen(host)


def test_a_rate_on_the_device_that_is_refused_changes_nothing() -> None:
    library = bare()
    weights = library.put(np.ones(500, np.float32))
    opt = nl.Lamb({"w": weights}, library.put(np.array(-0.1)))
    opt.step({"w": library.put(np.ones(500, np.float32))})
    with pytest.raises(RuntimeError, match="1 steps changed nothing: a rate in device memory was negative"):
        opt.check()
    assert (library.get(weights) == 1).all()
    assert opt.global_step == 0


@pytest.mark.parametrize("optimizer", ["lamb", "lars"])
def test_a_state_goes_from_gpu_to_cpu_and_back(optimizer: str) -> None:
    twins = Twins(OPTIMIZERS[optimizer], bare())
    twins.step(twins.gradients(0))
    state = twins.on_gpu.state_dict()
    others = Twins(OPTIMIZERS[optimizer], bare())
    for name, weights in twins.weights().items():
        others.host[name][...] = weights
    others.device.update(others.put(others.host))
    others.on_gpu = OPTIMIZERS[optimizer](grouped(others.device))
    others.on_cpu.load_state_dict(state)
    others.on_gpu.load_state_dict(others.on_cpu.state_dict())
    for pair in (twins, others):
        pair.step(pair.gradients(1))
    others.assert_same()
    assert frozen(others.host) == frozen(twins.weights())


# -- contexts and streams ------------------------------------------------------------------------------------


def test_no_context_is_left_behind() -> None:
    found = []

    def work() -> None:
        before = int(device.call("cuCtxGetCurrent"))
        twins = Twins(OPTIMIZERS["lamb, clipped"], bare())
        twins.step(twins.gradients(0))
        dict(twins.on_gpu.stats())
        twins.on_gpu.state_dict()
        del twins
        found.append((before, int(device.call("cuCtxGetCurrent"))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, 0)]


def streams() -> dict[str, Callable[[], Any]]:
    def numba_stream() -> Any:
        library_called("numba")
        from numba import cuda

        return cuda.stream()

    def cupy_stream() -> Any:
        library_called("cupy")
        import cupy

        return cupy.cuda.Stream(non_blocking=True)

    def driver_stream() -> Any:
        with device.open_device(0).current():
            # 1 is CU_STREAM_NON_BLOCKING: not ordered with the default stream.
            return int(device.call("cuStreamCreate", 1))

    return {
        "int": driver_stream,
        "numba": numba_stream,
        "cupy": cupy_stream,
        "torch": lambda: cuda_torch().cuda.Stream(),
    }


@pytest.mark.parametrize("kind", streams())
def test_a_step_goes_to_the_stream_that_is_given(kind: str) -> None:
    stream = streams()[kind]()
    twins = Twins(OPTIMIZERS["lamb, clipped"], bare())
    finish()
    for step in range(3):
        twins.step(twins.gradients(step), stream=stream)
    finish()
    twins.assert_same()
