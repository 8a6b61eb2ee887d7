"""All runs in their order: rate search if asked for, table, map; it can be stopped after any epoch and resumed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from numba_lamb._text import shorten
from numba_lamb.cli.train import fit, rates
from numba_lamb.cli.train.data import Digits, Task
from numba_lamb.cli.train.model import WIDTHS
from numba_lamb.cli.train.plan import (
    BASE_BATCH,
    CONTESTANTS,
    MULTIPLES,
    Run,
    Settings,
    batch_sizes,
    choose,
    map_runs,
    search_runs,
    table_runs,
)
from numba_lamb.cli.train.training import Result, Training

_KIND = "numba-lamb train"

STEP_OVERHEAD = 60
"""A step costs about as much as this many samples, on top of its own."""


class Experiment:
    """The rate search and the runs of table and map, one after the other.

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
        self._finished_work = 0

    # -- what there is to do -------------------------------------------------------------------------------

    def runs(self) -> Iterator[Run]:
        """Yield all runs in order; those after the search need its results by then."""
        yield from self._search_runs()
        yield from self._judged_runs(self.chosen_rate)

    def _search_runs(self) -> Iterator[Run]:
        for name, contestant in CONTESTANTS.items():
            for rate in contestant.grid:
                yield from search_runs(name, rate, self.settings)

    def _judged_runs(self, base_rate: Callable[[str], float]) -> Iterator[Run]:
        for batch in batch_sizes(self.samples):
            for name in CONTESTANTS:
                yield from table_runs(name, base_rate(name), batch, self.settings)
        for name in CONTESTANTS:
            for batch in batch_sizes(self.samples):
                for multiple in MULTIPLES:
                    # The table has those of the chosen rate itself.
                    if multiple != 1:
                        yield from map_runs(
                            name, multiple * base_rate(name), batch, self.settings, self.samples
                        )

    def cell(self, optimizer: str, batch: int) -> list[Run]:
        """Return the runs of one cell of the table."""
        return table_runs(optimizer, self.chosen_rate(optimizer), batch, self.settings)

    def map_cell(self, optimizer: str, batch: int, multiple: float) -> list[Run]:
        """Return the runs of one cell of the map."""
        return map_runs(optimizer, multiple * self.chosen_rate(optimizer), batch, self.settings, self.samples)

    def mean_accuracy(self, runs: Sequence[Run]) -> float:
        """Return the mean accuracy of runs that are done."""
        return sum(self.results[run].accuracy for run in runs) / len(runs)

    def chosen_rate(self, optimizer: str) -> float:
        """Return the rate for the base batch: what the search chose, or without one what the package has."""
        if self.settings.folds:
            return choose(self.search_accuracies(optimizer))
        return rates.chosen(optimizer)

    def search_accuracies(self, optimizer: str) -> dict[float, float]:
        """Return the mean accuracy over the folds for each rate of the grid."""
        return {
            rate: self.mean_accuracy(search_runs(optimizer, rate, self.settings))
            for rate in CONTESTANTS[optimizer].grid
        }

    def total_work(self) -> int:
        """Return the work of all runs, in samples; it does not depend on what the search finds."""
        return sum(self._work(run) for run in [*self._search_runs(), *self._judged_runs(lambda name: 1.0)])

    def done_work(self) -> int:
        """Return the work done so far, the current run's epochs included."""
        done = self._finished_work
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
            result = self._current.result()
            self._keep(result)
            self._current = None
            after_run(result)
        return True

    def _keep(self, result: Result) -> None:
        self.results[result.run] = result
        self._finished_work += self._work(result.run)

    def _start(self, run: Run) -> Training:
        return Training(run, self._task(run), keep_ratios=self._is_shown(run))

    def _is_shown(self, run: Run) -> bool:
        # No rate is chosen before the runs of the search are done.
        return run.fold is None and run == self.cell("lamb", self.samples)[0]

    # -- checkpoints ---------------------------------------------------------------------------------------

    def protocol(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with to be resumed: the options and the plan behind them."""
        return {
            **asdict(self.settings),
            "batch_sizes": list(batch_sizes(self.samples)),
            "base_batch": BASE_BATCH,
            "widths": list(WIDTHS),
            "map_multiples": list(MULTIPLES),
            "optimizers": {
                name: {
                    "grid": list(contestant.grid),
                    "scaling_exponent": contestant.exponent,
                    "rate_of_the_package": rates.chosen(name),
                }
                for name, contestant in CONTESTANTS.items()
            },
        }

    def tree(self) -> dict[str, Any]:
        """Return everything that is needed to go on, as a tree for a checkpoint."""
        tree = {
            "kind": _KIND,
            "protocol": self.protocol(),
            "results": [result.tree() for result in self.results.values()],
            "current": None if self._current is None else self._current.tree(),
        }
        return {**tree, "digest": fit.digest(tree)}

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Put back what `tree` returned.

        Raises
        ------
        ValueError
            If it comes from something else or from other options, naming the first that differs, or has been
            changed.
        """
        if repr(tree.get("kind")) != repr(_KIND) or not isinstance(tree.get("protocol"), dict):
            raise ValueError(f"it is not a checkpoint of {_KIND}")
        for key, value in self.protocol().items():
            made_with = tree["protocol"].get(key)
            # As text, in which 1, 1.0 and True differ.
            if repr(made_with) != repr(value):
                raise ValueError(
                    f"it was made with {key} = {shorten(repr(made_with))}, and this run has {value}"
                )
        fit.check_same(tree["protocol"], self.protocol(), "protocol")
        fit.check_keys(tree, self.tree().keys(), "its tree")
        told = {key: value for key, value in tree.items() if key != "digest"}
        fit.check_same(tree["digest"], fit.digest(told), "its digest")
        self._take_over(tree["results"], tree["current"])

    def _take_over(self, results: Any, current: Any) -> None:
        fit.require(isinstance(results, list), "results", "a list", results)
        self.results, self._finished_work = {}, 0
        # The runs after the search depend on its results, which are there by then.
        runs = self.runs()
        for k, one in enumerate(results):
            run = next(runs, None)
            if run is None:
                raise ValueError(f"results must be a list of {k}, got a list of {len(results)}")
            self._keep(
                Result.from_tree(
                    one, run, self._task(run), keeps_ratios=self._is_shown(run), where=f"results[{k}]"
                )
            )
        run = next(runs, None)
        if run is None or current is None:
            fit.check_same(current, None, "current")
            self._current = None
        else:
            started = self._start(run)
            started.restore(current, "current")
            self._current = started
