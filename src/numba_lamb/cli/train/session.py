"""The course of the command: start or resume, train until done or Ctrl-C, keep a checkpoint, write files."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap

from rich.console import Console

from numba_lamb import checkpoint
from numba_lamb.cli.train import blas, data, table, words
from numba_lamb.cli.train.compiling import warm_up
from numba_lamb.cli.train.display import Display
from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.plan import Settings
from numba_lamb.cli.train.progress import Progress
from numba_lamb.cli.train.training import Training

SECONDS_BETWEEN_CHECKPOINTS = 5.0


class SessionError(Exception):
    """What the caller must mend, said in one line."""


def hold_session(settings: Settings, out: Path, *, resume: bool) -> bool:
    """Train, and write the figure, the results and the checkpoint into `out`.

    Parameters
    ----------
    settings : Settings
        What the options decided.
    out : pathlib.Path
        The output folder, made if it is not there.
    resume : bool
        Go on from the checkpoint in `out`.

    Returns
    -------
    bool
        False if Ctrl-C ended it; the checkpoint is then up to date.

    Raises
    ------
    SessionError
        If there is nothing to resume from, or the checkpoint has other settings.
    """
    console = _console()
    experiment = Experiment(settings, data.load())
    path = out / "checkpoint.npz"
    if resume:
        _restore(experiment, path)
    _make_folder(out)
    warm_up(lambda text: _say(console, text))
    with blas.one_thread():
        finished = _train(experiment, path, console)
    if not finished:
        return False
    # Here, because it costs the first second of a command that has nothing to draw yet.
    from numba_lamb.cli.train import figure

    results = json.dumps(table.json_tree(experiment), indent=2, allow_nan=False)
    (out / "results.json").write_text(results + "\n")
    figure.draw(experiment, out / "train.png")
    console.print()
    _say(console, words.caption(experiment))
    console.print(table.rich_table(experiment, ascii_only=not console.is_terminal))
    if settings.folds:
        _say(console, words.search_verdict(experiment))
    _say(console, words.carried(experiment))
    _say(console, words.best(experiment))
    _say(console, f"Wrote train.png, results.json and checkpoint.npz into {out}")
    return True


def _say(console: Console, text: str) -> None:
    """Print `text`, in a terminal with lines broken between words alone; a word may be longer than a line."""
    if console.is_terminal:
        text = "\n".join(wrap(text, console.width, break_long_words=False, break_on_hyphens=False))
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    # Told outright, since environment variables can make rich send control codes into a file.
    is_terminal = sys.stdout.isatty()
    return Console(force_terminal=is_terminal, width=None if is_terminal else 100)


def _restore(experiment: Experiment, path: Path) -> None:
    try:
        experiment.restore(checkpoint.load(path))
    except FileNotFoundError as error:
        raise SessionError(f"there is no checkpoint at {path}; start without --resume") from error
    except ValueError as error:
        raise SessionError(f"cannot resume from {path}: {error}") from error
    except OSError as error:
        raise SessionError(f"cannot read {path}: {error.strerror or error}") from error


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SessionError(f"cannot make the folder {out}: {error.strerror}") from error


def _train(experiment: Experiment, path: Path, console: Console) -> bool:
    with (
        _interrupts() as interrupted,
        Display(console, experiment.total_work(), experiment.done_work()) as display,
    ):
        progress = Progress(experiment, display)
        saved = time.monotonic()

        def after_epoch(training: Training) -> bool:
            nonlocal saved
            if interrupted():
                return False
            progress.epoch(training)
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                checkpoint.save(path, experiment.tree())
                saved = time.monotonic()
            return True

        finished = experiment.proceed(after_epoch, progress.run)
        checkpoint.save(path, experiment.tree())
    return finished


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C instead of raising, so that no step is cut in half; yields whether it came."""
    came = False

    def note(number: int, frame: object) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
