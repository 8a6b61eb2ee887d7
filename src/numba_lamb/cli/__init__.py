"""The ``numba-lamb`` command."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from typing import Any, NoReturn, cast

from numba_lamb import __version__
from numba_lamb._text import shorten
from numba_lamb.cli import bench, info, output, plot, train, variants, verify

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors do not repeat long arguments whole, and which breaks no word."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": output.Help, **options})

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        line = f"{self.prog}: error: {shorten(message, 500)}"
        self.exit(2, f"{output.fill(line, output.width_of(sys.stderr), '  ')}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``numba-lamb`` command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        0 for success, 1 where standard output cannot be written or ``verify`` finds other bits, 2 for what the
        caller must mend, 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With 2 on wrong arguments, and with 0 after ``--help``, as `argparse` does.
    """
    if sys.stdout is None:
        # Before anything is done, and before a file that is opened takes the place of standard output.
        output.fail("numba-lamb", "standard output is closed")
        return 1
    watched = output.Watched(sys.stdout)
    with redirect_stdout(cast(Any, watched)):
        try:
            status = _run(argv)
            # Here, because the interpreter could only complain at its exit.
            watched.flush()
        except (OSError, SystemExit):
            with suppress(OSError):
                watched.flush()
            if watched.problem is None:
                raise
    problem = watched.problem
    if problem is None:
        return status
    output.silence(sys.stdout)
    if not isinstance(problem, BrokenPipeError):
        output.fail("numba-lamb", f"cannot write to standard output: {problem.strerror or problem}")
    return 1


def _run(argv: Sequence[str] | None) -> int:
    parser = _Parser(prog="numba-lamb", description="Layer-wise adaptive optimizers and their schedules.")
    parser.add_argument("--version", action="version", version=f"numba-lamb {__version__}")
    # A title given to `add_subparsers` would put them below the options.
    parser._positionals.title = "commands"
    commands = parser.add_subparsers(metavar="command")
    train.add_parser(commands)
    bench.add_parser(commands)
    plot.add_parser(commands)
    variants.add_parser(commands)
    info.add_parser(commands)
    verify.add_parser(commands)
    parser.set_defaults(run=None)
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        parser.print_help()
        return 0
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        output.fail("numba-lamb", "interrupted")
        return 130
    return status
