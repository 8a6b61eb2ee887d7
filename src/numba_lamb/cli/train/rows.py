"""The table as data, as a rich table, as JSON, and in one sentence."""

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.plan import BASE_BATCH, CONTESTANTS, batch_sizes


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


def table_rows(experiment: Experiment) -> list[Row]:
    """Return the rows of a finished experiment, optimizer by optimizer, the full batch last."""
    rows = []
    for name in CONTESTANTS:
        for batch in batch_sizes(experiment.samples):
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


def rich_table(experiment: Experiment, *, ascii_only: bool) -> Table:
    """Return the table to print; `caption` says what is in it."""
    table = Table(box=box.ASCII if ascii_only else box.ROUNDED)
    table.add_column("batch size\nsteps", no_wrap=True)
    rows = table_rows(experiment)
    for row in rows[: len(rows) // len(CONTESTANTS)]:
        full = " (full)" if row.batch_size == experiment.samples else ""
        table.add_column(f"{row.batch_size}{full}\n{row.steps}", justify="right", no_wrap=True)
    for name, contestant in CONTESTANTS.items():
        cells = [_cell(row) for row in rows if row.optimizer == name]
        table.add_row(f"{contestant.title}\n{_labels(experiment)}", *cells, end_section=True)
    return table


def caption(experiment: Experiment) -> str:
    """Return what the printed table holds, in one line."""
    seeds = experiment.settings.seeds
    spread = f"mean and range over {seeds} seeds" if seeds > 1 else "one seed"
    return f"Test accuracy in %, {spread}:"


def _labels(experiment: Experiment) -> str:
    return "  min-max\n  peak rate" if experiment.settings.seeds > 1 else "  peak rate"


def _cell(row: Row) -> str:
    spread = f"\n{100 * row.low:.1f}-{100 * row.high:.1f}" if len(row.accuracies) > 1 else ""
    return f"{100 * row.mean:.1f}{spread}\n{row.peak_rate:.3g}"


def summary(experiment: Experiment) -> str:
    """Return what the table says about the full batch, in one sentence."""
    full = [row for row in table_rows(experiment) if row.batch_size == experiment.samples]
    parts = []
    for row in full:
        stopped = f" ({row.stopped} of {len(row.accuracies)} runs not finite)" if row.stopped else ""
        parts.append(f"{CONTESTANTS[row.optimizer].title} {100 * row.mean:.1f} %{stopped}")
    how = f"{full[0].steps} steps, rates chosen at batch {BASE_BATCH} and scaled by rule"
    return f"Full batch, {how}, none tuned there: {', '.join(parts)}."


def json_tree(experiment: Experiment) -> dict[str, Any]:
    """Return the table, the rate search and the settings for ``results.json``."""
    return {
        "format_version": 1,
        "summary": summary(experiment),
        "settings": experiment.protocol(),
        "rate_search": {
            name: {
                "chosen_rate": experiment.chosen_rate(name),
                "tried": [
                    {"rate": rate, "mean_validation_accuracy": accuracy}
                    for rate, accuracy in experiment.search_accuracies(name).items()
                ],
            }
            for name in CONTESTANTS
        },
        "rows": [asdict(row) for row in table_rows(experiment)],
    }
