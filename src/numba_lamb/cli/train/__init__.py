"""``numba-lamb train``: how far does one learning rate, scaled by rule, carry towards the full batch.

This file holds the options and the exits. The rest of the package needs the demo packages and is imported by
`run`: ``data`` and ``model`` (what is trained), ``baselines`` (what LAMB is compared with), ``plan`` and ``rates``
(which runs, at which rates), ``training`` (one run), ``experiment`` (all runs), ``session`` (the command's course:
Ctrl-C, checkpoint, files) with ``compiling`` and ``blas``, ``progress`` and ``display`` (what is shown while it
trains), ``rows``, ``words`` and ``figure`` (what is shown at the end).
"""

import argparse
import importlib.util
import shlex
from pathlib import Path
from typing import Any

from numba_lamb._install import how_to_install
from numba_lamb.cli.output import fail

__all__ = ["add_parser", "run"]

_DEMO_PACKAGES = ("rich", "matplotlib")
_SEEDS = 3
_EPOCHS = 20
_FOLDS = 5
_QUICK_FOLDS = 3


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add ``train`` and its options to the subcommands of ``numba-lamb``."""
    parser = commands.add_parser(
        "train",
        help="train a small network on handwritten digits at growing batch sizes",
        description=(
            "Train a multilayer perceptron on 1,437 handwritten digits with LAMB, Adam and momentum SGD at the "
            "full batch and at batch sizes 128 and 32. Each optimizer's rate was chosen at batch 32 by "
            "cross-validation and is only scaled by rule from there; none decays weights. A map shows "
            "what rates from a twentieth to five times that one reach. Writes train.png, results.json and "
            "checkpoint.npz."
        ),
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"one seed, and with --search {_QUICK_FOLDS} of the {_FOLDS} folds",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help=(
            f"choose the rates anew, by {_FOLDS}-fold cross-validation, and say whether they differ from the "
            "package's"
        ),
    )
    parser.add_argument(
        "--seeds",
        type=_at_least(1),
        metavar="N",
        help=f"train with seeds 0 to N-1 (default {_SEEDS}; 1 with --quick)",
    )
    parser.add_argument(
        "--epochs",
        type=_at_least(2),
        default=_EPOCHS,
        metavar="N",
        help=f"epochs of each run (default {_EPOCHS})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("numba-lamb-train"),
        metavar="DIR",
        help="folder for the output (default numba-lamb-train); an earlier run's files there are replaced",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in DIR; needs the same options as before",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``numba-lamb train`` and return the exit code."""
    missing = [name for name in _DEMO_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"needs {', '.join(missing)}: {how_to_install('demo')}")
    from numba_lamb.cli.train.plan import Settings
    from numba_lamb.cli.train.session import SessionError, hold_session

    default_seeds, folds = (1, _QUICK_FOLDS) if arguments.quick else (_SEEDS, _FOLDS)
    seeds = default_seeds if arguments.seeds is None else arguments.seeds
    settings = Settings(seeds, arguments.epochs, folds if arguments.search else 0)
    try:
        finished = hold_session(settings, arguments.out, resume=arguments.resume)
    except SessionError as error:
        return _fail(str(error))
    if not finished:
        print(f"Interrupted; go on with: {_resume_command(arguments)}")
        return 130
    return 0


def _resume_command(arguments: argparse.Namespace) -> str:
    words = ["numba-lamb", "train"]
    if arguments.quick:
        words.append("--quick")
    if arguments.search:
        words.append("--search")
    if arguments.seeds is not None:
        words += ["--seeds", str(arguments.seeds)]
    if arguments.epochs != _EPOCHS:
        words += ["--epochs", str(arguments.epochs)]
    return shlex.join([*words, "--out", str(arguments.out), "--resume"])


def _at_least(low: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, not {value}")
        return value

    return number


def _fail(message: str) -> int:
    return fail("numba-lamb train", message)
