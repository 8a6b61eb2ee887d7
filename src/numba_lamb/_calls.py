"""Calls in order with no Python instruction in between, where Python would look for signals."""

from collections import deque
from collections.abc import Callable, Iterable
from operator import call
from typing import Any


def run_in_order(calls: Iterable[Callable[[], Any]]) -> None:
    """Call one after another: an interrupt comes before the first or after the last."""
    deque(map(call, calls), maxlen=0)
