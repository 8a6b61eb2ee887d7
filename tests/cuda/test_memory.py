"""Memory on a GPU is had where others cache it, and given back where nothing waits for the device in vain."""

import gc
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.memory import cuda_memory, device
from tests.cuda.double import OPTIMIZERS, Gpu

WEIGHTS = {
    "a": np.linspace(-1, 1, 200).astype("f4"),
    "e": np.zeros((0, 3), "f4"),
    "b": np.linspace(0, 1, 7),
    "k": np.linspace(-2, 2, 60).reshape(3, 4, 5).astype("f4"),
}


def rate(step: int) -> float:
    return 0.1 / (step + 1)


@pytest.fixture
def no_collection() -> Any:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("maker", OPTIMIZERS)
def test_all_memory_is_given_back_with_the_optimizer(gpu: Gpu, maker: str) -> None:
    """At the next step of another, for no cycle of references keeps it, whatever of its work is still queued."""
    params = gpu.arrays(WEIGHTS)
    other = OPTIMIZERS[maker](gpu.arrays({"w": np.ones(3)}), 0.1)
    other.step(gpu.arrays({"w": np.ones(3)}))
    others = gpu.arrays({"w": np.ones(3)})
    gradients = gpu.arrays(WEIGHTS)
    # Compiling leaves references behind that go with the next collection.
    OPTIMIZERS[maker]([{"params": {"k": params["k"]}, "grad_centralization": True}], 0.1, max_grad_norm=1.0)
    OPTIMIZERS[maker](params, 0.1, max_grad_norm=1.0)
    gc.collect()
    other.step(others)
    owned, pinned, events = set(gpu.driver.owners), set(gpu.driver.host), set(gpu.driver.events)
    for _ in range(2):
        optimizer = OPTIMIZERS[maker](params, rate, max_grad_norm=1.0)
        stream = gpu.driver.stream()
        optimizer.step(gradients, stream)
        optimizer.step(gradients)
        stats = optimizer.stats()
        assert len(stats) > 0
        optimizer.stats()
        more, new = (gpu.arrays({"more": np.ones((3, 3, 3), "f4")}) for _ in range(2))
        optimizer.add_param_group({"params": list(more.items()), "grad_centralization": True})
        optimizer.step({**gradients, **new}, stream)
        optimizer.learning_rate = 0.1
        gpu.driver.begin_capture(stream)
        optimizer.step({**gradients, **new}, stream)
        gpu.driver.end_capture(stream)
        waited = gpu.driver.waits
        del optimizer
        assert gpu.driver.waits == waited
        owned |= {more["more"].address, new["more"].address}
        assert set(gpu.driver.owners) > owned
        other.step(others)
        assert set(gpu.driver.owners) == owned
        assert set(gpu.driver.host) == pinned
        assert set(gpu.driver.events) == events
    gpu.driver.progress()
    assert gpu.driver.contexts == [0]


def wait_for_the_device() -> None:
    gpu = device.open_device(0)
    with gpu.current():
        gpu.finish()


READS: dict[str, Callable[[Any], Any]] = {
    "global_step": lambda optimizer: optimizer.global_step,
    "state_dict": lambda optimizer: optimizer.state_dict(),
}


@pytest.mark.parametrize("read", READS)
def test_what_waits_for_the_device_gives_memory_back(gpu: Gpu, read: str) -> None:
    other = nl.Momentum(gpu.arrays({"w": np.ones(3)}), 0.1, 0.9)
    arrays = gpu.arrays({"w": np.ones(3)})
    owned = set(gpu.driver.owners)
    nl.Momentum(arrays, 0.1, 0.9)
    gc.collect()
    assert set(gpu.driver.owners) > owned
    READS[read](other)
    assert set(gpu.driver.owners) == owned


def test_a_new_optimizer_has_the_memory_of_the_one_before(gpu: Gpu) -> None:
    arrays = gpu.arrays({"w": np.ones(3)})
    nl.Momentum(arrays, 0.1, 0.9)
    gc.collect()
    gpu.driver.bytes_left = 0
    optimizer = nl.Momentum(arrays, 0.1, 0.9)
    assert optimizer.global_step == 0


