"""The ``numba-lamb`` command."""

import argparse
import sys
from collections.abc import Sequence

from numba_lamb.cli import bench, info, plot, train

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``numba-lamb`` command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        0 for success, 2 for what the caller must mend, 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With 2 on wrong arguments, and with 0 after ``--help``, as `argparse` does.
    """
    parser = argparse.ArgumentParser(
        prog="numba-lamb", description="Layer-wise adaptive optimizers and their schedules."
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    train.add_parser(commands)
    bench.add_parser(commands)
    plot.add_parser(commands)
    info.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("numba-lamb: interrupted", file=sys.stderr)
        return 130
    return status
