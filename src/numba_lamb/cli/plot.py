"""``numba-lamb plot``: schedules, given as text, drawn into one PNG or SVG.

`run` and `curve` need NumPy alone; only `draw` imports Matplotlib.
"""

import argparse
import importlib.util
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numba_lamb._replace import replacing
from numba_lamb._text import shorten
from numba_lamb.cli.output import fail, say
from numba_lamb.schedules import LearningRateSchedule, parse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Curve", "add_parser", "curve", "describe", "draw", "read", "run"]

SUFFIXES = (".png", ".svg")
MAX_STEPS = 10**12
MAX_POINTS = 20_000
"""Steps evaluated at most, several per pixel: a longer schedule is drawn from evenly spaced steps."""
MAX_TEXT = 20_000
"""Characters of one schedule: a list of thousands of epochs is searched anew for each point."""
MAX_CURVES = 28
UNLIKE = 100.0
"""How many times as high one curve is as another where a logarithmic axis is hinted at."""
MARKED_STEPS = 40
"""Curves of so few steps get a dot at each, since the lines between them mean nothing."""

# Okabe and Ito's colours without the pale yellow. With 7 colours and 4 dashes in step, 28 lines all differ.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_GREY = "#555555"
_LABEL_WIDTH = 88
_LABEL_LINES = 4


@dataclass(frozen=True)
class Curve:
    """The rates of a schedule at some steps, and what the legend calls it."""

    label: str
    steps: Sequence[int]
    rates: Sequence[float]


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add ``plot`` and its options to the subcommands of ``numba-lamb``."""
    parser = commands.add_parser(
        "plot",
        help="draw learning-rate schedules into a PNG or SVG",
        description=(
            "Draw schedules and tables of numba_lamb.schedules, each given as one argument such as "
            "'CosineWithWarmUpLR(1e-3, warmup_steps=100, total_steps=1000)', into one chart. "
            "The text is read, never evaluated."
        ),
    )
    parser.add_argument(
        "schedules", nargs="+", metavar="SCHEDULE", help="a schedule, a table, or a list of rates"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("schedule.png"),
        metavar="FILE",
        help="the picture, *.png or *.svg (default schedule.png); a file of that name is replaced",
    )
    parser.add_argument(
        "--steps",
        type=_step_count,
        metavar="N",
        help="draw the first N steps (default: as many as the longest schedule has)",
    )
    parser.add_argument("--log", action="store_true", help="logarithmic axis for the rate")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``numba-lamb plot`` and return the exit code."""
    out: Path = arguments.out
    if out.suffix.lower() not in SUFFIXES:
        return _fail(f"--out must end in {' or '.join(SUFFIXES)}, not {str(out)!r}")
    if len(arguments.schedules) > MAX_CURVES:
        return _fail(f"at most {MAX_CURVES} schedules can be told apart, not {len(arguments.schedules)}")
    longest = max(map(len, arguments.schedules))
    if longest > MAX_TEXT:
        return _fail(f"a schedule must have at most {MAX_TEXT:,} characters, got {longest:,}")
    try:
        schedules = [read(expression) for expression in arguments.schedules]
        steps = arguments.steps or min(MAX_STEPS, max(schedule.horizon for schedule, _ in schedules))
        curves = [
            curve(expression, schedule, steps if length is None else min(steps, length))
            for expression, (schedule, length) in zip(arguments.schedules, schedules, strict=True)
        ]
        _check_visible(curves, arguments.log)
    except ValueError as error:
        return _fail(str(error))
    if importlib.util.find_spec("matplotlib") is None:
        return _fail("needs matplotlib: python -m pip install matplotlib")
    try:
        draw(curves, out, log=arguments.log)
    except OSError as error:
        return _fail(f"cannot write {out}: {error.strerror or error}")
    print(out)
    unlike = None if arguments.log else _unlike(curves)
    if unlike:
        say("numba-lamb plot", unlike)
    return 0


def read(expression: str) -> tuple[LearningRateSchedule, int | None]:
    """Return what an expression describes as a schedule, and its length if it is a table.

    Parameters
    ----------
    expression : str
        What `numba_lamb.schedules.parse` takes, or a table: a call that makes one, or a list of rates.

    Returns
    -------
    schedule : LearningRateSchedule
        The schedule; a table holds its last value.
    length : int or None
        Number of values of a table.

    Raises
    ------
    ValueError
        If it is neither.
    """
    try:
        return parse(expression), None
    except OverflowError as error:
        raise ValueError(f"{_quote(expression)}: {error}") from error
    except ValueError:
        try:
            held = parse(f"hold_last({expression})")
        except ValueError:
            held = None
        if held is None:
            raise
        return held, held.horizon


