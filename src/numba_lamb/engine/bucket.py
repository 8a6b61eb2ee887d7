"""A Bucket: the layers of one arithmetic with what kernels are told about them, wherever their arrays live."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.flat_state import FlatState, Runs
from numba_lamb.engine.precision import Precision, gradient_format
from numba_lamb.groups import Parameter
from numba_lamb.kernels import columns
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.methods.options import Row
from numba_lamb.numerics import rules, storage
from numba_lamb.sharding import Division


class Bucket(ABC):
    """Tables of the layers that are computed with in one dtype.

    Parameters
    ----------
    layout : FlatLayout
        The whole model's layout.
    dtype : numpy.dtype
        Which of its layers this bucket holds.
    parameters : sequence of Parameter
        All parameters, in the layout's order.
    precisions : sequence of Precision
        How each of them is stored.
    state_names : sequence of str
        The moments, by number.
    division : Division or None
        How ranks have the layers; sums of all chunks are then to be written by others.
    rank : int
        Which rank this is.
    """

    def __init__(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        precisions: Sequence[Precision],
        state_names: Sequence[str],
        division: Division | None = None,
        rank: int = 0,
    ) -> None:
        self.dtype = dtype
        """Of the arithmetic, and so of hyper-parameters, step lengths and row means."""
        self.largest = float(np.finfo(dtype).max)
        """The largest number that arithmetic can hold."""
        self.indices = layout.indices(dtype)
        self.precisions = [precisions[k] for k in self.indices]
        """How each layer is stored."""
        self.layers = [layout.layers[k] for k in self.indices]
        self.division = division
        """How ranks have the layers, None where there is one."""
        self.runs: Runs | None = None if division is None else division.runs(rank)
        """First element and end of what there is of each layer; None for all."""
        self.state = FlatState(self.layers, self.precisions, state_names, self.runs)
        """Where each layer's part of flat state is."""
        self.full = self.state if division is None else FlatState(self.layers, self.precisions, state_names)
        """Where it would be if all of each layer were there."""
        self.table = layout.table(dtype)
        # All chunks of the layers; those that kernels work through, and where layers end for them.
        self.all_chunks, self.all_first_chunk = self.table.chunks, self.table.first_chunk
        self.chunks, self.sizes = self.table.chunks, self.table.sizes
        if division is not None:
            self.all_chunks, self.all_first_chunk = division.chunks, division.first_chunk
            self.chunks, self.sizes = division.chunks[division.own[rank]], division.stops[rank]
        self.group_of = np.array([layer.group for layer in self.layers], dtype=np.intp)
        self.addresses = np.zeros((len(self.indices), columns.ADDRESSES), dtype=np.int64)
        self.addresses[:, columns.WEIGHTS] = [parameters[k].storage.address for k in self.indices]
        self.hyper = np.zeros((len(self.indices), columns.HYPER), dtype=self.dtype)
        self.hyper[:, columns.SHRINK] = 1
        self.hyper64 = np.zeros((len(self.indices), columns.HYPER64))
        self.hyper64[:, columns.SIGN] = 1
        self.hyper64[:, columns.MAX_WEIGHT_NORM] = self.hyper64[:, columns.MAX_RATIO] = math.inf
        self.random = np.zeros((len(self.indices), columns.KEYS), dtype=np.int64)
        """What random bits are made of."""
        self.random[:, columns.PARAMETER] = self.indices
        self.format_table = np.zeros((len(self.indices), columns.FORMATS), dtype=np.int64)
        """How arrays are stored."""
        for row, precision in enumerate(self.precisions):
            self.format_table[row, columns.WEIGHTS] = precision.weights
            self.format_table[row, columns.EXP_AVG :] = precision.moment(0), precision.moment(1)
        self.refresh_flags()

    @property
    def weights(self) -> NDArray[np.int64]:
        """Where each layer's parameter is."""
        return self.addresses[:, columns.WEIGHTS]

    @property
    def gradients(self) -> NDArray[np.int64]:
        """Where each layer's gradient is, 0 for none."""
        return self.addresses[:, columns.GRADIENT]

    @property
    def formats(self) -> NDArray[np.int64] | None:
        """How arrays are stored; None where all are as they are computed with."""
        return self.format_table if self.format_table.any() else None

    def write_gradient_formats(self, given: Mapping[int, np.dtype[Any]]) -> None:
        """Write how gradients are stored, of which `given` are those of another dtype than the arithmetic."""
        self.format_table[:, columns.GRADIENT] = columns.NATIVE
        for row, dtype in given.items():
            self.format_table[row, columns.GRADIENT] = gradient_format(dtype, self.dtype)

    def counted_beyond_float16(
        self, state: Mapping[str, NDArray[Any]], updated: NDArray[np.int64]
    ) -> dict[str, float]:
        """Return how many elements of each float32 master in flat `state` its float16 parameter cannot hold."""
        return {
            f"beyond_float16/{layer.name}": float(
                np.count_nonzero(np.abs(self.state.part(state, "master", row)) >= storage.FLOAT16_END)
            )
            for row, layer in enumerate(self.layers)
            if "master" in self.state.names(row) and updated[row] != columns.NOT_UPDATED
        }

    def moments(self, number: int) -> NDArray[np.int64]:
        """Return where each layer's moment is, the first or the second."""
        return self.addresses[:, columns.EXP_AVG + number]

    @abstractmethod
    def saved(self) -> dict[str, NDArray[Any]]:
        """Return what a step leaves behind, by name: ``steps``, ``updated``, ``norms``, flat state as bytes."""

    @abstractmethod
    def blank(self) -> dict[str, NDArray[Any]]:
        """Return arrays of the form of `saved`, to be filled and restored."""

    @abstractmethod
    def restore(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Put back what `saved` returned, of this bucket or of one with the first of its layers."""

    def adopt(self, older: "Bucket") -> None:
        """Take over state and steps of a bucket whose layers are the first of this one."""
        self.restore(older.saved())

    def refresh_flags(self) -> None:
        """Recompute the flags derived from `hyper64`; call after writing to it."""
        hyper64 = self.hyper64
        limits = hyper64[hyper64[:, columns.MAX_GRAD_NORM] > 0, columns.MAX_GRAD_NORM]
        self.clips = bool(limits.size)
        """Whether the gradients of any layer are clipped."""
        self.least_limit = float(limits.min(initial=math.inf))
        """The least norm that any are clipped to."""
        self.checks = bool(hyper64[:, columns.CHECKED].any())
        """Whether the gradients of any layer must be finite."""
        self.shrinks = bool(hyper64[:, columns.DECOUPLED].any())
        """Whether any layer's weights are decayed outside the direction."""
        self.divides_by_others = bool(hyper64[:, columns.NORM_OF].any())
        """Whether any layer's ratio divides by another norm than that of LAMB's direction."""
        corrections = hyper64[:, columns.BETA1_64 : columns.RATE_CORRECTION + 1]
        self.corrects_alike = bool((corrections == corrections[0]).all())
        """Whether the moments of all layers are corrected in one way."""
        self.corrects_rates = bool(hyper64[:, columns.RATE_CORRECTION].any())
        """Whether the rate of any layer is corrected."""
        self.adapts = bool(hyper64[:, columns.ADAPTS].any())
        """Whether any layer may have a trust ratio."""

    def raw_bounds(self, loss_scale: float) -> NDArray[Any]:
        """Return what each layer's gradients may be at most, as they are given."""
        given = self.hyper64[:, [columns.BOUND, columns.MAX_GRAD_NORM]].tolist()
        known = {
            (bound, limit): rules.raw_bound(bound, limit, loss_scale, self.largest)
            for bound, limit in set(map(tuple, given))
        }
        return np.array([known[tuple(key)] for key in given], dtype=self.dtype)

    def cast(self, name: str, value: float) -> float:
        """Return `value` if it is finite in the dtype of the arithmetic, and not 0 unless it is."""
        with np.errstate(over="ignore", under="ignore"):
            held = self.dtype.type(value)
        if not np.isfinite(held) or (held == 0) != (value == 0):
            raise ValueError(
                f"{name} must be a normal number in {self.dtype}, the dtype of parameter "
                f"{self.layers[0].name!r}, got {value!r}"
            )
        return value

    def check_precisions(self, groups: Sequence[Row]) -> None:
        """Raise if the layers of a group are not stored as it says."""
        for layer, precision in zip(self.layers, self.precisions, strict=True):
            row = groups[layer.group]
            for name, now in (("master", row.master), ("moments", row.moments)):
                before = getattr(precision, name)
                if now != before:
                    raise ValueError(
                        f"{name} of group {layer.group} must stay {before!r}, got {now!r}; make another optimizer "
                        "for another"
                    )

    def centralize(self, groups: Sequence[int]) -> None:
        """Make the tables of row means for the layers of `groups`."""
        self.centralized: tuple[int, ...] | None = None
        """The groups whose layers they are for, None until they are made whole."""
        self._make_rows(groups)
        self.centralized = tuple(groups)

    def check_whole(self, groups: Sequence[int]) -> None:
        """Raise if there is only a part of a layer of `groups`, whose rows are needed whole."""
        for layer, (start, stop) in zip(self.layers, self.runs or (), strict=False):
            if layer.group in groups and 0 < stop - start < layer.size:
                raise ValueError(
                    f"grad_centralization of group {layer.group} must be False for {layer.name!r}, which lies on "
                    "several ranks, got True; where ranks share state, give it when the optimizer is made, and "
                    "its layers are kept whole"
                )

    def _has(self, row: int) -> bool:
        """Return whether there is anything of a layer."""
        return self.runs is None or self.runs[row][0] < self.runs[row][1]

    def _make_rows(self, groups: Sequence[int]) -> None:
        count = len(self.layers)
        self.first_row = np.full(count, -1, dtype=np.int64)
        self.row_lengths = np.ones(count, dtype=np.int64)
        owners = []
        rows_so_far = 0
        for k, layer in enumerate(self.layers):
            if layer.group in groups and layer.size and self._has(k):
                self.first_row[k] = rows_so_far
                self.row_lengths[k] = layer.size // layer.shape[0]
                owners.append(np.stack([np.full(layer.shape[0], k), np.arange(layer.shape[0])], axis=1))
                rows_so_far += layer.shape[0]
        self.has_rows = bool(rows_so_far)
        """Whether there are layers that are centralized, with a row at least."""
        self.row_table = np.ascontiguousarray(
            np.concatenate(owners) if owners else np.zeros((0, 2)), dtype=np.int64
        )


def check_rows(layer: Layer) -> None:
    """Raise unless a layer's gradient can be centralized."""
    if layer.ndim < 3:
        raise ValueError(
            f"grad_centralization of group {layer.group} must be False for {layer.name!r}, which has {layer.ndim} "
            "dimensions of at least 3, got True; put convolution kernels into a group of their own"
        )
