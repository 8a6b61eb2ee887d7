"""A Part: the layers of one dtype with the tables and flat state buffers that kernels work on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.arrays import address_of, aligned_zeros
from numba_lamb.groups import Parameter
from numba_lamb.kernels import cpu, launch, rows
from numba_lamb.layout import FlatLayout


class Part:
    """Tables, state and scratch of the layers that share a dtype.

    Parameters
    ----------
    layout : FlatLayout
        The whole model's layout.
    dtype : numpy.dtype
        Which of its layers this part holds.
    parameters : sequence of Parameter
        All parameters, in the layout's order.
    decayed : sequence of bool
        For each parameter whether its group's weight decay applies to it.
    state_names : sequence of str
        One flat buffer is kept for each; they go to the address columns from `rows.FIRST` on.
    """

    def __init__(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        decayed: Sequence[bool],
        state_names: Sequence[str],
    ) -> None:
        self.dtype = dtype
        self.largest = float(np.finfo(dtype).max)
        self.indices = layout.indices(dtype)
        self.layers = [layout.layers[k] for k in self.indices]
        self.table = layout.table(dtype)
        count, chunks = len(self.indices), len(self.table.chunks)
        self.group_of = np.array([layer.group for layer in self.layers], dtype=np.intp)
        self.decayed = np.array([decayed[k] for k in self.indices], dtype=np.float64)
        self.addresses = np.zeros((count, rows.ADDRESSES), dtype=np.int64)
        self.addresses[:, rows.WEIGHTS] = [address_of(parameters[k].array) for k in self.indices]
        self.scalars = np.zeros((count, rows.SCALARS), dtype=dtype)
        self.rates = np.zeros(count)
        self.steps = np.zeros(count, dtype=np.int64)
        self.updated = np.zeros(count, dtype=np.bool_)
        self.forget_written()
        self.sums = np.zeros((chunks, 2))
        self.norms = np.zeros((count, rows.NORMS))
        self.scales = np.zeros((count, rows.SCALES), dtype=dtype)
        self.nonfinite = np.zeros(chunks, dtype=np.int32)
        self.state: dict[str, NDArray[Any]] = {}
        for column, name in enumerate(state_names, start=rows.FIRST):
            buffer = aligned_zeros(self.table.extent, dtype)
            self.state[name] = buffer
            self.addresses[:, column] = address_of(buffer) + self.table.offsets * dtype.itemsize
        self.centralize(())

    def view(self, name: str, row: int) -> NDArray[Any]:
        """Return the state `name` of one layer, shaped as its parameter."""
        layer = self.layers[row]
        return self.state[name][layer.offset : layer.offset + layer.size].reshape(layer.shape)

    def adopt(self, older: "Part") -> None:
        """Take over state and steps of a part whose layers are the first of this one."""
        self.restore(older.saved())

    def saved(self) -> dict[str, NDArray[Any]]:
        """Return what a step leaves behind, by name; not copied."""
        return {"steps": self.steps, "updated": self.updated, "norms": self.norms, **self.state}

    def restore(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Put back what `saved` returned, of this part or of one with the first of its layers."""
        own = self.saved()
        for name, array in values.items():
            own[name][: len(array)] = array
        self.forget_written()

    def forget_written(self) -> None:
        """Have the next step write its rates and decays anew, and look at the layers' steps again."""
        self.written_rates: list[float] = []
        self.written_decays: list[float] = []
        self.common_step = self._find_common_step()

    def _find_common_step(self) -> int | None:
        first = int(self.steps[0])
        return first if (self.steps == first).all() else None

    def count_step(self, complete: bool) -> None:
        """Count a step of the layers that had a gradient, which are all where `complete`."""
        if complete and self.common_step is not None:
            self.steps += 1
            self.updated[:] = True
            self.common_step += 1
        else:
            active = self.addresses[:, rows.GRADIENT] != 0
            self.steps += active
            self.updated |= active
            self.common_step = self._find_common_step()

    def cast(self, name: str, value: float) -> float:
        """Return `value` if it is finite in this part's dtype, and not 0 unless it is."""
        with np.errstate(over="ignore", under="ignore"):
            held = self.dtype.type(value)
        if not np.isfinite(held) or (held == 0) != (value == 0):
            raise ValueError(
                f"{name} must be a normal number in {self.dtype}, the dtype of parameter "
                f"{self.layers[0].name!r}, not {value!r}"
            )
        return value

    def centralize(self, groups: Sequence[int]) -> None:
        """Make the tables of row means for the layers of `groups`."""
        count = len(self.layers)
        self.first_row = np.full(count, -1, dtype=np.int64)
        self.row_lengths = np.ones(count, dtype=np.int64)
        owners = []
        rows_so_far = 0
        for k, layer in enumerate(self.layers):
            if layer.group in groups and layer.size:
                self.first_row[k] = rows_so_far
                self.row_lengths[k] = layer.size // layer.shape[0]
                owners.append(np.stack([np.full(layer.shape[0], k), np.arange(layer.shape[0])], axis=1))
                rows_so_far += layer.shape[0]
        self.row_table = np.ascontiguousarray(
            np.concatenate(owners) if owners else np.zeros((0, 2)), dtype=np.int64
        )
        self.means = np.zeros(rows_so_far, dtype=self.dtype)

    @property
    def gradient_tables(self) -> tuple[NDArray[Any], ...]:
        """The tables that say how to walk chunks and centralize gradients, in the kernels' order."""
        table = self.table
        chunked = (table.sizes, table.first_chunk, table.chunks, table.windows)
        return (*chunked, self.first_row, self.row_lengths, self.means)

    def update_row_means(self, prepared: NDArray[Any], num_threads: int | None) -> None:
        """Compute the row means of centralized layers; `prepared` has each layer's gradient and weight factor."""
        arguments = (self.addresses, prepared, self.row_table, self.row_lengths, self.means)
        launch.run(cpu.row_means, len(self.table.chunks), num_threads, *arguments)
