"""Runs kernels: how many threads, which twin, and what makes that safe.

The twins of a kernel give the same bits, so the choice is about time and safety alone:

* one thread, or little work: the serial twin, which starts no threading layer;
* a forked process whose parent may have used GNU OpenMP (`.threading_layer`): the serial twin;
* otherwise the threaded twin, one call at a time, because a threading layer may abort on concurrent calls.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numba

from numba_lamb._calls import run_in_order
from numba_lamb._compile import Kernel
from numba_lamb.kernels.cpu.program import PARALLEL_FROM, Program
from numba_lamb.kernels.cpu.threading_layer import exchange_threads, layer_name, threads_are_safe
from numba_lamb.kernels.cpu.threads import default_threads

_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    # A thread of the parent may have held the lock at the fork; the child has no such thread.
    _lock = threading.Lock()


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
    """Return the threads to use: as asked, else PyTorch's number where it is loaded, else `default_threads`."""
    if num_threads is not None:
        return num_threads
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        wanted = int(torch.get_num_threads())
    else:
        wanted = default_threads()
    return max(1, min(wanted, thread_limit()))


def threads_for(chunks: int, num_threads: int | None) -> int:
    """Return the threads for kernels that have `chunks` to do; 1 means that the serial twins must be called."""
    if chunks < PARALLEL_FROM:
        return 1
    threads = thread_count(num_threads)
    return threads if threads > 1 and threads_are_safe() else 1


def _run_threaded(threads: int, calls: Sequence[Callable[[], Any]]) -> None:
    """Make calls of threaded twins on `threads` threads, alone; then Numba's number is what it was."""
    # Held for every layer, not for workqueue alone: which one runs is known only after the first call.
    with _lock:
        layer_name()
        before = exchange_threads(threads)
        try:
            run_in_order(calls)
        finally:
            exchange_threads(before)


def run(kernel: Kernel, chunks: int, num_threads: int | None, *arguments: Any) -> None:
    """Call `kernel` with `arguments`, on threads where there is work for them (`chunks`) and they are safe."""
    threads = threads_for(chunks, num_threads)
    if threads == 1:
        kernel.serial(*arguments)
        return
    _run_threaded(threads, [partial(kernel.parallel, *arguments)])


def commit(
    program: Program,
    num_threads: int | None,
    between: Sequence[Callable[[], Any]] = (),
    last: Program | None = None,
) -> None:
    """Run a program, what is `between` and the `last` one: all or, if this is interrupted at any time, nothing.

    What is between must run no Python.
    """
    threads = threads_for(program.chunks, num_threads)
    calls = program.bound(threads > 1)
    if between or last is not None:
        calls = [*calls, *between, *(() if last is None else last.bound(False))]
    if threads == 1:
        run_in_order(calls)
    else:
        _run_threaded(threads, calls)
