"""Table and map as data, as a rich table, and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from numba_lamb.cli.train import rates, words
from numba_lamb.cli.train.data import FOLDS
from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.plan import BASE_BATCH, CONTESTANTS, MULTIPLES, batch_sizes


@dataclass(frozen=True)
class Row:
    """One optimizer at one batch size; `mean`, `low` and `high` are of the test accuracies over the seeds.

    Attributes
    ----------
    stopped : int
        How many of the runs were stopped at values that were not finite.
    weights_sha256 : list of str
        Digests of the final weights, one per seed: equal digests, equal bits.
    """

    optimizer: str
    batch_size: int
    steps: int
    peak_rate: float
    mean: float
    low: float
    high: float
    stopped: int
    accuracies: list[float]
    weights_sha256: list[str]


@dataclass(frozen=True)
class Cell:
    """One optimizer at one batch size from `multiple` times its chosen rate: a cell of the map."""

    optimizer: str
    batch_size: int
    multiple: float
    peak_rate: float
    mean: float
    stopped: int
    accuracies: list[float]


def table_rows(experiment: Experiment) -> list[Row]:
    """Return the rows of a finished experiment, batch size by batch size, the full batch first."""
    rows = []
    for batch in batch_sizes(experiment.samples):
        for name in CONTESTANTS:
            runs = experiment.cell(name, batch)
            results = [experiment.results[run] for run in runs]
            accuracies = [result.accuracy for result in results]
            rows.append(
                Row(
                    optimizer=name,
                    batch_size=batch,
                    steps=runs[0].steps(experiment.samples),
                    peak_rate=runs[0].rate,
                    mean=sum(accuracies) / len(accuracies),
                    low=min(accuracies),
                    high=max(accuracies),
                    stopped=sum(result.stopped for result in results),
                    accuracies=accuracies,
                    weights_sha256=[result.weights_sha256 for result in results],
                )
            )
    return rows


def map_cells(experiment: Experiment) -> list[Cell]:
    """Return the cells of the map of a finished experiment, optimizer by optimizer, the full batch first."""
    cells = []
    for name in CONTESTANTS:
        for batch in batch_sizes(experiment.samples):
            for multiple in MULTIPLES:
                runs = experiment.map_cell(name, batch, multiple)
                results = [experiment.results[run] for run in runs]
                cells.append(
                    Cell(
                        optimizer=name,
                        batch_size=batch,
                        multiple=multiple,
                        peak_rate=runs[0].rate,
                        mean=experiment.mean_accuracy(runs),
                        stopped=sum(result.stopped for result in results),
                        accuracies=[result.accuracy for result in results],
                    )
                )
    return cells


def rich_table(experiment: Experiment, *, ascii_only: bool) -> Table:
    """Return the table to print; `words.caption` says what is in it."""
    table = Table(box=box.ASCII if ascii_only else box.ROUNDED, show_lines=True)
    table.add_column("batch size\nsteps", no_wrap=True)
    for contestant in CONTESTANTS.values():
        table.add_column(f"{contestant.title}\npeak rate", justify="right", no_wrap=True)
    rows = table_rows(experiment)
    for batch in batch_sizes(experiment.samples):
        cells = [row for row in rows if row.batch_size == batch]
        full = " (full)" if batch == experiment.samples else ""
        table.add_row(f"{batch}{full}\n{cells[0].steps} steps", *map(_text, cells))
    return table


def _text(row: Row) -> str:
    spread = f" ({100 * row.low:.1f}-{100 * row.high:.1f})" if len(row.accuracies) > 1 else ""
    return f"{100 * row.mean:.1f}{spread}\n{row.peak_rate:.3g}"


def json_tree(experiment: Experiment) -> dict[str, Any]:
    """Return table, map, the choice of the rates and the settings for ``results.json``."""
    searched = bool(experiment.settings.folds)
    return {
        "format_version": 2,
        "summary": words.summary(experiment),
        "settings": experiment.protocol(),
        "rates_searched_in_this_run": searched,
        "rate_search": _search(experiment) if searched else rates.brought(),
        "rows": [asdict(row) for row in table_rows(experiment)],
        "map": [asdict(cell) for cell in map_cells(experiment)],
    }


def _search(experiment: Experiment) -> dict[str, Any]:
    settings = experiment.settings
    return {
        "how": (
            f"mean accuracy over {settings.folds} of {FOLDS} folds of the training samples, at batch {BASE_BATCH} "
            f"with {settings.epochs} epochs; the best is chosen, among equals the largest"
        ),
        "batch_size": BASE_BATCH,
        "epochs": settings.epochs,
        "folds": settings.folds,
        "rates": {
            name: {
                "chosen_rate": experiment.chosen_rate(name),
                "tried": [
                    {"rate": rate, "mean_validation_accuracy": accuracy}
                    for rate, accuracy in experiment.search_accuracies(name).items()
                ],
            }
            for name in CONTESTANTS
        },
    }
