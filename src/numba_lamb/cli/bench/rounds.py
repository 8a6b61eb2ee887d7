"""The measurement: in each round every worker takes a turn, so that whatever drifts hits all alike."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from numba_lamb.cli.bench.competitors import ADAMW, SWEEP, Competitor
from numba_lamb.cli.bench.fleet import Worker, WorkerError, worker_command, worker_environment

__all__ = ["Measurement", "Round", "batches", "measure", "play_rounds"]

Round = dict[str, float]
"""Seconds per step of each competitor in one round, by name."""

WARM_SECONDS = 0.3
TURN_SECONDS = 0.05
"""A turn takes at least so long: many steps where they are short."""
PAUSE_SECONDS = 0.01
"""Between turns, so that the last worker's threads have gone to sleep when the next one starts."""
PROCESS_BYTES = 5e8
"""What a worker needs besides its arrays: libraries and compiled code."""
USABLE = 0.9


class Asked(Protocol):
    """Whom a round asks: a `Worker`, or what stands for one in a test."""

    def ask(self, **request: object) -> dict[str, Any]:
        """Send a request and return the answer."""


@dataclass
class Measurement:
    """What came out of one profile: the rounds, versions by name, and why some were left out."""

    rounds: list[Round] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def leave_out(self, name: str, error: WorkerError) -> None:
        """Drop a competitor and what it did before it failed."""
        self.left_out[name] = str(error)
        for one in self.rounds:
            one.pop(name, None)


def batches(
    competitors: Sequence[Competitor], count: int, available: float | None
) -> tuple[list[list[Competitor]], list[Competitor]]:
    """Share the competitors out over batches that fit into memory, each with the yardsticks in it.

    Parameters
    ----------
    competitors : sequence of Competitor
        Who takes part.
    count : int
        Parameters of the profile.
    available : float or None
        Free memory in bytes; None where nobody knows, which makes one batch of all.

    Returns
    -------
    batches : list of list of Competitor
        Those measured together.
    too_large : list of Competitor
        Those that do not fit even with the yardsticks alone.
    """
    limit = math.inf if available is None else USABLE * available

    def fits(together: Sequence[Competitor]) -> bool:
        held = sum(one.resident * count + PROCESS_BYTES for one in together)
        return held + max(one.transient for one in together) * count <= limit

    yardsticks = [one for one in competitors if one.name in (ADAMW, SWEEP)]
    found: list[list[Competitor]] = []
    too_large = []
    batch = list(yardsticks)
    for one in competitors:
        if one in yardsticks:
            continue
        if not fits([*batch, one]):
            if len(batch) > len(yardsticks):
                found.append(batch)
            batch = list(yardsticks)
            if not fits([*batch, one]):
                too_large.append(one)
                continue
        batch.append(one)
    if len(batch) > len(yardsticks) or (not found and batch and fits(batch)):
        found.append(batch)
    elif not found:
        too_large += yardsticks
    return found, too_large


def measure(
    profile: str,
    batch: Iterable[Competitor],
    *,
    threads: int,
    rounds: int,
    into: Measurement,
    on_turn: Callable[[str], None],
    command: Callable[[str, str, int], list[str]] = worker_command,
) -> None:
    """Start a worker for each competitor of a batch, play the rounds, and end the workers.

    Parameters
    ----------
    profile : str
        Name of the shapes.
    batch : iterable of Competitor
        Who is measured together.
    threads, rounds : int
        Threads of each worker, and how many turns each gets.
    into : Measurement
        Takes the results; a worker that fails is left out there, with the reason.
    on_turn : callable
        Called with a name before each warm-up and turn.
    command : callable
        Gives a worker's command line from name, profile and threads.
    """
    environment = worker_environment(threads, os.environ)
    with ExitStack() as stack:
        started = {
            one.name: stack.enter_context(Worker(command(one.name, profile, threads), environment))
            for one in batch
        }
        ready: dict[str, Worker] = {}
        for name, worker in started.items():
            try:
                into.versions[name] = str(worker.answer()["ready"])
                ready[name] = worker
            except WorkerError as error:
                into.leave_out(name, error)
        play_rounds(ready, rounds, into, on_turn)


def play_rounds(
    workers: Mapping[str, Asked], rounds: int, into: Measurement, on_turn: Callable[[str], None]
) -> None:
    """Warm every worker up, then let each take its turn in each round; odd rounds run backwards.

    Backwards, because a steady drift then cancels between two rounds.
    """
    live = dict(workers)
    steps: dict[str, int] = {}

    def turn(name: str, **request: object) -> float | None:
        on_turn(name)
        time.sleep(PAUSE_SECONDS)
        try:
            return float(live[name].ask(**request)["step_s"])
        except WorkerError as error:
            into.leave_out(name, error)
            del live[name]
            return None

    for name in workers:
        usual = turn(name, warm=WARM_SECONDS)
        if usual is not None:
            steps[name] = max(1, math.ceil(TURN_SECONDS / max(usual, 1e-9)))
    for number in range(rounds):
        into.rounds.append({})
        for name in list(live) if number % 2 == 0 else list(reversed(live)):
            seconds = turn(name, steps=steps[name])
            if seconds is not None:
                into.rounds[-1][name] = seconds
