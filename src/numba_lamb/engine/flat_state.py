"""FlatState: where each layer's state lies in flat buffers, one for each kind of state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.precision import Precision
from numba_lamb.layout import ALIGNMENT, LANES, Layer

Runs = Sequence[tuple[int, int]]
"""First elements and ends."""


class FlatState:
    """The parts of buffers of bytes, in which each layer begins at a multiple of 64 values.

    Parameters
    ----------
    layers : sequence of Layer
        The layers of a bucket.
    precisions : sequence of Precision
        How each is stored.
    names : sequence of str
        The moments; none where state is somebody else's.
    runs : sequence of (int, int) or None
        First element and end of what there is of each layer; None for all.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        precisions: Sequence[Precision],
        names: Sequence[str],
        runs: Runs | None = None,
    ) -> None:
        self._firsts = [0] * len(layers) if runs is None else [start for start, _ in runs]
        self._shapes = (
            [layer.shape for layer in layers] if runs is None else [(stop - start,) for start, stop in runs]
        )
        self._pieces = [
            precision.state(names, math.prod(shape)) if names else {}
            for precision, shape in zip(precisions, self._shapes, strict=True)
        ]
        self._starts: list[dict[str, int]] = [{} for _ in layers]
        self.moments = tuple(names)
        """The names of the moments."""
        self.nbytes: dict[str, int] = dict.fromkeys(names, 0)
        """The size of each kind's buffer."""
        for pieces, starts in zip(self._pieces, self._starts, strict=True):
            for name, piece in pieces.items():
                starts[name] = self.nbytes.get(name, 0)
                padded = -(-piece.size // ALIGNMENT) * ALIGNMENT
                self.nbytes[name] = starts[name] + padded * piece.dtype.itemsize

    def names(self, row: int) -> list[str]:
        """Return the kinds of state that a layer has."""
        return [*self._pieces[row]]

    def point(self, addresses: NDArray[np.int64], name: str, first: int) -> None:
        """Write where each layer's element 0 is, or would be, in the buffer that begins at `first`."""
        for row, (pieces, starts) in enumerate(zip(self._pieces, self._starts, strict=True)):
            if name in pieces:
                skipped = pieces[name].before(self._firsts[row])
                addresses[row, pieces[name].column] = first + starts[name] - skipped

    def run(
        self, values: Mapping[str, NDArray[Any]], name: str, row: int, run: tuple[int, int]
    ) -> NDArray[Any]:
        """Return a flat view of what belongs to a run of elements in one layer's part, which is all there."""
        first, last = run
        if not self._pieces[row][name].shaped:
            first, last = first // LANES, -(-last // LANES)
        return self.part(values, name, row).reshape(-1)[first:last]

    def part(self, values: Mapping[str, NDArray[Any]], name: str, row: int) -> NDArray[Any]:
        """Return a view of one layer's part of a buffer of bytes: shaped as its parameter, scales by rows."""
        piece, start = self._pieces[row][name], self._starts[row][name]
        part = values[name][start : start + piece.size * piece.dtype.itemsize].view(piece.dtype)
        return part.reshape(self._shapes[row]) if piece.shaped else part
