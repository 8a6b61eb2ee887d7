"""History: trust ratios and norms of the last steps, by layer."""

import csv
import io
import operator
import os
from collections import deque
from collections.abc import Callable
from functools import singledispatch
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb._heatmap import draw_heatmap, heatmap_file
from numba_lamb._replace import replacing
from numba_lamb.engine.records import Record
from numba_lamb.numerics import rules

__all__ = ["History", "recorder"]

Table = NDArray[np.float64]
_OF_STEPS = ("grad_norm", "clip_factor", "skipped")


@singledispatch
def recorder(optimizer: Any) -> Callable[[], Record]:
    """Return what copies the tables that an optimizer's last step left; each front end adds its own."""
    raise TypeError(
        "optimizer must be a Lamb, Lars or Momentum of numba_lamb or numba_lamb.torch, got "
        f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    )


class History:
    """What the last steps did to each layer: trust ratios, norms, clipping.

    Parameters
    ----------
    optimizer : Lamb, Lars or Momentum
        Of `numba_lamb` or of `numba_lamb.torch`.
    steps : int
        The most steps that are kept; older ones make room.

    Attributes
    ----------
    optimizer
        As given.
    steps : int
        As given.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused.

    Notes
    -----
    A record is a copy of the tables that a step leaves behind, 3 float64 and 2 marks for each layer. On a GPU the
    copies are queued behind the step and nothing waits for them until values are read; only where a captured step
    was replayed is the GPU waited for. Quantities of layers (``trust_ratio``, ...) are arrays of one row for each
    step and one column for each of `layers`; those of whole steps (``grad_norm``, ...) have one value for each.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> params = {"weight": np.array([3.0, 4.0]), "bias": np.array([1.0])}
    >>> opt = nl.Lamb(params, learning_rate=0.1)
    >>> history = nl.History(opt)
    >>> for bias in (np.array([1.0]), None):
    ...     opt.step({"weight": np.array([0.5, -0.5]), "bias": bias})
    ...     history.record()
    >>> history
    History(Lamb, 2 of at most 1000 steps, 2 layers)
    >>> history.layers
    ('weight', 'bias')
    >>> history.trust_ratio.round(3)
    array([[3.536, 1.   ],
           [3.603,   nan]])
    >>> round(history.rows()[-1]["trust_ratio/weight"], 3)
    3.603
    """

    def __init__(self, optimizer: Any, steps: int = 1000) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"steps must be an int, got {type(steps).__name__}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self._take = recorder(optimizer)
        self.optimizer = optimizer
        self.steps = steps
        # Each record is compared with the one before, to tell what its step did: one more than is shown.
        self._records: deque[Record] = deque(maxlen=steps + 1)
        self._pending: deque[Record] = deque()
        self._count = self._step = -1
        self._built: _Built | None = None
        self.record()

    def record(self, step: int | None = None) -> None:
        """Keep what the last step did; call it after each `step`, or after each n-th one.

        Layers that the step did not update have NaN, and so have all layers where no step was taken since the last
        record, or the last one was skipped.

        Parameters
        ----------
        step : int, optional
            The number it is shown under; by default the last record's and 1, from 1 on.
        """
        step = self._step + 1 if step is None else operator.index(step)
        with self.optimizer._lock:
            record = self._take()
        record.step = self._step = step
        self._records.append(record)
        self._count += 1
        self._built = None
        if record.is_pending:
            self._pending.append(record)
            # What has come gives its memory to the copies that follow.
            while self._pending and self._pending[0].is_ready():
                self._pending.popleft().read()

    def __len__(self) -> int:
        return min(self._count, self.steps)

    def __repr__(self) -> str:
        kind, count = type(self.optimizer).__name__, len(self.layers)
        return f"History({kind}, {len(self)} of at most {self.steps} steps, {count} layers)"

    # What was recorded -------------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the columns, the optimizer's layers in order, then those it has no more."""
        records = [*self._records]
        # In PyTorch a layer takes part from its first gradient on, and the last record knows of the most.
        placements = {id(record.placement): record.placement for record in reversed(records)}
        names = (name for placement in placements.values() if placement for name in placement.names)
        return tuple(dict.fromkeys(names))

    @property
    def step(self) -> NDArray[np.int64]:
        """The number of each record."""
        return self._tables().step

    @property
    def trust_ratio(self) -> Table:
        """The ratio of each layer."""
        return self._of_layers("trust_ratio")

    @property
    def weight_norm(self) -> Table:
        """The norm of each layer's weights before the step; in Lars and Momentum of layers that adapt."""
        return self._of_layers("weight_norm")

    @property
    def update_norm(self) -> Table:
        """The norm of each layer's update before ratio and rate (`Lamb`)."""
        return self._of_layers("update_norm")

    @property
    def gradient_norm(self) -> Table:
        """The norm of each layer's gradient, clipped (`Lars` and `Momentum`, layers that adapt)."""
        return self._of_layers("gradient_norm")

    @property
    def grad_norm(self) -> Table:
        """The norm of all gradients of a step together, where `max_grad_norm` was set; else NaN."""
        return self._tables().of_steps["grad_norm"]

    @property
    def clip_factor(self) -> Table:
        """What the gradients of a step were multiplied by, the least of all groups; NaN where none was taken."""
        return self._tables().of_steps["clip_factor"]

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """Whether a step was left out since the record before."""
        skipped: NDArray[np.bool_] = self._tables().of_steps["skipped"] != 0
        return skipped

    def _of_layers(self, quantity: str) -> Table:
        found = self._tables().of_layers
        if quantity not in found:
            kind = type(self.optimizer).__name__
            raise AttributeError(f"a History of {kind} has {', '.join(found)}, and no {quantity}")
        return found[quantity]

    def _tables(self) -> "_Built":
        if self._built is None:
            records = list(islice(self._records, max(0, len(self._records) - len(self) - 1), None))
            self._built = _Built(records, self.layers, self.optimizer._method.statistics)
        return self._built

    # For others to read ------------------------------------------------------------------------------

    def rows(self, last: int | None = None) -> list[dict[str, float]]:
        """Return a flat dict for each step, as ``wandb.log`` takes it.

        Parameters
        ----------
        last : int, optional
            Only so many of the newest steps.

        Returns
        -------
        list of dict
            ``"step"``, then ``"<quantity>/<layer>"``, ``"grad_norm"``, ``"clip_factor"`` and ``"skipped"`` (0.0 or
            1.0); what is NaN is left out.
        """
        built, names = self._tables(), self.layers
        first = 0 if last is None else max(0, len(self) - last)
        keys = [f"{quantity}/{name}" for quantity in built.of_layers for name in names] + [*_OF_STEPS]
        found = []
        for number, values in zip(built.step[first:].tolist(), built.joined()[first:].tolist(), strict=True):
            named = zip(keys, values, strict=True)
            # NaN is the only value that differs from itself.
            found.append({"step": number, **{key: value for key, value in named if value == value}})
        return found

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table with a line for each step and the columns of `rows`; NaN is an empty field.

        The file is there whole or not at all.
        """
        built, names = self._tables(), self.layers
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(
            ["step", *(f"{quantity}/{name}" for quantity in built.of_layers for name in names), *_OF_STEPS]
        )
        for number, values in zip(built.step.tolist(), built.joined().tolist(), strict=True):
            writer.writerow([number, *("" if value != value else value for value in values)])
        with replacing(path) as file:
            file.write(text.getvalue().encode())

    def plot(self, target: Any, quantity: str = "trust_ratio") -> None:
        """Draw a quantity as a map of steps by layers, with logarithmic colours; needs matplotlib.

        Parameters
        ----------
        target : path-like or matplotlib.axes.Axes
            A picture to write, its format by its suffix; or axes to draw into.
        quantity : str
            One of the names of the layers' arrays.

        Raises
        ------
        AttributeError
            If there is no such quantity.
        ValueError
            If there is no value above 0 to be drawn.
        """
        values, names, numbers = self._of_layers(quantity), self.layers, self.step.tolist()
        title = quantity.replace("_", " ")
        if isinstance(target, str | os.PathLike):
            heatmap_file(target, values, names, numbers, title)
        else:
            draw_heatmap(target, values, names, numbers, title)


class _Built:
    """Arrays made of records, of which the first is only what the second is compared with."""

    def __init__(self, records: list[Record], names: tuple[str, ...], statistics: Any) -> None:
        count = len(records) - 1
        self.step = np.array([record.step for record in records[1:]], dtype=np.int64)
        self.of_layers = {name: np.full((count, len(names)), np.nan) for name, _, _ in statistics}
        self.of_steps = {name: np.full(count, np.nan) for name in _OF_STEPS}
        column_of = {name: k for k, name in enumerate(names)}
        columns: dict[int, NDArray[np.intp]] = {}
        reading = records[0].read()
        for k, (before, record) in enumerate(pairwise(records)):
            counts = reading.applied, reading.skipped
            applied, skipped = counts if before.started is record.started else record.started
            reading = record.read()
            self.of_steps["skipped"][k] = reading.skipped > skipped
            if reading.applied <= applied or record.placement is None:
                continue
            factor = 1.0
            if reading.grad_norm is not None:
                self.of_steps["grad_norm"][k] = reading.grad_norm
                factor = float(rules.clip_factor(reading.grad_norm, record.limit))
            self.of_steps["clip_factor"][k] = factor
            key = id(record.placement)
            if key not in columns:
                columns[key] = np.array([column_of[name] for name in record.placement.names], dtype=np.intp)
            for quantity, column, adapted_only in statistics:
                shown = reading.given & reading.adapts if adapted_only else reading.given
                self.of_layers[quantity][k, columns[key]] = np.where(shown, reading.norms[:, column], np.nan)

    def joined(self) -> Table:
        """Return all of it side by side, a row for each step."""
        tables = [*self.of_layers.values(), *(values[:, None] for values in self.of_steps.values())]
        return np.concatenate(tables, axis=1)
