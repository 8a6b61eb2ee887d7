"""All runs in their order: the rate search, then the table; it can be stopped after any epoch and resumed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from numba_lamb.cli.train.data import Digits, Task
from numba_lamb.cli.train.model import WIDTHS
from numba_lamb.cli.train.plan import (
    BASE_BATCH,
    CONTESTANTS,
    Run,
    Settings,
    batch_sizes,
    choose,
    search_runs,
    table_runs,
)
from numba_lamb.cli.train.training import Result, Training

STEP_OVERHEAD = 170
"""A step costs about as much as this many samples, on top of its own."""


class Experiment:
    """The rate search and the runs of the table, one after the other.

    Parameters
    ----------
    settings : Settings
        How many seeds, epochs and folds.
    digits : Digits
        The samples and their splits.
    """

    def __init__(self, settings: Settings, digits: Digits) -> None:
        self.settings = settings
        self.samples = len(digits.test.inputs)
        self.results: dict[Run, Result] = {}
        self._digits = digits
        self._current: Training | None = None

    # -- what there is to do -------------------------------------------------------------------------------

    def runs(self) -> Iterator[Run]:
        """Yield all runs in order; those of the table need the results of the search by then."""
        for name, contestant in CONTESTANTS.items():
            for rate in contestant.grid:
                yield from search_runs(name, rate, self.settings)
        for name in CONTESTANTS:
            for batch in batch_sizes(self.samples):
                yield from self.cell(name, batch)

    def cell(self, optimizer: str, batch: int) -> list[Run]:
        """Return the runs of one cell of the table."""
        return table_runs(optimizer, self.chosen_rate(optimizer), batch, self.settings)

    def chosen_rate(self, optimizer: str) -> float:
        """Return the rate that the search chose for the base batch."""
        return choose(self.search_accuracies(optimizer))

    def search_accuracies(self, optimizer: str) -> dict[float, float]:
        """Return the mean accuracy over the folds for each rate of the grid."""
        found = {}
        for rate in CONTESTANTS[optimizer].grid:
            results = [self.results[run] for run in search_runs(optimizer, rate, self.settings)]
            found[rate] = sum(result.accuracy for result in results) / len(results)
        return found

    def total_work(self) -> int:
        """Return the work of all runs, in samples; it does not depend on what the search finds."""
        searches = [
            run
            for name, contestant in CONTESTANTS.items()
            for rate in contestant.grid
            for run in search_runs(name, rate, self.settings)
        ]
        cells = [
            run
            for name in CONTESTANTS
            for batch in batch_sizes(self.samples)
            for run in table_runs(name, 1.0, batch, self.settings)
        ]
        return sum(self._work(run) for run in [*searches, *cells])

    def done_work(self) -> int:
        """Return the work done so far, the current run's epochs included."""
        done = sum(self._work(run) for run in self.results)
        if self._current is not None:
            done += self._work(self._current.run) * len(self._current.losses) // self.settings.epochs
        return done

    def _work(self, run: Run) -> int:
        samples = len(self._task(run).inputs)
        return run.epochs * samples + run.steps(samples) * STEP_OVERHEAD

    def _task(self, run: Run) -> Task:
        return self._digits.test if run.fold is None else self._digits.folds[run.fold]

    # -- doing it ------------------------------------------------------------------------------------------

    def proceed(self, after_epoch: Callable[[Training], bool], after_run: Callable[[Result], None]) -> bool:
        """Train what is left.

        Parameters
        ----------
        after_epoch : callable
            Called with the run in progress after each of its epochs; returns whether to go on.
        after_run : callable
            Called with each new result.

        Returns
        -------
        bool
            False if `after_epoch` ended it; `tree` then holds all there is to resume from.
        """
        for run in self.runs():
            if run in self.results:
                continue
            if self._current is None:
                self._current = self._start(run)
            while not self._current.finished:
                self._current.train_epoch()
                if not after_epoch(self._current):
                    return False
            result = self.results[run] = self._current.result()
            self._current = None
            after_run(result)
        return True

    def _start(self, run: Run) -> Training:
        shown = run.optimizer == "lamb" and run.batch == self.samples and run.seed == 0
        return Training(run, self._task(run), keep_ratios=shown)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def protocol(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with to be resumed: the options and the plan behind them."""
        return {
            **asdict(self.settings),
            "batch_sizes": list(batch_sizes(self.samples)),
            "base_batch": BASE_BATCH,
            "widths": list(WIDTHS),
            "optimizers": {
                name: {"grid": list(contestant.grid), "scaling_exponent": contestant.exponent}
                for name, contestant in CONTESTANTS.items()
            },
        }

    def tree(self) -> dict[str, Any]:
        """Return everything that is needed to go on, as a tree for a checkpoint."""
        return {
            "kind": "numba-lamb train",
            "protocol": self.protocol(),
            "results": [result.tree() for result in self.results.values()],
            "current": None if self._current is None else self._current.tree(),
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Put back what `tree` returned.

        Raises
        ------
        ValueError
            If it comes from something else or from other options; it names the first that differs.
        """
        if tree.get("kind") != "numba-lamb train":
            raise ValueError("it is not a checkpoint of numba-lamb train")
        for key, value in self.protocol().items():
            if tree["protocol"].get(key) != value:
                made_with = tree["protocol"].get(key)
                raise ValueError(f"it was made with {key} = {made_with}, and this run has {value}")
        results = [Result.from_tree(one) for one in tree["results"]]
        self.results = {result.run: result for result in results}
        if tree["current"] is not None:
            self._current = self._start(Run(**tree["current"]["run"]))
            self._current.restore(tree["current"])
