"""``train.png``: how far rates carry over, the full batch's learning curves, and LAMB's trust ratios there."""

from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from numba_lamb._heatmap import draw_heatmap
from numba_lamb.cli.train import words
from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.model import SHAPES
from numba_lamb.cli.train.plan import BASE_BATCH, CONTESTANTS, MULTIPLES, batch_sizes

# Okabe and Ito's colours, which stay apart for every kind of colour vision; dashes keep them apart in print.
_STYLES = {"lamb": ("#0072B2", "-"), "adam": ("#E69F00", (0, (5, 1.5))), "sgd": ("#CC79A7", (0, (1.2, 1.2)))}
_RULES = {0.5: "√(batch/{})", 1.0: "batch/{}"}
_GREY = "#555555"

SHOWN_LOSS = 100.0
"""Where the axis of the losses ends at the latest."""

SHOWN_ACCURACY = 80.0
"""Where the map's colours begin, in %: what lies below has one colour, so that the good cells have many."""


def draw(experiment: Experiment, path: Path) -> None:
    """Draw the map and the two panels below it of a finished experiment into `path`."""
    figure = Figure(figsize=(12.5, 8.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=(1.15, 1), hspace=0.05))
    _draw_map(experiment, above)
    curves, ratios = below.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_curves(experiment, curves)
    _draw_ratios(experiment, ratios)
    figure.savefig(path)


def _draw_map(experiment: Experiment, figure: Any) -> None:
    batches = batch_sizes(experiment.samples)
    found = {
        name: [
            [100 * experiment.mean_accuracy(experiment.map_cell(name, batch, each)) for each in MULTIPLES]
            for batch in batches
        ]
        for name in CONTESTANTS
    }
    highest = max(max(map(max, cells)) for cells in found.values())
    scale = colors.Normalize(min(SHOWN_ACCURACY, highest - 1), highest)
    panels = figure.subplots(1, len(CONTESTANTS), sharey=True)
    for axes, (name, cells) in zip(panels, found.items(), strict=True):
        mesh = axes.pcolormesh(cells, norm=scale, cmap="viridis", edgecolor="white", linewidth=1)
        for row, values in enumerate(cells):
            for column, value in enumerate(values):
                ink = "black" if scale(value) > 0.6 else "white"
                axes.text(
                    column + 0.5, row + 0.5, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=11
                )
        chosen = MULTIPLES.index(1)
        axes.add_patch(
            Rectangle(
                (chosen, 0), 1, len(batches), fill=False, edgecolor="#D55E00", linewidth=2.5, clip_on=False
            )
        )
        contestant = CONTESTANTS[name]
        rate = experiment.chosen_rate(name)
        axes.set_xticks(np.arange(len(MULTIPLES)) + 0.5, [f"{each * rate:.3g}" for each in MULTIPLES])
        steps = [experiment.cell(name, batch)[0].steps(experiment.samples) for batch in batches]
        labels = [f"{batch}\n{count} steps" for batch, count in zip(batches, steps, strict=True)]
        axes.set_yticks(np.arange(len(batches)) + 0.5, [labels[0].replace("\n", " (full)\n"), *labels[1:]])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        rule = _RULES[contestant.exponent].format(BASE_BATCH)
        _name(axes, contestant.title, f"rate at batch {BASE_BATCH}; in each row times {rule}", "")
    panels[0].invert_yaxis()
    panels[0].set_ylabel("batch size", color=_GREY)
    bar = figure.colorbar(mesh, ax=panels, pad=0.01, extend="min", aspect=18)
    bar.set_label("test accuracy in %", color=_GREY)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    heading = f"Test accuracy by rate and batch size; framed: the rate chosen at batch {BASE_BATCH}"
    figure.suptitle(heading, x=0.005, ha="left", fontsize=13, fontweight="bold")
    seeds = experiment.settings.seeds
    spread = (
        f"The row of the full batch: mean of {seeds} seeds; other rows: one seed."
        if seeds > 1
        else "One seed."
    )
    lines = (words.carried(experiment), words.best(experiment), spread)
    figure.supxlabel("\n".join(lines), x=0.005, ha="left", fontsize=10.5)


def _draw_curves(experiment: Experiment, axes: Axes) -> None:
    for name, (color, dashes) in _STYLES.items():
        results = [experiment.results[run] for run in experiment.cell(name, experiment.samples)]
        for result in results:
            axes.plot(range(1, len(result.losses) + 1), result.losses, color=color, alpha=0.3, linewidth=0.9)
        reached = min(len(result.losses) for result in results)
        middle = np.median([result.losses[:reached] for result in results], axis=0)
        accuracy = 100 * experiment.mean_accuracy([result.run for result in results])
        label = f"{CONTESTANTS[name].title}: test {accuracy:.1f} %"
        axes.plot(range(1, reached + 1), middle, color=color, linestyle=dashes, linewidth=2.2, label=label)
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    # Room for the legend below, and no decades given away to a diverging run.
    axes.set_ylim(lowest / 12, min(highest, SHOWN_LOSS))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    seeds = experiment.settings.seeds
    loss = "training loss" if highest <= SHOWN_LOSS else f"training loss (shown up to {SHOWN_LOSS:g})"
    _name(axes, "Full batch, chosen rates scaled by rule", "epoch (one step each)", loss)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    heading = f"{seeds} seeds: median loss, mean accuracy" if seeds > 1 else "one seed"
    axes.legend(title=heading, loc="lower left", framealpha=0.9, fontsize=9)


def _draw_ratios(experiment: Experiment, axes: Axes) -> None:
    run = experiment.cell("lamb", experiment.samples)[0]
    ratios = experiment.results[run].ratios
    assert ratios is not None, "the first full-batch LAMB run keeps its ratios"
    draw_heatmap(axes, ratios.T, list(SHAPES), range(1, ratios.shape[1] + 1), "trust ratio")
    _name(axes, f"LAMB's trust ratios, full batch, seed {run.seed}", "step", "")


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x, color=_GREY)
    axes.set_ylabel(y, color=_GREY)
