"""CpuBackend: the phases of a step on NumPy arrays."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.arrays import plain
from numba_lamb.gradients import Reader
from numba_lamb.groups import Parameter
from numba_lamb.host_reader import HostReader
from numba_lamb.kernels import rows
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.optimizers import cpu_step
from numba_lamb.optimizers.backend import Backend, Subject, named_stats
from numba_lamb.optimizers.cpu_part import CpuPart
from numba_lamb.optimizers.records import CpuRecord, Placement


class CpuBackend(Backend):
    """Runs steps on the CPU.

    Parameters
    ----------
    num_threads : int or None
        CPU threads.
    """

    waits = False

    def __init__(self, num_threads: int | None) -> None:
        self.nonfinite = "raise"
        self._num_threads = num_threads
        self._counters = cpu_step.Counters()

    def new_reader(self, layers: Sequence[Layer], arrays: Sequence[Any]) -> Reader:
        """Return what says where these parameters and their gradients lie."""
        return HostReader(layers, arrays)

    def new_part(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        decayed: Sequence[bool],
        state_names: Sequence[str],
    ) -> CpuPart:
        """Return tables and zeroed state for the layers of `dtype`."""
        return CpuPart(layout, dtype, parameters, decayed, state_names)

    def values_of(self, parameter: Parameter) -> NDArray[Any]:
        """Return a parameter's values."""
        return plain(parameter.array)

    def writer(self, parameter: Parameter, values: NDArray[Any]) -> Callable[[], Any]:
        """Return what writes values of the right form into a parameter, and runs no Python."""
        return partial(plain(parameter.array).__setitem__, Ellipsis, values)

    def placed(self, optimizer: Subject) -> None:
        """Have the next step write rates and decays anew."""
        self._placement: Placement | None = None
        for part in self._cpu_parts(optimizer):
            part.forget_written()

    def counters(self) -> tuple[int, int]:
        """Return how many steps were applied and how many skipped."""
        return self._counters.applied, self._counters.skipped

    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""
        self._counters.reset(applied, skipped)

    def stats(self, optimizer: Subject) -> dict[str, float]:
        """Return the optimizer's statistics by name."""
        written = {
            id(part): (part.norms, part.updated, part.scalars[:, rows.ADAPT])
            for part in self._cpu_parts(optimizer)
        }
        return named_stats(optimizer._quantities, optimizer._slots, written, self._counters.grad_norm)

    def record(self, optimizer: Subject) -> CpuRecord:
        """Return a copy of what the last step left."""
        parts: Any = optimizer._parts
        if self._placement is None:
            self._placement = Placement(parts, optimizer._slots, optimizer._quantities)
        return CpuRecord(self._placement, parts, self._counters, optimizer._gradients.found)

    def _cpu_parts(self, optimizer: Subject) -> list[CpuPart]:
        return [part for part in optimizer._parts if isinstance(part, CpuPart)]

    def step(self, optimizer: Subject, gradients: Any, stream: object) -> bool:
        """Take a step and return whether it was applied."""
        if stream is not None:
            raise ValueError("stream is for arrays on a GPU; these parameters are NumPy arrays")
        parts = self._cpu_parts(optimizer)
        rates = self._values(optimizer, parts, "lr")
        decays = self._values(optimizer, parts, "weight_decay")
        held = optimizer._gradients.ordered(gradients)
        # Schedules and what gives the gradients are the user's code; from here on none runs.
        optimizer._gradients.update(held)
        for part in parts:
            common = part.common_step()
            # Corrected rates are multiplied where they stand, and decay outside the direction depends on the rate.
            if part.corrects_rates or (rates, decays) != (part.written_rates, part.written_decays):
                part.forget_written()
                part.write_rates(np.array(rates)[part.group_of])
                part.write_decays(np.array(decays)[part.group_of])
                part.written_rates, part.written_decays = rates, decays
            if optimizer._has_two_moments:
                part.write_corrections(common)
        passed, norm = cpu_step.inspect(parts, optimizer._nonfinite, optimizer._loss_scale, self._num_threads)
        if passed:
            cpu_step.commit(parts, optimizer._has_two_moments, self._counters, norm, self._num_threads)
        else:
            self._counters.skip()
        del held
        return passed

    def _values(self, optimizer: Subject, parts: Sequence[CpuPart], key: str) -> list[float]:
        applied = self._counters.applied
        values = optimizer._groups.values(key, applied)
        for part in parts:
            if max(values) > part.largest and max(values[k] for k in part.group_of) > part.largest:
                index = max(part.group_of.tolist(), key=values.__getitem__)
                raise ValueError(
                    f"{key!r} of group {index} at step {applied} is {values[index]!r}, "
                    f"more than the {part.dtype} of its parameters can hold"
                )
        return values
