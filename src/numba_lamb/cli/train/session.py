"""The course of the command: start or resume, train until done or Ctrl-C, keep a checkpoint, write files."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from numba_lamb import checkpoint
from numba_lamb.cli.train import data, figure, rows
from numba_lamb.cli.train.display import Display
from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.plan import CONTESTANTS, Settings, search_runs
from numba_lamb.cli.train.training import Result, Training

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
    # One BLAS thread: sums then have one order on any number of cores, and matrices this small gain nothing.
    with threadpool_limits(limits=1, user_api="blas"):
        finished = _train(experiment, path, console)
    if not finished:
        return False
    results = json.dumps(rows.json_tree(experiment), indent=2, allow_nan=False)
    (out / "results.json").write_text(results + "\n")
    figure.draw(experiment, out / "train.png")
    console.print()
    console.print(rows.caption(experiment), highlight=False)
    console.print(rows.rich_table(experiment, ascii_only=not console.is_terminal))
    for line in (rows.summary(experiment), f"Wrote train.png, results.json and checkpoint.npz into {out}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return True


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
        saved = time.monotonic()

        def after_epoch(training: Training) -> bool:
            nonlocal saved
            if interrupted():
                return False
            display.update(
                _describe(training),
                training.losses[-1] if training.losses else None,
                training.schedule(max(training.steps - 1, 0)),
                experiment.done_work(),
            )
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                checkpoint.save(path, experiment.tree())
                saved = time.monotonic()
            return True

        finished = experiment.proceed(after_epoch, lambda result: _report(experiment, result, display))
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


def _describe(training: Training) -> str:
    run = training.run
    title = CONTESTANTS[run.optimizer].title
    return f"{title}, search" if run.fold is not None else f"{title}, batch {run.batch}"


def _report(experiment: Experiment, result: Result, display: Display) -> None:
    """Print a line when `result` is the last of a searched rate or of a cell of the table."""
    run = result.run
    title = CONTESTANTS[run.optimizer].title
    if run.fold is not None:
        runs = search_runs(run.optimizer, run.rate, experiment.settings)
        text = f"search  {title:<12}  rate {run.rate:<8.3g}  validation"
    else:
        runs = experiment.cell(run.optimizer, run.batch)
        text = f"train   {title:<12}  batch {run.batch:<4}  rate {run.rate:<8.3g}  test"
    display.advance(experiment.done_work())
    if run != runs[-1]:
        return
    found = [experiment.results[one] for one in runs]
    stopped = sum(one.stopped for one in found)
    note = f", {stopped} of {len(found)} not finite" if stopped else ""
    display.line(f"{text} {100 * sum(one.accuracy for one in found) / len(found):.1f} %{note}")
