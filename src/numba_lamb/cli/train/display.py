"""What is shown while runs go on: a line for each cell that is done and, in a terminal, a bar beneath."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Display:
    """Progress as lines, and in a terminal as a bar too.

    Parameters
    ----------
    console : rich.console.Console
        Where to print; a console that is no terminal gets plain lines and no control codes.
    total : int
        The work of all runs.
    done : int
        What is already done of it, where a checkpoint is resumed.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._at_start = self._done = done
        self._started = time.monotonic()
        has_bar = console.is_terminal and not console.is_dumb_terminal
        self._bar = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("loss {task.fields[loss]}  {task.fields[left]}"),
            console=console,
            disable=not has_bar,
            expand=True,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=total, completed=done, loss="-", left="")

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, description: str, loss: float | None, done: int) -> None:
        """Show what runs now, its mean loss over the last epoch, and how much is done in all."""
        self._done = done
        self._bar.update(
            self._task,
            description=description,
            completed=done,
            loss="-" if loss is None else f"{loss:.1e}",
            left=self._time_left(),
        )

    def advance(self, done: int) -> None:
        """Show how much is done in all."""
        self._done = done
        self._bar.update(self._task, completed=done)

    def line(self, text: str) -> None:
        """Print a line that stays; where there is no bar, with the share done and the time left."""
        if self._bar.disable:
            text = f"[{100 * self._done / self._total:3.0f} %] {text}  ({self._time_left()})"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        progressed = self._done - self._at_start
        if progressed <= 0:
            return "- left"
        seconds = round((time.monotonic() - self._started) * (self._total - self._done) / progressed)
        return f"{seconds // 60}:{seconds % 60:02d} left"
