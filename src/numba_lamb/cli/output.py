"""What the command says: one line where something must be mended, and no traceback where nobody can read on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numba_lamb._text import shorten

__all__ = ["Watched", "fail", "silence"]

_LONGEST_LINE = 1000


def fail(command: str, message: str) -> int:
    """Say on standard error, in one line whatever was given, what must be mended; return exit code 2."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(f"{command}: {shorten(' '.join(message.split()), _LONGEST_LINE)}\n")
            sys.stderr.flush()
        except OSError:
            silence(sys.stderr)
    return 2


class Watched:
    """A stream that remembers why it could not be written: many an error has no other sign of where it is from."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.problem: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, as the stream does."""
        with self._noting():
            return int(self._stream.write(text))

    def flush(self) -> None:
        """Flush the stream."""
        with self._noting():
            self._stream.flush()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.problem = error
            raise


def silence(stream: Any) -> None:
    """Send a stream nowhere from now on, so that the interpreter has nothing to complain of at its exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
