"""Runs kernels: how many threads, which twin, and what makes that safe.

The twins of a kernel give the same bits, so the choice is about time and safety alone:

* one thread, or little work: the serial twin, which starts no threading layer;
* a process forked from one in which Numba's OpenMP layer was up, whoever called it: the serial twin, because
  GNU OpenMP ends such a process when it enters a parallel region;
* otherwise the threaded twin, one call at a time, because a threading layer may abort on concurrent calls.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numba

from numba_lamb._compile import Kernel
from numba_lamb.kernels.program import PARALLEL_FROM, Program, run_in_order

_lock = threading.Lock()
_serial_only = False


def _after_fork() -> None:
    global _lock, _serial_only
    # A thread of the parent may have held the lock at the fork; the child has no such thread.
    _lock = threading.Lock()
    try:
        layer = str(numba.threading_layer())
    except ValueError:
        return  # no threading layer was up
    _serial_only = _serial_only or layer == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def thread_limit() -> int:
    """Return the most threads that Numba can use in this process."""
    return int(numba.config.NUMBA_NUM_THREADS)


def check_num_threads(num_threads: object) -> int | None:
    """Return `num_threads` if it is None or a thread count that can be had, else raise."""
    if num_threads is None:
        return None
    if isinstance(num_threads, bool) or not isinstance(num_threads, int):
        raise TypeError(f"num_threads must be an int or None, not {type(num_threads).__name__}")
    if not 1 <= num_threads <= thread_limit():
        raise ValueError(
            f"num_threads must be between 1 and {thread_limit()}, not {num_threads}; "
            "the environment variable NUMBA_NUM_THREADS raises the upper limit"
        )
    return num_threads


def thread_count(num_threads: int | None) -> int:
    """Return the threads to use: as asked, else PyTorch's number where it is loaded, else the CPUs we may use."""
    if num_threads is not None:
        return num_threads
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        wanted = int(torch.get_num_threads())
    elif hasattr(os, "sched_getaffinity"):
        wanted = len(os.sched_getaffinity(0))
    else:
        wanted = os.cpu_count() or 1
    return max(1, min(wanted, thread_limit()))


def run(kernel: Kernel, chunks: int, num_threads: int | None, *arguments: Any) -> None:
    """Call `kernel` with `arguments`, on threads where there is work for them (`chunks`) and they are safe."""
    threads = thread_count(num_threads)
    if threads == 1 or chunks < PARALLEL_FROM or _serial_only:
        kernel.serial(*arguments)
        return
    # Held for every layer, not for workqueue alone: which one runs is known only after the first call.
    with _lock:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            kernel.parallel(*arguments)
        finally:
            numba.set_num_threads(before)


def commit(
    programs: Sequence[Program],
    between: Sequence[Callable[[], Any]],
    last: Program,
    num_threads: int | None,
) -> None:
    """Run programs, what is `between` and the `last` program: all or, if this is interrupted at any time, nothing.

    What is between must run no Python.
    """
    threads = thread_count(num_threads)
    threaded = threads > 1 and not _serial_only and any(program.is_threaded for program in programs)
    calls = [
        *chain.from_iterable(program.bound(threaded) for program in programs),
        *between,
        *last.bound(False),
    ]
    if not threaded:
        run_in_order(calls)
        return
    with _lock:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            run_in_order(calls)
        finally:
            numba.set_num_threads(before)
