"""The bar chart: milliseconds per step, one panel for each profile."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numba_lamb._replace import replacing
from numba_lamb.cli.bench.competitors import ADAMW, COMPETITORS, SWEEP
from numba_lamb.cli.bench.summary import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SUFFIXES", "draw"]

SUFFIXES = (".png", ".svg")
_OURS, _YARDSTICK, _PEER = "#0072B2", "#999999", "#E69F00"
_GROUPS = {
    _OURS: "numba-lamb",
    _PEER: "LAMB of other packages",
    _YARDSTICK: "yardsticks: PyTorch's fused AdamW and SGD, memory",
}
_BAR_INCHES = 0.27
_COLUMNS = 3
_MOST_PIXELS = 690
"""The height of one row of panels."""


def draw(panels: Mapping[str, Sequence[Row]], path: Path, cpu: str = "") -> None:
    """Draw the rows of each profile as bars with their quartiles, into a file that is there whole or not at all.

    Parameters
    ----------
    panels : mapping
        The rows, by the title of their panel: a profile, and after a colon what there is to say of it.
    path : pathlib.Path
        The file, ``*.png`` or ``*.svg``; needs matplotlib.
    cpu : str
        The processor's name, for the caption.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    titles = _titles(panels.values())
    across = min(_COLUMNS, len(panels))
    down = -(-len(panels) // across)
    inches = _BAR_INCHES * len(titles) + 1.6
    settings: dict[str, Any] = {"svg.hashsalt": "numba-lamb", "font.size": 10}
    # The default style, so that a user's own settings do not reach in.
    with style.context(["default", settings]):
        figure = Figure(
            figsize=(3.2 + 3.8 * across, inches * down + 0.5),
            dpi=min(150.0, _MOST_PIXELS / (inches + 0.5)),
            layout="constrained",
        )
        FigureCanvasAgg(figure)
        grid = figure.subplots(down, across, squeeze=False).flatten()
        for place, axes in enumerate(grid):
            if place < len(panels):
                _bars(axes, *list(panels.items())[place], titles, named=place % across == 0)
            else:
                axes.set_visible(False)
        # Two lines, because processors have long names.
        heading = "Time of one optimizer step, shorter is faster" + (f"\n{cpu}" if cpu else "")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
        shown = {_color(row.name) for rows in panels.values() for row in rows}
        figure.legend(
            handles=[Patch(color=color, label=label) for color, label in _GROUPS.items() if color in shown],
            loc="outside lower left",
            ncols=len(_GROUPS) if across > 1 else 1,
            frameon=False,
        )
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix.lower().removeprefix("."))


def _titles(panels: Iterable[Sequence[Row]]) -> dict[str, str]:
    """Return what each competitor is called, by name, in the order of all panels."""
    found = {row.name: row.title for rows in panels for row in rows}
    order = [*COMPETITORS, *found]
    return {name: found[name] for name in dict.fromkeys(order) if name in found}


def _bars(axes: "Axes", title: str, rows: Sequence[Row], titles: Mapping[str, str], named: bool) -> None:
    places = [list(titles).index(row.name) for row in rows]
    medians = [row.ms.median for row in rows]
    below = [row.ms.median - row.ms.low for row in rows]
    above = [row.ms.high - row.ms.median for row in rows]
    axes.barh(places, medians, xerr=(below, above), color=[_color(row.name) for row in rows], height=0.7)
    axes.set_yticks(range(len(titles)), list(titles.values()) if named else [""] * len(titles))
    axes.set_ylim(len(titles) - 0.4, -0.6)
    for place, row in zip(places, rows, strict=True):
        ratio = row.ratio_to_fused_adamw
        text = f"{row.ms.median:.3g} ms" + (f", {ratio.median:.2f} x" if ratio else "")
        axes.annotate(text, (row.ms.high, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 1.45 * max(row.ms.high for row in rows))
    profile, _, said = title.partition(": ")
    axes.set_title(f"{profile}\n{said}" if said else profile, loc="left", fontsize=10)
    times = "; x: times fused AdamW" if any(row.ratio_to_fused_adamw for row in rows) else ""
    count = min(row.rounds for row in rows)
    axes.set_xlabel(f"time of a step in ms, median of {count} rounds\n(line: middle half{times})", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _color(name: str) -> str:
    if name in COMPETITORS and COMPETITORS[name].ours:
        return _OURS
    return _YARDSTICK if name in (ADAMW, SWEEP, "sgd-fused", "copy") else _PEER
