"""The map of a quantity by step and layer, on a logarithmic scale of colours."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb._install import how_to_install
from numba_lamb._replace import replacing

_GREY = "#555555"
_MOST_NAMES = 60
"""Layers up to which each has its name at the axis; of more, some have."""
_MOST_EDGES = 80
"""Steps up to which the cells have white edges; edges of more would hide them."""


def draw_heatmap(
    axes: Any, values: NDArray[np.float64], names: Sequence[str], steps: Sequence[int], title: str
) -> None:
    """Draw `values`, a row for each step and a column for each name, with a bar of its colours beside it.

    Values that are not finite and above 0 stay blank.
    """
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    if not np.isfinite(shown).any():
        raise ValueError(f"{title} has no value above 0 to be drawn")
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    if high < 1.01 * low:
        low, high = low / 1.1, high * 1.1
    count = len(names)
    # Edges beside the step's number put the ticks in the middle of the columns.
    edges = _edges(np.asarray(steps, dtype=np.float64))
    lines: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.4} if len(steps) <= _MOST_EDGES else {}
    mesh = axes.pcolormesh(
        edges, np.arange(count + 1), shown.T, norm=LogNorm(low, high), cmap="viridis", **lines
    )
    every = -(-count // _MOST_NAMES)
    axes.set_yticks(np.arange(0, count, every) + 0.5, names[::every])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("step", color=_GREY)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02)
    bar.set_label(f"{title} (log scale)", color=_GREY)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.minorticks_off()


def heatmap_file(
    path: str | os.PathLike[str],
    values: NDArray[np.float64],
    names: Sequence[str],
    steps: Sequence[int],
    title: str,
) -> None:
    """Draw into a picture, which is there whole or not at all; its format is by its suffix."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(f"plot() needs matplotlib: {how_to_install('demo')}", name="matplotlib")
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    form = os.path.splitext(os.fspath(path))[1].lower().removeprefix(".") or "png"
    # The default style, so that a user's own settings do not reach in.
    with style.context("default"):
        height = min(12.0, 1.4 + 0.2 * len(names))
        figure = Figure(figsize=(9.0, height), dpi=150, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        if form not in canvas.get_supported_filetypes():
            known = ", ".join(f"*.{name}" for name in ("png", "svg", "pdf"))
            raise ValueError(f"path must end in a picture's suffix such as {known}, got {os.fspath(path)!r}")
        draw_heatmap(figure.subplots(), values, names, steps, title)
        with replacing(path) as file:
            figure.savefig(file, format=form)


def _edges(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(steps) == 1 or not (np.diff(steps) > 0).all():
        # Numbers that do not rise cannot be an axis; places can.
        return np.arange(len(steps) + 1) + (steps[0] if len(steps) == 1 else 1) - 0.5
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])
