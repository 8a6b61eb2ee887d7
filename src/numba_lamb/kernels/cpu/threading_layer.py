"""Numba's threading layer: started without a trace in the calling thread, and distrusted after a fork.

Numba's OpenMP layer and PyTorch share one GNU OpenMP, and with it two hazards:

* starting the layer sets the number of threads of the thread that starts it, which PyTorch takes for its own;
* its threads end at a fork, and the child waits for them for ever (or Numba ends it), whoever had used them.
"""

import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba

_parallel = importlib.import_module("numba.np.ufunc.parallel")
_FORKED_WITHOUT_EXEC = 0x40
"""PF_FORKNOEXEC among the flags of a Linux process."""


def layer_name() -> str:
    """Return the name of Numba's threading layer, which is started where it is not up."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        pass
    if _takes_tbb():
        # TBB survives only forks made by the thread that started it.
        numba.get_num_threads()
    else:
        try:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(numba.get_num_threads).result()
        except RuntimeError:
            # No thread can be had while the interpreter ends.
            numba.get_num_threads()
    return str(numba.threading_layer())


def exchange_threads(threads: int) -> int:
    """Set how many threads Numba uses for this thread, and return how many it did; the layer must be up."""
    # Not through Numba's interface, which takes two locks each time.
    before = int(getattr(_parallel, "_get_num_threads", numba.get_num_threads)())
    getattr(_parallel, "_set_num_threads", numba.set_num_threads)(threads)
    return before


def threads_are_safe() -> bool:
    """Return whether parallel kernels can run in this process."""
    return not _openmp_may_be_dead or layer_name() != "omp"


def after_fork() -> None:
    """Note in a forked process whether GNU OpenMP may have had threads before."""
    global _openmp_may_be_dead
    _openmp_may_be_dead = _openmp_may_be_dead or _gnu_openmp_is_loaded()


def _takes_tbb() -> bool:
    wanted, order = str(numba.config.THREADING_LAYER).lower(), numba.config.THREADING_LAYER_PRIORITY
    if wanted in ("omp", "workqueue") or (wanted == "default" and order[0] != "tbb"):
        return False
    try:
        # Numba's own test of TBB's version, which is no part of its interface.
        getattr(_parallel, "_check_tbb_version_compatible", lambda: None)()
        importlib.import_module("numba.np.ufunc.tbbpool")
    except ImportError:
        return False
    return True


def _gnu_openmp_is_loaded() -> bool:
    try:
        return b"libgomp" in Path("/proc/self/maps").read_bytes()
    except OSError:
        return True  # not on Linux; it may be


def _was_forked() -> bool:
    """Return whether this process is a fork of another, as far as the system tells."""
    try:
        flags = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[6]
    except (OSError, IndexError):
        return False
    return bool(int(flags) & _FORKED_WITHOUT_EXEC)


# What was loaded before the fork, and what after, cannot be told apart if this package was not there.
_openmp_may_be_dead = _was_forked() and _gnu_openmp_is_loaded()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
