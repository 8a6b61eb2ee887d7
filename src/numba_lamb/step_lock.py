"""Locks that serialise the steps of one optimizer, whichever threads take them."""

import os
import threading
from typing import Any
from weakref import WeakSet

_locks: WeakSet[Any] = WeakSet()


def step_lock() -> Any:
    """Return a lock for one optimizer.

    It is the interpreter's own, so that `with` cannot be interrupted between taking it and having to give it back.
    A thread that has it may take it again: a schedule may ask the optimizer something, or even take a step.
    """
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _after_fork() -> None:
    # A thread of the parent may have held one at the fork; the child has no such thread.
    for lock in list(_locks):
        if not lock._is_owned():
            lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
