"""Ranks that are threads of one process."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from numba_lamb.comm import CommError

LIMIT = 60.0


class _Meeting:
    """What all ranks of a group have told; with `turns` only one of them runs until it waits for the others."""

    def __init__(self, size: int, turns: bool = False) -> None:
        self.barrier, self.told = threading.Barrier(size, timeout=LIMIT), [np.zeros(0)] * size
        self.turn = threading.Lock() if turns else None

    def all(self, rank: int, values: Any) -> list[Any]:
        self.told[rank] = values.copy()
        self._wait()
        told = list(self.told)
        self._wait()
        return told

    def _wait(self) -> None:
        if self.turn:
            self.turn.release()
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise CommError("a rank is gone") from error
        finally:
            if self.turn:
                self.turn.acquire()


class ThreadComm:
    """One rank of a group of threads."""

    sharing = 1

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank, self.size, self._meeting = rank, len(meeting.told), meeting
        self.bytes = 0
        self.messages = 0

    def _told(self, values: Any) -> list[Any]:
        self.bytes += values.nbytes
        self.messages += 1
        return self._meeting.all(self.rank, values.reshape(-1))

    def all_gather(self, out: Any, values: Any) -> Callable[[], None]:
        told = np.concatenate(self._told(values))
        return lambda: out.reshape(-1).__setitem__(slice(None), told)

    def all_to_all(self, out: Any, values: Any) -> Callable[[], None]:
        parts = np.concatenate([one.reshape(self.size, -1)[self.rank] for one in self._told(values)])
        return lambda: out.__setitem__(slice(None), parts)


def on_ranks(size: int, work: Callable[[ThreadComm], Any], turns: bool = False) -> list[Any]:
    """Return what `work` returned on each rank, or raise the first rank's error.

    With `turns` ranks run one at a time, so that they may share what is not made for several threads.
    """
    meeting, found, errors = _Meeting(size, turns), [None] * size, [None] * size

    def run(rank: int) -> None:
        with meeting.turn or nullcontext():
            try:
                found[rank] = work(ThreadComm(rank, meeting))
            except BaseException as error:
                errors[rank] = error
                meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raised = [error for error in errors if error is not None]
    # What a rank raised itself tells more than that it is gone.
    raised.sort(key=lambda error: isinstance(error, CommError))
    if raised:
        raise raised[0]
    return found
