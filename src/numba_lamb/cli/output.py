"""What the command says: one line where something must be mended, and no traceback where nobody can read on."""

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numba_lamb._text import shorten

__all__ = ["Help", "Watched", "fail", "fill", "say", "silence", "width_of"]

_LONGEST_LINE = 1000


def width_of(stream: Any) -> int | None:
    """Return how many columns a stream has: what COLUMNS says, else those of its terminal; None for no end."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (AttributeError, OSError, ValueError):  # no terminal
        return None


def fill(text: str, width: int | None, indent: str = "") -> str:
    """Return a line of text in lines of at most `width`, those after the first indented, no word broken."""
    if width is None or len(text) <= width:
        return text
    return "\n".join(_wrap(text, width, subsequent_indent=indent))


def _wrap(text: str, width: int, **options: Any) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False, **options)


class Help(argparse.HelpFormatter):
    """Help whose names with hyphens stay whole, with the commands right below their heading."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrap(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrapped = _wrap(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent)
        return "\n".join(wrapped)

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):
            # Without a line that says "command" between their heading and the commands.
            return "".join(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)


def fail(command: str, message: str) -> int:
    """Say on standard error what must be mended, in one line unless a terminal has less; return exit code 2."""
    say(command, message)
    return 2


def say(command: str, message: str) -> None:
    """Say something on standard error, as `fail` does."""
    if sys.stderr is not None:
        line = f"{command}: {shorten(' '.join(message.split()), _LONGEST_LINE)}"
        try:
            sys.stderr.write(f"{fill(line, width_of(sys.stderr), '  ')}\n")
            sys.stderr.flush()
        except OSError:
            silence(sys.stderr)


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
