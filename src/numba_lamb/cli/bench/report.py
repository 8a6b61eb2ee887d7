"""What the command shows and writes: progress, the table, JSON."""

import importlib.util
import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from numba_lamb.cli.bench.summary import Row, Spread
from numba_lamb.cli.output import fill, width_of

__all__ = ["Progress", "cells", "print_table", "text_table", "write_json"]

_HEADINGS = ("optimizer", "ms/step", "middle half", "x AdamW", "bytes/param", "% of floor")
_RULES = (
    "ms/step: median over rounds. x AdamW: median of ratios within a round. % of floor: time of bytes/param at "
    "the sweep's bandwidth over the time taken; above 100 where caches serve a second pass."
)


_DRAWN_COLUMNS = 120
"""What rich's table needs for the longest label."""


class Progress:
    """How far the command is, on standard error: a bar where rich and a terminal are there, else lines.

    Parameters
    ----------
    title : str
        What is being measured.
    total : int
        Turns of all workers.
    """

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._shown = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        else:
            print(f"{self._title}: starting", file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def turn(self, name: str) -> None:
        """Count a turn, that of `name`."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=f"{self._title}: {name}")
        elif time.monotonic() - self._shown >= 10:
            # In a log, a line now and then is enough.
            self._shown = time.monotonic()
            share = 100 * self._done / self._total
            print(f"{self._title}: {share:.0f} %, now {name}", file=sys.stderr)


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as the table shows it."""
    return (
        row.title,
        f"{row.ms.median:.3g}",
        f"{row.ms.low:.3g} to {row.ms.high:.3g}",
        _median(row.ratio_to_fused_adamw, "{:.2f}"),
        f"{row.bytes_per_param:g}",
        _median(row.floor_fraction, "{:.0%}").rstrip("%"),
    )


def text_table(rows: Sequence[Row], columns: int | None = None) -> str:
    """Return the rows as aligned plain text, whose labels take several lines where there are few columns."""
    table = [_HEADINGS, *map(cells, rows)]
    widths = [max(len(line[k]) for line in table) for k in range(len(_HEADINGS))]
    if columns is not None:
        rest = sum(widths[1:]) + 2 * len(widths[1:])
        longest = max(len(word) for line in table for word in line[0].split())
        widths[0] = min(widths[0], max(columns - rest, longest + 1))
    lines = []
    for line in table:
        label, *more = fill(line[0], widths[0], " ").splitlines()
        figures = [line[k].rjust(widths[k]) for k in range(1, len(widths))]
        lines += ["  ".join([label.ljust(widths[0]), *figures]), *more]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print the rows of one profile, drawn by rich where that and a terminal with room for it are there."""
    columns = width_of(sys.stdout)
    is_drawn = sys.stdout.isatty() and importlib.util.find_spec("rich") is not None
    if is_drawn and columns is not None and columns >= _DRAWN_COLUMNS:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left", caption=_RULES, caption_justify="left")
        for k, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="right" if k else "left", no_wrap=True)
        for row in rows:
            table.add_row(*cells(row))
        Console(highlight=False, width=columns).print(table, markup=False)
    else:
        print(f"\n{fill(title, columns)}\n{text_table(rows, columns)}\n{fill(_RULES, columns)}")


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write `content` into a file, which is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _median(value: Spread | None, form: str) -> str:
    return "-" if value is None else form.format(value.median)
