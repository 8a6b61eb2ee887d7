"""CpuBucket: the layers of one arithmetic whose arrays live in the CPU's memory, with their state and scratch."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb._compile import Kernel
from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.precision import Precision
from numba_lamb.groups import Parameter
from numba_lamb.kernels import columns
from numba_lamb.kernels.columns import LARGEST_COUNT as LARGEST
from numba_lamb.kernels.cpu import passes
from numba_lamb.kernels.cpu.program import Work
from numba_lamb.layout import FlatLayout
from numba_lamb.memory.arrays import address_of, aligned_zeros
from numba_lamb.methods.checks import check_step_count
from numba_lamb.methods.passes import Pass
from numba_lamb.numerics import rules
from numba_lamb.sharding import Division


class CpuBucket(Bucket):
    """Tables, state and scratch of the layers that are computed with in one dtype, in the CPU's memory.

    Parameters
    ----------
    layout, dtype, parameters, precisions, state_names, division, rank
        As for `Bucket`.
    """

    kernels: Mapping[str, Kernel] = passes.KERNELS
    """The passes by name, for this bucket's precision."""

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
        super().__init__(layout, dtype, parameters, precisions, state_names, division, rank)
        count = len(self.layers)
        self.rates = np.zeros(count)
        self.steps: NDArray[Any] = np.zeros(count, dtype=np.int64)
        self.updated = np.zeros(count, dtype=np.int64)
        # What `common_step` tells, -1 for None; the kernel that counts keeps it up.
        self.common = np.zeros(1, dtype=np.int64)
        self.norms = np.zeros((count, columns.NORMS))
        self.scales = np.zeros((count, columns.SCALES), dtype=dtype)
        self.bounds = np.zeros(count, dtype=dtype)
        # Bit patterns: of the bounds, and all ones but for the sign.
        self.bound_patterns = self.bounds.view(f"u{dtype.itemsize}")
        self.signless = np.invert(np.zeros(1, dtype=self.bound_patterns.dtype)) >> np.uint8(1)
        # How many bytes ahead loops prefetch.
        self.ahead = np.zeros(1, dtype=np.int64)
        self.squares = np.zeros(count)
        self.total = np.zeros(1)
        self._state = {
            name: aligned_zeros(nbytes, np.dtype(np.uint8)) for name, nbytes in self.state.nbytes.items()
        }
        for name, buffer in self._state.items():
            self.state.point(self.addresses, name, address_of(buffer))
        self.sums = np.zeros((len(self.chunks), columns.SUMS))
        self.nonfinite = np.zeros(len(self.chunks), dtype=np.int32)
        # What norms and complaints are made of.
        self.all_sums, self.all_nonfinite = self.sums, self.nonfinite
        if division is not None:
            self.all_sums = np.zeros((len(self.all_chunks), columns.SUMS))
            self.all_nonfinite = np.zeros(len(self.all_chunks), dtype=np.int32)
        self.centralize(())

    @property
    def keys(self) -> NDArray[np.int64] | None:
        """What random bits are made of; None where no array is stored otherwise."""
        return None if self.formats is None else self.random

    @property
    def counts(self) -> NDArray[Any] | None:
        """The steps that layers have taken, which random bits are made of too; None likewise."""
        return None if self.formats is None else self.steps

    def saved(self) -> dict[str, NDArray[Any]]:
        """Return what a step leaves behind, by name; not copied."""
        return {"steps": self.steps, "updated": self.updated, "norms": self.norms, **self._state}

    def blank(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of `saved` themselves."""
        return self.saved()

    def beyond_float16(self) -> dict[str, float]:
        """Return how many elements of each float32 master its float16 parameter cannot hold."""
        return self.counted_beyond_float16(self._state, self.updated)

    def restore(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Put back what `saved` returned, of this bucket or of one with the first of its layers."""
        own = self.saved()
        for name, array in values.items():
            if own[name] is not array:
                own[name][: len(array)] = array
        self._look_at_steps()

    def use_steps(self, steps: NDArray[Any]) -> None:
        """Have the layers' steps counted in an array of somebody else's."""
        self.steps = steps
        self._look_at_steps()

    def common_step(self) -> int | None:
        """Return the step count that all layers have, None if they differ; raise if one is no count."""
        if self.steps.dtype.kind == "f":
            # Somebody else's, who may have written to them.
            self._look_at_steps()
        common = int(self.common[0])
        return None if common < 0 else common

    def _look_at_steps(self) -> None:
        """Find the count that all layers have, and raise if one is no count."""
        steps = self.steps
        if not ((steps >= 0) & (steps <= LARGEST) & (steps == np.floor(steps))).all():
            for layer, count in zip(self.layers, steps.tolist(), strict=True):
                check_step_count(layer.name, count)
        self.common[0] = int(steps[0]) if (steps == steps[0]).all() else -1

    def refresh_flags(self) -> None:
        """Recompute what is derived from `hyper64`; call after writing to it."""
        super().refresh_flags()
        self._bounds_of: float | None = None

    def find_bounds(self, loss_scale: float) -> None:
        """Write what each layer's gradients may be at most, as they are given."""
        if loss_scale != self._bounds_of:
            self._bounds_of = None
            self.bounds[:] = self.raw_bounds(loss_scale)
            self._bounds_of = loss_scale

    def write_rates(self, rates: NDArray[np.float64]) -> None:
        """Write each layer's learning rate."""
        self.rates[:] = rates

    def write_decays(self, decays: NDArray[np.float64]) -> None:
        """Write each layer's weight decay, 0 where a filter exempts it, and whether it adapts.

        Call `write_rates` first.
        """
        decays = decays * self.hyper64[:, columns.DECAYED]
        self.hyper[:, columns.ADAPT] = rules.adapts(self.hyper64[:, columns.ADAPTS], decays)
        if self.shrinks:
            outside = self.hyper64[:, columns.DECOUPLED] != 0
            self.hyper[:, columns.SHRINK] = np.where(outside, rules.decay_factor(self.rates, decays), 1.0)
            decays = np.where(outside, 0.0, decays)
        self.hyper[:, columns.DECAY] = decays

    def write_factors(self, loss_scale: float) -> None:
        """Write what gradients that are not clipped are multiplied by."""
        factor = rules.gradient_factor(self.hyper64[:, columns.SIGN], 1.0, loss_scale)
        self.hyper[:, columns.RESCALE] = factor

    def write_corrections(self, common: int | None) -> None:
        """Write the bias corrections of LAMB's layers for their next steps, and correct rates that ask for it.

        `common` is what `common_step` returned.
        """
        given = self.hyper64[:, columns.BETA1_64 : columns.RATE_CORRECTION + 1]
        if common is not None and self.corrects_alike:
            found = _corrections((*given[0].tolist(), common + 1))
            self.hyper[:, columns.CORRECTION1] = found[0]
            self.hyper[:, columns.CORRECTION2] = found[1]
            if found[2] != 1.0:
                self.rates *= found[2]
            return
        table = np.column_stack([given, self.steps])
        if self.corrects_alike:
            _, first, which = np.unique(self.steps, return_index=True, return_inverse=True)
            keys = table[first]
        else:
            keys, which = np.unique(table, axis=0, return_inverse=True)
        found_of = np.array([_corrections((*key[:-1], int(key[-1]) + 1)) for key in keys.tolist()])[
            which.ravel()
        ]
        self.hyper[:, [columns.CORRECTION1, columns.CORRECTION2]] = found_of[:, :2]
        if self.corrects_rates:
            self.rates *= found_of[:, 2]

    def _make_rows(self, groups: Sequence[int]) -> None:
        super()._make_rows(groups)
        self.means = np.zeros(len(self.row_table), dtype=self.dtype)
        # What centralization multiplies each layer's gradient and weights by.
        self.prepared = np.zeros((len(self.layers), 2), dtype=self.dtype)

    def prepare_rows(self, with_decay: bool) -> None:
        """Write what the row means of this step are made with, once gradients' factors are known."""
        if self.has_rows:
            self.prepared[:, 0] = self.hyper[:, columns.RESCALE]
            self.prepared[:, 1] = self.hyper[:, columns.DECAY] if with_decay else 0

    def work(self, steps: Sequence[Pass], part: slice = slice(None)) -> list[Work]:
        """Return these passes over this bucket's layers or part of its chunks, those that have something to do."""
        return [self._work(one, part) for one in steps if not one.when or getattr(self, one.when)]

    def _work(self, one: Pass, part: slice) -> Work:
        """Return a pass with its arguments, which are tables of this bucket by their names."""
        tables = {"chunks": self.chunks[part], "sums": self.sums[part]}
        kernel = self.kernels[one.kernel]
        names = inspect.signature(kernel.serial).parameters
        arguments = (
            tables[name]
            if name in tables
            else getattr(self, name)
            if hasattr(self, name)
            else getattr(self.table, name)
            for name in names
        )
        return Work(kernel, 0 if one.unit == "layer" else len(tables["chunks"]), tuple(arguments))


def _corrections(key: Sequence[Any]) -> tuple[float, float, float]:
    """Return what the moments and the rate are multiplied by, given decay rates, options and the 1-based step."""
    beta1, beta2, corrected, kind, step = key
    factor = rules.rate_factor(kind, beta1, beta2, step)
    if not corrected:
        return 1.0, 1.0, factor
    return rules.bias_correction(beta1, step), rules.bias_correction(beta2, step), factor