def test_memory_stays_where_waiting_for_the_device_fails(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies to and from it may be under way."""
    other = nl.Momentum(gpu.arrays({"w": np.ones(3)}), 0.1, 0.9)
    gradients = gpu.arrays({"w": np.ones(3)})
    owned, pinned = set(gpu.driver.owners), set(gpu.driver.host)
    nl.Momentum(gpu.arrays({"w": np.ones(3)}), 0.1, 0.9)
    gc.collect()
    before = set(gpu.driver.owners), set(gpu.driver.host)
    with monkeypatch.context() as patch:
        patch.setattr(gpu.driver, "cuCtxSynchronize", lambda: (gpu.driver.CUresult.CUDA_ERROR_INVALID_VALUE,))
        with pytest.raises(RuntimeError, match="cuCtxSynchronize failed: CUDA_ERROR_INVALID_VALUE"):
            other.step(gradients)
    assert (set(gpu.driver.owners), set(gpu.driver.host)) == before
    other.step(gradients)
    assert set(gpu.driver.host) == pinned
    assert len(set(gpu.driver.owners) - owned) == 1


BROKEN: dict[str, Callable[[Gpu], Any]] = {
    "dtype": lambda gpu: {"params": [("x", gpu.array(np.ones(3, "i4")))]},
    "rate": lambda gpu: {"params": [("x", gpu.array(np.ones(3)))], "lr": -1.0},
    "table": lambda gpu: {"params": [("x", gpu.array(np.ones(3)))], "lr": [0.1, 0.2]},
    "centralization": lambda gpu: {"params": [("x", gpu.array(np.ones(3)))], "grad_centralization": True},
    "shared": lambda gpu: {"params": [("x", 0)]},
}


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("case", [*BROKEN, "memory", "compiler"])
def test_a_construction_that_fails_leaves_nothing(
    gpu: Gpu, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = gpu.arrays(WEIGHTS)
    second = BROKEN[case](gpu) if case in BROKEN else {"params": [("x", gpu.array(np.ones(3)))]}
    if case == "shared":
        view = gpu.array(np.ones(3))
        view.more = {"data": (params["b"].address, False)}
        second = {"params": [("x", view)]}
    owned = set(gpu.driver.owners)
    if case == "memory":
        gpu.driver.bytes_left = 3000
    if case == "compiler":

        def fail(*arguments: Any) -> bytes:
            raise RuntimeError("no compiler")

        monkeypatch.setattr("numba_lamb.kernels.cuda.build.machine_code", fail)
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError, MemoryError)) as failure:
        nl.Lamb([{"params": params}, second], rate, capture_steps=5)
    failure.value.__traceback__ = None
    del failure
    gc.collect()
    gpu.driver.bytes_left = None
    wait_for_the_device()
    assert set(gpu.driver.owners) == owned
    assert gpu.driver.host == {}
    assert gpu.driver.contexts == [0]


# -- too little of it -----------------------------------------------------------------------------------


@pytest.fixture(name="caches")
def caches_fixture(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """PyTorch and CuPy, and how many bytes each keeps from the driver."""
    kept = {"torch": 0, "cupy": 0}

    def empty(name: str) -> None:
        assert gpu.driver.bytes_left is not None
        gpu.driver.bytes_left += kept[name]
        kept[name] = 0

    torch, cupy = ModuleType("torch"), ModuleType("cupy")
    pool = SimpleNamespace(free_all_blocks=lambda: empty("cupy"))
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(empty_cache=lambda: empty("torch")), raising=False)
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: pool, raising=False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return kept


def new_buffer(nbytes: int) -> cuda_memory.Buffer:
    gpu = device.open_device(0)
    with gpu.current():
        return cuda_memory.Buffer(gpu, nbytes)


@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_caches_of_other_libraries_are_emptied_for_memory(
    gpu: Gpu, caches: dict[str, int], name: str
) -> None:
    gpu.driver.bytes_left = 1000
    caches[name] = 3000
    small = new_buffer(1000)
    assert caches[name] == 3000
    assert new_buffer(2500).address != small.address
    assert gpu.driver.bytes_left == 500


def test_what_was_parked_is_freed_for_memory(gpu: Gpu, caches: dict[str, int]) -> None:
    gpu.driver.bytes_left = 1000
    first = new_buffer(1000)
    del first
    assert gpu.driver.bytes_left == 0
    assert new_buffer(900).nbytes == 900
    assert caches == {"torch": 0, "cupy": 0}


@pytest.mark.parametrize(
    ("imported", "said"),
    [
        ((), ""),
        (("torch",), " after the cache of PyTorch was emptied"),
        (("torch", "cupy"), " after the cache of PyTorch and CuPy was emptied"),
    ],
)
def test_too_little_memory_is_said_with_numbers(
    gpu: Gpu,
    caches: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    imported: tuple[str, ...],
    said: str,
) -> None:
    for name in caches.keys() - set(imported):
        monkeypatch.delitem(sys.modules, name)
    gpu.driver.bytes_left = 1000
    message = (
        "an optimizer's table must fit into GPU 0's free memory, got 12,000 bytes for 1,000 free of "
        f"68,719,476,736{said}; free arrays on that GPU, or use one with more memory"
    )
    with pytest.raises(MemoryError) as failure:
        new_buffer(12_000)
    assert str(failure.value) == message
    assert gpu.driver.contexts == [0]


def test_too_little_memory_of_the_host(gpu: Gpu) -> None:
    gpu.driver.host_bytes_left = 100
    with pytest.raises(MemoryError, match=r"must fit into the host's free memory, got [0-9,]+ bytes"):
        nl.Lamb(gpu.arrays(WEIGHTS), 0.1)
