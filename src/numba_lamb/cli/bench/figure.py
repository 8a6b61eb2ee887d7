"""The bar chart: milliseconds per step, one panel for each profile."""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numba_lamb.cli.bench.competitors import ADAMW, COMPETITORS, SWEEP
from numba_lamb.cli.bench.summary import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SUFFIXES", "draw"]

SUFFIXES = (".png", ".svg")
_OURS, _YARDSTICK, _PEER = "#0072B2", "#999999", "#E69F00"
_BAR_INCHES = 0.3


def draw(panels: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw the rows of each profile as bars with their quartiles, into a file that is there whole or not at all.

    Parameters
    ----------
    panels : mapping
        The rows, by the title of their panel.
    path : pathlib.Path
        The file, ``*.png`` or ``*.svg``; needs matplotlib.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = [len(rows) for rows in panels.values()]
    settings: dict[str, Any] = {"svg.hashsalt": "numba-lamb", "font.size": 10}
    # The default style, so that a user's own settings do not reach in.
    with style.context(["default", settings]):
        height = _BAR_INCHES * sum(sizes) + 0.9 * len(sizes)
        figure = Figure(figsize=(8.0, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(
            len(sizes), 1, squeeze=False, gridspec_kw={"height_ratios": [size + 1 for size in sizes]}
        )
        for axes, (title, rows) in zip(grid[:, 0], panels.items(), strict=True):
            _bars(axes, title, rows)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            figure.savefig(beside, format=path.suffix.lower().removeprefix("."))
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _bars(axes: "Axes", title: str, rows: Sequence[Row]) -> None:
    medians = [row.ms.median for row in rows]
    below = [row.ms.median - row.ms.low for row in rows]
    above = [row.ms.high - row.ms.median for row in rows]
    places = range(len(rows))
    axes.barh(places, medians, xerr=(below, above), color=[_color(row.name) for row in rows], height=0.7)
    axes.set_yticks(places, [row.title for row in rows])
    axes.invert_yaxis()
    for place, row in zip(places, rows, strict=True):
        ratio = row.ratio_to_fused_adamw
        text = f"{row.ms.median:.3g} ms" + (f", x{ratio.median:.2f}" if ratio else "")
        axes.annotate(text, (row.ms.high, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 1.25 * max(row.ms.high for row in rows))
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("milliseconds per step (x: times fused AdamW)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _color(name: str) -> str:
    if name in COMPETITORS and COMPETITORS[name].ours:
        return _OURS
    return _YARDSTICK if name in (ADAMW, SWEEP, "sgd-fused", "copy") else _PEER
