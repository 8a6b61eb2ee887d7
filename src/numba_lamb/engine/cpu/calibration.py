"""Chooses the prefetch distance for models of each size by timing the steps that are taken anyway.

The first steps of a model alternate between no prefetch and one page ahead. Both give the same bits, so that
nothing is computed twice. The choice is kept beside the kernel cache, for models of about that size on this
machine.
"""

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from numba_lamb import _private, _tuning
from numba_lamb._compile import cache_state
from numba_lamb.layout import CHUNK

ROUNDS = 5
"""Steps whose times are compared, with each distance; in one each before them caches and tables are made."""
STEPS = 2 * (ROUNDS + 1)
"""Steps after which there is a choice."""
GAIN = 0.97
"""Prefetching is chosen where a step then takes at most this share of its time: none is simpler."""
LEAST = 64 * CHUNK
"""Elements from which a step is long enough to be timed."""

CALIBRATED, BY_NAME, ASKED = "timed steps", "the processor's name", "NUMBA_LAMB_PREFETCH"


class Choice(NamedTuple):
    """How many bytes ahead loops prefetch in each stream, 0 for not at all, and what decided that."""

    distance: int
    because: str


def size_class(elements: int) -> int:
    """Return the power of 4 below `elements`, which models of about one size share; that of `LEAST` at least."""
    return (max(elements, LEAST).bit_length() - 1) // 2


def usual() -> Choice:
    """Return the choice where no step was timed."""
    return Choice(_tuning.USUAL, BY_NAME) if _tuning.ASKED is None else Choice(_tuning.ASKED, ASKED)


def chosen(elements: int, threads: int) -> Choice:
    """Return the choice for a model of so many elements on so many threads."""
    choice = usual()
    found = choices(threads).get(size_class(elements))
    return choice if choice.because == ASKED or found is None else Choice(found, CALIBRATED)


def choices(threads: int) -> Mapping[int, int]:
    """Return the calibrated distances by size class; read from disk once for each number of threads."""
    if threads not in _known:
        _known[threads] = _read(threads)
    return _known[threads]


class Calibration:
    """Times the steps of one optimizer until it has chosen.

    Parameters
    ----------
    elements : int
        Elements of all its layers.
    threads : int
        Threads of its steps.
    clock : callable
        Seconds.
    """

    def __init__(self, elements: int, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.ahead = np.zeros(1, dtype=np.int64)
        """The distance in use, which kernels read."""
        self._class, self._threads, self._clock = size_class(elements), threads, clock
        choice = chosen(elements, threads)
        self.ahead[0] = choice.distance
        self._times: dict[int, list[float]] = {0: [], _tuning.PAGE: []}
        self._running = choice.because == BY_NAME and elements >= LEAST

    def timed(self, step: Callable[[], object]) -> None:
        """Take a step, and as long as nothing is chosen measure how long it takes."""
        if not self._running:
            step()
            return
        # The distance with fewer steps.
        distance = min(self._times, key=lambda one: len(self._times[one]))
        self.ahead[0] = distance
        start = self._clock()
        step()
        self._times[distance].append(self._clock() - start)
        if all(len(times) > ROUNDS for times in self._times.values()):
            self._choose()

    def _choose(self) -> None:
        plain, ahead = (statistics.median(times[1:]) for times in self._times.values())
        distance = _tuning.PAGE if ahead <= GAIN * plain else 0
        self.ahead[0] = distance
        self._running = False
        _keep(self._threads, self._class, distance)


# -- beside the kernel cache ---------------------------------------------------------------------------------

_known: dict[int, dict[int, int]] = {}


def _path(threads: int) -> Path | None:
    if cache_state.folder is None:
        return None
    # A home may be shared by machines.
    machine = hashlib.sha256(f"{_tuning.PROCESSOR} {os.cpu_count()} {threads}".encode()).hexdigest()[:16]
    return Path(cache_state.folder, f"prefetch-{machine}.json")


def _read(threads: int) -> dict[int, int]:
    path = _path(threads)
    payload = None if path is None else _private.read(path)
    if payload is None:
        return {}
    with suppress(ValueError):
        return {int(key): int(value) for key, value in json.loads(payload).items()}
    return {}


def _keep(threads: int, of_size: int, distance: int) -> None:
    choices(threads)
    _known[threads][of_size] = distance
    path = _path(threads)
    if path is not None:
        # Without a file, the next process times its steps again.
        with suppress(OSError):
            _private.write(path, json.dumps({**_read(threads), **_known[threads]}).encode())
