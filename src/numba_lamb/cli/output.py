"""What the command says: one line where something must be mended, and no traceback where nobody can read on."""

import os
import sys
from contextlib import suppress

from numba_lamb._text import shorten

__all__ = ["fail", "silence", "unwritable"]

_LONGEST_LINE = 1000


def fail(command: str, message: str) -> int:
    """Say on standard error, in one line whatever was given, what must be mended; return exit code 2."""
    # Nothing can be said where standard error is closed or full.
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"{command}: {shorten(' '.join(message.split()), _LONGEST_LINE)}\n")
        sys.stderr.flush()
    return 2


def unwritable() -> OSError | None:
    """Return why standard output cannot be written, None where it can."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def silence() -> None:
    """Send standard output nowhere from now on, so that the interpreter has nothing to complain of at its exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