def curve(label: str, schedule: LearningRateSchedule, steps: int) -> Curve:
    """Return a schedule's rates at its first steps, fewer where it ends before.

    Parameters
    ----------
    label : str
        What the legend calls it.
    schedule : LearningRateSchedule
        What is evaluated.
    steps : int
        Steps from 0 on, at least 1; beyond `MAX_POINTS` only some of them, the last one included.

    Returns
    -------
    Curve
        Steps and rates, up to where a table inside the schedule ends.

    Raises
    ------
    ValueError
        If the schedule fails at a step.
    """
    stride = -(-steps // MAX_POINTS)
    asked = list(range(0, steps, stride))
    if asked[-1] != steps - 1:
        asked.append(steps - 1)
    rates: list[float] = []
    for step in asked:
        try:
            rates.append(schedule(step))
        except IndexError:
            break
        except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{_quote(label)} has no rate at step {step}: {error}") from error
    return Curve(label, asked[: len(rates)], rates)


def describe(curves: Sequence[Curve]) -> str:
    """Return the curves in words, which pictures carry as their description: labels and a few values."""
    texts = []
    for one in curves:
        last = len(one.steps) - 1
        places = sorted({last * part // 8 for part in range(9)})
        values = ", ".join(f"{one.steps[place]}: {one.rates[place]:.6g}" for place in places)
        texts.append(f"{one.label} at steps {values}")
    return "; ".join(texts)


def draw(
    curves: Sequence[Curve],
    path: Path,
    *,
    log: bool = False,
    legend: bool = True,
    size: tuple[float, float] = (8.0, 4.2),
) -> None:
    """Draw curves into a file, which is there whole or not at all.

    Parameters
    ----------
    curves : sequence of Curve
        What is drawn, in the order of the legend.
    path : pathlib.Path
        The file, ``*.png`` or ``*.svg``; the same curves give the same bytes.
    log : bool, default False
        Logarithmic axis for the rate.
    legend : bool, default True
        Put the labels below the chart.
    size : tuple of float
        Width and height of the chart in inches; the legend adds to the height.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    labels = [_wrap(one.label) for one in curves]
    lines = sum(label.count("\n") + 1 for label in labels) if legend else 0
    # The default style, so that a user's own settings do not reach in; the salt makes an SVG's ids repeatable.
    settings: dict[str, Any] = {"svg.hashsalt": "numba-lamb", "axes.unicode_minus": False, "font.size": 10}
    settings["path.simplify_threshold"] = 0.25  # pixels; keeps an SVG of many steps small
    with style.context(["default", settings]):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        figure = Figure(figsize=(size[0], size[1] + 0.19 * lines), dpi=150, layout=layout)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        drawn = [
            axes.plot(
                one.steps,
                [rate if _drawable(rate, log) else math.nan for rate in one.rates],
                color=_COLORS[k % len(_COLORS)],
                linestyle=_DASHES[k % len(_DASHES)],
                linewidth=2,
                marker="o" if len(one.steps) <= MARKED_STEPS else None,
                markersize=4,
            )[0]
            for k, one in enumerate(curves)
        ]
        _dress(axes, log)
        if legend:
            figure.legend(
                drawn,
                labels,
                loc="outside lower left",
                frameon=False,
                handlelength=3,
                prop={"family": "monospace", "size": 8.5},
            )
        form = path.suffix.lower().removeprefix(".")
        metadata: dict[str, Any] = {"Description": describe(curves)}
        if form == "svg":
            metadata["Date"] = None  # it would make each run's bytes differ
        with replacing(path) as file:
            figure.savefig(file, format=form, metadata=metadata)


def _dress(axes: "Axes", log: bool) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.margins(x=0.02)
    if log:
        axes.set_yscale("log")
    else:
        low, high = axes.dataLim.intervaly
        span = max(high, 0.0) - min(low, 0.0)
        if span > 0:
            # Zero is always in sight: a rate is read as a height.
            axes.set_ylim(min(low, 0.0) - 0.03 * span, max(high, 0.0) + 0.05 * span)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("step", color=_GREY)
    axes.set_ylabel("learning rate", color=_GREY)


def _unlike(curves: Sequence[Curve]) -> str | None:
    """Return a hint at ``--log`` where one curve is so much higher than another that this one looks like 0."""
    highest = {one.label: max(rate for rate in one.rates if _drawable(rate, False)) for one in curves}
    shown = {label: rate for label, rate in highest.items() if rate > 0}
    if not shown or max(shown.values()) < UNLIKE * min(shown.values()):
        return None
    low, high = min(shown, key=shown.__getitem__), max(shown, key=shown.__getitem__)
    return f"{_quote(low)} is at most {shown[low]:g} and {_quote(high)} {shown[high]:g}: --log shows both"


def _drawable(rate: float, log: bool) -> bool:
    # Far inside the range of a float, since Matplotlib adds margins.
    return abs(rate) < 1e200 and (rate > 1e-200 or not log)


def _check_visible(curves: Sequence[Curve], log: bool) -> None:
    for one in curves:
        if not any(_drawable(rate, log) for rate in one.rates):
            wanted = "above 0 that --log can show" if log else "that can be drawn"
            raise ValueError(f"{_quote(one.label)} has no rate {wanted}")


def _quote(label: str) -> str:
    return repr(shorten(label, 100))


def _wrap(label: str) -> str:
    lines = textwrap.wrap(
        label,
        _LABEL_WIDTH,
        subsequent_indent="    ",
        # A hyphen is a minus here.
        break_on_hyphens=False,
        max_lines=_LABEL_LINES,
        placeholder=" ...",
    )
    # Matplotlib would read what is between dollar signs as a formula.
    return "\n".join(lines).replace("$", r"\$")


def _step_count(text: str) -> int:
    steps = int(text)
    if not 1 <= steps <= MAX_STEPS:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MAX_STEPS:,}, not {text}")
    return steps


def _fail(message: str) -> int:
    return fail("numba-lamb plot", message)
