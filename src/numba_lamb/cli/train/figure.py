"""``train.png``: the full batch's learning curves, LAMB's rate schedules, and LAMB's trust ratios."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.model import initial
from numba_lamb.cli.train.plan import CONTESTANTS, batch_sizes

# Okabe and Ito's colours, which stay apart for every kind of colour vision; dashes keep them apart in print.
_STYLES = {"lamb": ("#0072B2", "-"), "adam": ("#E69F00", (0, (5, 1.5))), "sgd": ("#CC79A7", (0, (1.2, 1.2)))}
_GREY = "#555555"

SHOWN_LOSS = 100.0
"""Where the axis of the losses ends at the latest."""


def draw(experiment: Experiment, path: Path) -> None:
    """Draw the three panels of a finished experiment into `path`."""
    figure = Figure(figsize=(15, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    curves, rates, ratios = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    _draw_curves(experiment, curves)
    _draw_rates(experiment, rates)
    _draw_ratios(experiment, ratios)
    for axes in (curves, rates):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
    figure.savefig(path)


def _draw_curves(experiment: Experiment, axes: Axes) -> None:
    for name, (color, dashes) in _STYLES.items():
        results = [experiment.results[run] for run in experiment.cell(name, experiment.samples)]
        for result in results:
            axes.plot(range(1, len(result.losses) + 1), result.losses, color=color, alpha=0.3, linewidth=0.9)
        reached = min(len(result.losses) for result in results)
        middle = np.median([result.losses[:reached] for result in results], axis=0)
        accuracy = 100 * sum(result.accuracy for result in results) / len(results)
        label = f"{CONTESTANTS[name].title}: test {accuracy:.1f} %"
        axes.plot(range(1, reached + 1), middle, color=color, linestyle=dashes, linewidth=2.2, label=label)
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    # Room for the legend below, and no decades given away to a diverging run.
    axes.set_ylim(lowest / 12, min(highest, SHOWN_LOSS))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    seeds = experiment.settings.seeds
    loss = "training loss" if highest <= SHOWN_LOSS else f"training loss (shown up to {SHOWN_LOSS:g})"
    _name(axes, "Full batch, rates scaled by rule", "epoch (one step each)", loss)
    heading = f"{seeds} seeds: median loss, mean accuracy" if seeds > 1 else "one seed"
    axes.legend(title=heading, loc="lower left", framealpha=0.9, fontsize=9)


def _draw_rates(experiment: Experiment, axes: Axes) -> None:
    batches = batch_sizes(experiment.samples)
    shades = colormaps["viridis"](np.linspace(0.85, 0.1, len(batches)))
    for batch, shade in zip(batches, shades, strict=True):
        run = experiment.cell("lamb", batch)[0]
        steps = run.steps(experiment.samples)
        epochs = np.arange(steps) * run.epochs / steps
        label = f"full ({batch})" if batch == experiment.samples else str(batch)
        marker = "o" if batch == experiment.samples else None
        rates = run.schedule(experiment.samples)(list(range(steps)))
        axes.plot(epochs, rates, color=shade, linewidth=1.8, marker=marker, markersize=3, label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _name(axes, "LAMB's rate, scaled by √(batch/32)", "epoch", "learning rate")
    axes.legend(title="batch size", framealpha=0.9, fontsize=9)


def _draw_ratios(experiment: Experiment, axes: Axes) -> None:
    run = experiment.cell("lamb", experiment.samples)[0]
    ratios = experiment.results[run].ratios
    assert ratios is not None, "the first full-batch LAMB run keeps its ratios"
    # Edges beside the step's number put the ticks in the middle of the columns.
    edges = np.arange(ratios.shape[1] + 1) + 0.5
    names = list(initial(run.seed))
    scale = colors.LogNorm(ratios.min(), ratios.max())
    mesh = axes.pcolormesh(
        edges, np.arange(len(names) + 1), ratios, norm=scale, cmap="viridis", edgecolor="white", linewidth=0.4
    )
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.spines[:].set_visible(False)
    _name(axes, f"LAMB's trust ratios, full batch, seed {run.seed}", "step", "")
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02)
    bar.set_label("trust ratio (log scale)", color=_GREY)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.minorticks_off()


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x, color=_GREY)
    axes.set_ylabel(y, color=_GREY)
