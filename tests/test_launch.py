"""Threads: whose number is followed, what is restored, and what stays safe."""

import os
import sys
import threading
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import numba_lamb as nl
from helpers import run_python
from numba_lamb.kernels import launch

LARGE = launch.PARALLEL_FROM * 4096 * 2


def test_the_count_follows_torch_then_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "thread_limit", lambda: 64)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 3))
    assert launch.thread_count(None) == 3
    assert launch.thread_count(7) == 7
    monkeypatch.delitem(sys.modules, "torch")
    assert launch.thread_count(None) == len(os.sched_getaffinity(0))
    monkeypatch.setattr(launch, "thread_limit", lambda: 1)
    assert launch.thread_count(None) == 1


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (10_000, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_impossible_thread_counts_are_refused(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="num_threads"):
        nl.Lamb([np.ones(2)], 0.1, num_threads=value)  # type: ignore[arg-type]


def test_numbas_own_setting_is_restored() -> None:
    before = numba.get_num_threads()
    opt = nl.Lamb([np.ones(LARGE)], 0.1, num_threads=launch.thread_limit())
    numba.set_num_threads(1)
    try:
        opt.step([np.ones(LARGE)])
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


def test_one_thread_starts_no_threading_layer() -> None:
    code = """
import numpy as np, numba, numba_lamb as nl
w = np.ones(1_000_000)
nl.Lamb([w], 0.1, num_threads=1).step([w.copy()])
nl.Lamb([w[:1000]], 0.1).step([w[:1000].copy()])
try:
    print(numba.threading_layer())
except ValueError:
    print("none")
"""
    assert run_python(code) == "none"


CONCURRENT = """
import threading
import numpy as np, numba_lamb as nl
def train(out, k):
    w = np.full(200_000, 1.0 + k, dtype=np.float32)
    opt = nl.Lamb([w], 0.01, num_threads=2)
    for _ in range(20):
        opt.step([np.full(200_000, 0.1, dtype=np.float32)])
    out[k] = w
alone, together = {}, {}
for k in range(4):
    train(alone, k)
threads = [threading.Thread(target=train, args=(together, k)) for k in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(all((alone[k] == together[k]).all() for k in range(4)))
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_concurrent_optimizers_are_safe(layer: str) -> None:
    assert run_python(CONCURRENT, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2") == "True"


FORKED = """
import os, warnings
import numpy as np, numba_lamb as nl
def train():
    w = np.ones(300_000, dtype=np.float32)
    opt = nl.Lamb([w], 0.01, num_threads=2)
    opt.step([np.full(300_000, 0.1, dtype=np.float32)])
    return w.tobytes()
parent = train()
pid = os.fork()
if pid == 0:
    os._exit(0 if train() == parent else 3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_a_forked_process_takes_the_same_step(layer: str) -> None:
    assert run_python(FORKED, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2") == "0"


def test_other_python_threads_run_during_a_step() -> None:
    assert all(kernel.targetoptions["nogil"] for kernel in launch_kernels())


def launch_kernels() -> list[object]:
    from numba_lamb.kernels import cpu

    return [twin for kernel in (cpu.lamb_step, cpu.lars_step) for twin in kernel]


def test_the_lock_is_new_after_a_fork() -> None:
    held, serial = launch._lock, launch._serial_only
    try:
        launch._after_fork()
        assert launch._lock is not held
    finally:
        launch._serial_only = serial
    assert isinstance(launch._lock, type(threading.Lock()))


FOREIGN = """
import os
import numba, numpy as np, numba_lamb as nl

@numba.njit(parallel=True)
def foreign(values):
    for k in numba.prange(values.shape[0]):
        values[k] += 1

foreign(np.zeros(1000))
pid = os.fork()
if pid == 0:
    w = np.ones(300_000, dtype=np.float32)
    nl.Lamb([w], 0.01, num_threads=2).step([np.full(300_000, 0.1, dtype=np.float32)])
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_process_forked_after_somebody_elses_parallel_region_takes_a_step() -> None:
    assert run_python(FOREIGN, NUMBA_THREADING_LAYER="omp", NUMBA_NUM_THREADS="2") == "0"
