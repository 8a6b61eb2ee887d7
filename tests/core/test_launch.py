"""Threads: whose number is followed, what is restored, and what stays safe."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.kernels.cpu import launch, threading_layer, threads
from tests.helpers import installed, run_python

pytestmark = pytest.mark.slow

LARGE = launch.PARALLEL_FROM * 4096 * 2


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    for remembered in (threads.omp_num_threads, threads.cpu_quota):
        remembered.cache_clear()
    yield
    for remembered in (threads.omp_num_threads, threads.cpu_quota):
        remembered.cache_clear()


def test_the_count_follows_torch_then_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "thread_limit", lambda: 64)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 3))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch.thread_count(None) == 3
    assert launch.thread_count(7) == 7
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.delenv("OMP_NUM_THREADS")
    threads.omp_num_threads.cache_clear()
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    assert launch.thread_count(None) == len(os.sched_getaffinity(0))
    monkeypatch.setattr(launch, "thread_limit", lambda: 1)
    assert launch.thread_count(None) == 1


@pytest.mark.parametrize(
    ("text", "limit", "count"),
    [
        *(("1", 64, 1), (" 4 ", 64, 4), ("4,2", 64, 4), ("4 , 2", 64, 4), ("4", 2, 2), ("99", 64, 8)),
        *((text, 64, 5) for text in ("", "0", "-1", "4;2", "4,", "4,x", "2.5", "four", "9" * 5000, "٣")),
    ],
)
def test_omp_num_threads_is_followed_where_it_is_a_number(
    text: str, limit: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 CPUs, and a quota of 5 that an explicit number goes before."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(threads, "usable_cpus", lambda: 8)
    monkeypatch.setattr(threads, "cpu_quota", lambda: 5)
    monkeypatch.setattr(launch, "thread_limit", lambda: limit)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert launch.thread_count(None) == count


@pytest.mark.parametrize(
    ("own", "limits", "quota"),
    [
        ("0::/", {"": "150000 100000"}, 2),
        ("9:cpu:/x\n0::/a/b", {"a/b": "max 100000", "a": "50000 100000", "": "800000 100000"}, 1),
        ("0::/not/here", {"": "400000 100000"}, 4),
        ("0::/../other", {"": "max 100000"}, None),
        ("0::/", {"": "garbage"}, None),
        (None, {}, None),
    ],
)
def test_the_quota_is_the_smallest_of_our_groups(
    own: str | None,
    limits: dict[str, str],
    quota: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if own is not None:
        (tmp_path / "own").write_text(own)
    for group, text in limits.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(text + "\n")
    monkeypatch.setattr(threads, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(threads, "_GROUPS", tmp_path)
    assert threads.cpu_quota() == quota


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
    from numba_lamb.kernels.cpu import passes

    return [twin for kernel in passes.KERNELS.values() for twin in kernel]


def test_the_lock_is_new_after_a_fork() -> None:
    held = launch._lock
    launch._after_fork()
    assert launch._lock is not held
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


needs_torch = pytest.mark.skipif(installed("torch") is None, reason="the peers extra is not installed")

TORCHS_NUMBER = """
import os, threading
if os.environ["ORDER"] == "torch first":
    import torch
import numpy as np, numba, numba_lamb as nl
import torch
torch.set_num_threads(2)
found = [torch.get_num_threads()]

def steps():
    w = np.ones(300_000, dtype=np.float32)
    opt = nl.Lamb([w], 0.01)
    for _ in range(2):
        opt.step([w.copy()])
        found.append(torch.get_num_threads())

def steps_elsewhere():
    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()

order = [steps, steps_elsewhere, steps]
for run in order if os.environ["WHERE"] == "here" else order[1:]:
    run()
print(set(found), numba.threading_layer())
"""


@needs_torch
@pytest.mark.parametrize(
    ("order", "where", "layer"),
    [
        ("torch first", "here", "omp"),
        ("numba first", "elsewhere", "omp"),
        ("torch first", "here", "workqueue"),
    ],
)
def test_a_step_leaves_pytorchs_number_of_threads_alone(order: str, where: str, layer: str) -> None:
    """In whichever thread Numba's layer starts; `tbb` was run by hand, because its wheel is no test dependency."""
    environment = {"ORDER": order, "WHERE": where, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "8"}
    assert run_python(TORCHS_NUMBER, **environment) == f"{{2}} {layer}"


FORKED_AFTER_TORCH = """
import multiprocessing, os, signal, warnings
import numpy as np
warnings.simplefilter("ignore", DeprecationWarning)  # of forks in processes with threads
if "torch" in os.environ["BEFORE"]:
    import torch
    torch.set_num_threads(2)
    torch.ones(3_000_000).mul_(2).sum()
if "numba_lamb" in os.environ["BEFORE"]:
    import numba_lamb

def child():
    signal.alarm(100)
    import numba_lamb as nl
    from numba_lamb.kernels.cpu import launch
    def trained(threads):
        w = np.ones(300_000, dtype=np.float32)
        nl.Lamb([w], 0.01, num_threads=threads).step([np.full(300_000, 0.1, dtype=np.float32)])
        return w.tobytes()
    print(trained(2) == trained(1), launch.threads_for(100, 2), end=" ", flush=True)

def child_and_grandchild():
    child()
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

process = multiprocessing.get_context("fork").Process(target=child_and_grandchild)
process.start()
process.join()
print(process.exitcode)
"""


@needs_torch
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("before", "layer", "found"),
    [
        ("torch, numba_lamb", "omp", "True 1 True 1 0"),
        ("torch", "omp", "True 1 True 1 0"),
        ("torch", "workqueue", "True 2 True 2 0"),
        # Nobody used OpenMP before the first fork, and the child did before the second.
        ("numba_lamb", "omp", "True 2 True 1 0"),
    ],
)
def test_a_process_forked_after_pytorch_used_openmp_takes_the_same_step(
    before: str, layer: str, found: str
) -> None:
    environment = {"BEFORE": before, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    assert run_python(FORKED_AFTER_TORCH, **environment) == found


def test_a_layer_that_is_not_there_is_named_by_the_step_and_nothing_changed() -> None:
    code = """
import numpy as np, numba_lamb as nl
w = np.ones(300_000)
try:
    nl.Lamb([w], 0.1, num_threads=2).step([w.copy()])
except ValueError as error:
    print(error, (w == 1).all())
"""
    environment = {"NUMBA_THREADING_LAYER": "nonsense", "NUMBA_NUM_THREADS": "2"}
    assert (
        run_python(code, **environment)
        == "The threading layer requested 'nonsense' is unknown to Numba. True"
    )


def test_whatever_the_system_does_not_tell_is_taken_as_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert threading_layer._gnu_openmp_is_loaded()
    assert not threading_layer._was_forked()
