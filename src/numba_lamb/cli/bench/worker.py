"""One competitor in a process of its own: ``python -m numba_lamb.cli.bench.worker NAME PROFILE THREADS``.

Speaks JSON, one object per line. It says ``{"ready": version}`` or ``{"error": reason}`` first, then answers
each line of its standard input: ``{"warm": seconds}`` with ``{"step_s": seconds}``, and ``{"steps": k}`` with
``{"step_s": seconds}``, the median of k steps.
"""

import importlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterable
from typing import TextIO

from numba_lamb.cli.bench.competitors import COMPETITORS
from numba_lamb.cli.bench.profiles import PROFILES
from numba_lamb.cli.bench.subjects import Subject

__all__ = ["main", "serve", "timed", "warm"]

UNSETTLED = 0.2
"""Steps shorter than this get one untimed step at the start of each turn, which wakes threads and fills caches."""


def main(arguments: list[str]) -> int:
    """Set the competitor up and serve it until standard input ends."""
    name, profile, threads = arguments
    # Ctrl-C is for the parent, which then closes standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not mix with the answers.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        try:
            module, function = COMPETITORS[name].maker.split(":")
            make = getattr(importlib.import_module(module), function)
            subject: Subject = make(PROFILES[profile], int(threads))
        except Exception as error:
            _say(out, error=f"{type(error).__name__}: {error}")
            return 1
        _say(out, ready=subject.version)
        return serve(subject, sys.stdin, out)


def serve(subject: Subject, requests: Iterable[str], out: TextIO) -> int:
    """Answer each request; return the exit code."""
    usual = 0.0
    for line in requests:
        request = json.loads(line)
        try:
            if "warm" in request:
                usual = warm(subject, request["warm"])
                _say(out, step_s=usual)
            else:
                if usual < UNSETTLED:
                    timed(subject, 1)
                _say(out, step_s=timed(subject, request["steps"]))
        except Exception as error:
            _say(out, error=f"{type(error).__name__}: {error}")
            return 1
    return 0


def warm(subject: Subject, seconds: float) -> float:
    """Take steps for so long, a few at least, and return the fastest: what compiles does so here."""
    end = time.perf_counter() + seconds
    times = [timed(subject, 1) for _ in range(subject.warm_steps)]
    while time.perf_counter() < end:
        times.append(timed(subject, 1))
    return min(times)


def timed(subject: Subject, steps: int) -> float:
    """Return the median seconds of so many steps."""
    times = []
    for _ in range(steps):
        if subject.prepare is not None:
            subject.prepare()
        start = time.perf_counter()
        subject.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _say(out: TextIO, **message: object) -> None:
    print(json.dumps(message), file=out, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
