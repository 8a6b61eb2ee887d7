"""CpuPart: the layers of one dtype whose arrays live in the CPU's memory, with their state and scratch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.arrays import address_of, aligned_zeros
from numba_lamb.groups import Parameter
from numba_lamb.kernels import cpu, launch, rows
from numba_lamb.layout import FlatLayout
from numba_lamb.numerics import rules
from numba_lamb.optimizers.parts import Part


class CpuPart(Part):
    """Tables, state and scratch of the layers that share a dtype, in the CPU's memory.

    Parameters
    ----------
    layout, dtype, parameters, decayed
        As for `Part`.
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
        super().__init__(layout, dtype, parameters, decayed)
        count, chunks = len(self.layers), len(self.table.chunks)
        self.rates = np.zeros(count)
        self.steps: NDArray[Any] = np.zeros(count, dtype=np.int64)
        self.updated = np.zeros(count, dtype=np.bool_)
        self.forget_written()
        self.sums = np.zeros((chunks, 2))
        self.norms = np.zeros((count, rows.NORMS))
        self.scales = np.zeros((count, rows.SCALES), dtype=dtype)
        self.nonfinite = np.zeros(chunks, dtype=np.int32)
        self.squares = np.zeros(count)
        self.total = np.zeros(1)
        self._state: dict[str, NDArray[Any]] = {}
        for column, name in enumerate(state_names, start=rows.FIRST):
            buffer = aligned_zeros(self.table.extent, dtype)
            self._state[name] = buffer
            self.addresses[:, column] = address_of(buffer) + self.table.offsets * dtype.itemsize
        self.centralize(())

    def saved(self) -> dict[str, NDArray[Any]]:
        """Return what a step leaves behind, by name; not copied."""
        return {"steps": self.steps, "updated": self.updated, "norms": self.norms, **self._state}

    def blank(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of `saved` themselves."""
        return self.saved()

    def restore(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Put back what `saved` returned, of this part or of one with the first of its layers."""
        own = self.saved()
        for name, array in values.items():
            if own[name] is not array:
                own[name][: len(array)] = array
        self.forget_written()

    def forget_written(self) -> None:
        """Have the next step write its rates and decays anew, and look at the layers' steps again."""
        self.written_rates: list[float] = []
        self.written_decays: list[float] = []
        self.find_common_step()

    def find_common_step(self) -> None:
        """Look at the layers' steps again, which somebody may have written to."""
        first = int(self.steps[0])
        self.common_step: int | None = first if (self.steps == first).all() else None

    def write_rates(self, rates: NDArray[np.float64]) -> None:
        """Write each layer's learning rate."""
        self.rates[:] = rates

    def write_decays(self, decays: NDArray[np.float64]) -> None:
        """Write each layer's weight decay, of which filters may leave nothing; after `write_rates`."""
        decays = decays * self.settings[:, rows.DECAYED]
        if self.shrinks:
            outside = self.settings[:, rows.OUTSIDE] != 0
            self.scalars[:, rows.SHRINK] = np.where(outside, 1.0 - self.rates * decays, 1.0)
            decays = np.where(outside, 0.0, decays)
        self.scalars[:, rows.DECAY] = decays

    def write_corrections(self) -> None:
        """Write the bias corrections of LAMB's layers for their next steps, and correct rates that ask for it."""
        columns = self.settings[:, rows.FIRST_DECAY : rows.RATE_CORRECTION + 1]
        if self.common_step is not None and self.corrects_alike:
            found = _corrections((*columns[0].tolist(), self.common_step + 1))
            self.scalars[:, rows.CORRECTION1] = found[0]
            self.scalars[:, rows.CORRECTION2] = found[1]
            if found[2] != 1.0:
                self.rates *= found[2]
            return
        table = np.column_stack([columns, self.steps])
        if self.corrects_alike:
            _, first, which = np.unique(self.steps, return_index=True, return_inverse=True)
            keys = table[first]
        else:
            keys, which = np.unique(table, axis=0, return_inverse=True)
        found_of = np.array([_corrections((*key[:-1], int(key[-1]) + 1)) for key in keys.tolist()])[
            which.ravel()
        ]
        self.scalars[:, [rows.CORRECTION1, rows.CORRECTION2]] = found_of[:, :2]
        if self.corrects_rates:
            self.rates *= found_of[:, 2]

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
            self.find_common_step()

    def centralize(self, groups: Sequence[int]) -> None:
        """Make the tables of row means for the layers of `groups`, and space for the means."""
        super().centralize(groups)
        self.means = np.zeros(len(self.row_table), dtype=self.dtype)
        table = self.table
        self.step_tables = (
            *(self.addresses, self.scalars, self.settings, self.rates),
            *(table.sizes, table.first_chunk, table.chunks, table.windows),
            *(self.first_row, self.row_lengths, self.means),
            *(self.sums, self.norms, self.scales),
        )
        """What the kernels of a step read and write, in their order."""

    def update_row_means(self, prepared: NDArray[Any], num_threads: int | None) -> None:
        """Compute the row means of centralized layers; `prepared` has each layer's gradient and weight factor."""
        arguments = (self.addresses, prepared, self.row_table, self.row_lengths, self.means)
        launch.run(cpu.row_means, len(self.table.chunks), num_threads, *arguments)


def _corrections(key: Sequence[Any]) -> tuple[float, float, float]:
    """Return what the moments and the rate are multiplied by, given decay rates, options and the 1-based step."""
    beta1, beta2, corrected, kind, step = key
    factor = rules.rate_factor(kind, beta1, beta2, step)
    if not corrected:
        return 1.0, 1.0, factor
    return rules.bias_correction(beta1, step), rules.bias_correction(beta2, step), factor
