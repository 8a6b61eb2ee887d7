"""Programs: kernels bound to the arrays they work on, run one after another by a single call into C.

Python looks for signals between its own instructions. Between the kernels of a program there are none, so a
KeyboardInterrupt comes before the first of them or after the last.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from numba import typeof

from numba_lamb._compile import Kernel

PARALLEL_FROM = 16
"""Chunks from which threads are used: below it, waking them costs more than they save."""


class Work(NamedTuple):
    """A kernel with its arguments, which are arrays, and the chunks that it has to do."""

    kernel: Kernel
    chunks: int
    arguments: tuple[Any, ...]

    def bound(self, threaded: bool) -> Callable[[], Any]:
        """Return it compiled, as something that runs it without Python when called."""
        dispatcher: Any = self.kernel.parallel if threaded and self.is_threaded else self.kernel.serial
        return partial(dispatcher.compile(tuple(map(typeof, self.arguments))), *self.arguments)

    @property
    def is_threaded(self) -> bool:
        """Whether there is work for threads."""
        return self.chunks >= PARALLEL_FROM


class Program:
    """Work in order, compiled for one thread or for many when that is first asked for."""

    def __init__(self, work: Sequence[Work]) -> None:
        self._work = tuple(work)
        self._bound: dict[bool, list[Callable[[], Any]]] = {}
        self.chunks = max((each.chunks for each in work), default=0)
        """The most that any of it has to do."""

    def bound(self, threaded: bool) -> list[Callable[[], Any]]:
        """Return all of it, bound; this may compile, and so be interrupted."""
        if threaded not in self._bound:
            self._bound[threaded] = [each.bound(threaded) for each in self._work]
        return self._bound[threaded]
