"""What is told of the runs as they go: the one in progress, and a line for whatever is complete."""

from numba_lamb.cli.train.display import Display
from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.plan import CONTESTANTS, MULTIPLES, Run, search_runs
from numba_lamb.cli.train.training import Result, Training


class Progress:
    """Tells a display of epochs and runs.

    Parameters
    ----------
    experiment : Experiment
        Whose runs they are.
    display : Display
        Where to show them.
    """

    def __init__(self, experiment: Experiment, display: Display) -> None:
        self._experiment = experiment
        self._display = display
        self._has_header = False

    def epoch(self, training: Training) -> None:
        """Show the run in progress."""
        run = training.run
        title = CONTESTANTS[run.optimizer].title
        text = f"{title}, search" if run.fold is not None else f"{title}, batch {run.batch}"
        loss = training.losses[-1] if training.losses else None
        self._display.update(text, loss, self._experiment.done_work())

    def run(self, result: Result) -> None:
        """Print a line if `result` is the last of a searched rate, a cell of the table or a row of the map."""
        self._display.advance(self._experiment.done_work())
        run = result.run
        if run.fold is not None:
            runs = search_runs(run.optimizer, run.rate, self._experiment.settings)
            self._tell(run, runs, f"search  {_title(run)}  rate {run.rate:<8.3g}  validation")
            return
        cell = self._experiment.cell(run.optimizer, run.batch)
        if run in cell:
            self._tell(run, cell, f"train   {_title(run)}  batch {run.batch:<4}  rate {run.rate:<8.3g}  test")
        elif run == self._experiment.map_cell(run.optimizer, run.batch, MULTIPLES[-1])[-1]:
            self._tell_row(run)

    def _tell(self, run: Run, runs: list[Run], text: str) -> None:
        if run != runs[-1]:
            return
        stopped = sum(self._experiment.results[one].stopped for one in runs)
        note = f", {stopped} of {len(runs)} not finite" if stopped else ""
        self._display.line(f"{text} {100 * self._experiment.mean_accuracy(runs):.1f} %{note}")

    def _tell_row(self, run: Run) -> None:
        if not self._has_header:
            self._has_header = True
            multiples = "".join(f"{multiple:>6g}" for multiple in MULTIPLES)
            self._display.line(f"map     {'chosen rate times':<24}{multiples}")
        cells = [self._experiment.map_cell(run.optimizer, run.batch, multiple) for multiple in MULTIPLES]
        shares = "".join(f"{100 * self._experiment.mean_accuracy(cell):6.1f}" for cell in cells)
        self._display.line(f"map     {_title(run)}  batch {run.batch:<4}{shares}")


def _title(run: Run) -> str:
    return f"{CONTESTANTS[run.optimizer].title:<12}"
