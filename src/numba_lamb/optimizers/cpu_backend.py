"""CpuBackend: the phases of a step on NumPy arrays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numba_lamb.gradients import HostGradients
from numba_lamb.groups import Parameter
from numba_lamb.kernels import cpu, launch, rows
from numba_lamb.layout import FlatLayout
from numba_lamb.numerics import rules
from numba_lamb.optimizers import inspection
from numba_lamb.optimizers.backend import Backend, named_stats
from numba_lamb.optimizers.cpu_part import CpuPart

if TYPE_CHECKING:
    from numba_lamb.optimizers.base import Optimizer


class CpuBackend(Backend):
    """Runs steps on the CPU.

    Parameters
    ----------
    num_threads : int or None
        CPU threads.
    """

    def __init__(self, num_threads: int | None) -> None:
        self.nonfinite = "raise"
        self.reader = HostGradients()
        self._num_threads = num_threads
        self._applied = 0
        self._skipped = 0
        self._grad_norm: float | None = None

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

    def placed(self, optimizer: "Optimizer") -> None:
        """Have the next step write rates and decays anew."""
        for part in self._cpu_parts(optimizer):
            part.forget_written()

    def counters(self) -> tuple[int, int]:
        """Return how many steps were applied and how many skipped."""
        return self._applied, self._skipped

    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""
        self._applied, self._skipped, self._grad_norm = applied, skipped, None

    def stats(self, optimizer: "Optimizer") -> dict[str, float]:
        """Return the optimizer's statistics by name."""
        written = {
            id(part): (part.norms, part.updated, part.scalars[:, rows.ADAPT])
            for part in self._cpu_parts(optimizer)
        }
        return named_stats(optimizer._quantities, optimizer._slots, written, self._grad_norm)

    def _cpu_parts(self, optimizer: "Optimizer") -> list[CpuPart]:
        return [part for part in optimizer._parts if isinstance(part, CpuPart)]

    def step(self, optimizer: "Optimizer", gradients: Any, stream: object) -> bool:
        """Take a step and return whether it was applied."""
        if stream is not None:
            raise ValueError("stream is for arrays on a GPU; these parameters are NumPy arrays")
        parts = self._cpu_parts(optimizer)
        rates = self._values(optimizer, parts, "lr")
        decays = self._values(optimizer, parts, "weight_decay")
        for array in optimizer._arrays:
            if not array.flags.writeable:
                name = next(p.name for p in optimizer._parameters if p.array is array)
                raise ValueError(f"parameter {name!r} became read-only and cannot be updated in place")
        # Held by name until the kernels are done: a generator's arrays are held by nobody else.
        held = optimizer._gradients.update(gradients)
        for part in parts:
            if part.written_rates != rates:
                part.rates[:] = np.array(rates)[part.group_of]
                part.written_rates = rates
            if part.written_decays != decays:
                factors = optimizer._decay_factors(part)
                part.scalars[:, rows.DECAY] = np.array(decays)[part.group_of] * factors
                part.written_decays = decays
            if optimizer._betas is not None:
                _write_corrections(part, optimizer._betas)
        limit, norm = optimizer.max_grad_norm, None
        if limit is not None:
            norm = inspection.measure(parts, optimizer._loss_scale, self._num_threads)
            _write_rescale(parts, rules.clip_factor(norm, limit), optimizer._loss_scale)
        elif optimizer._nonfinite != "propagate":
            inspection.look_over(parts, self._num_threads)
        if optimizer._nonfinite != "propagate" and not inspection.passed(parts, norm, optimizer._nonfinite):
            self._skipped += 1
            return False
        for part in parts:
            self._run(optimizer, part)
        del held
        for part in parts:
            part.count_step(optimizer._gradients.complete)
        self._grad_norm = norm
        self._applied += 1
        return True

    def _values(self, optimizer: "Optimizer", parts: Sequence[CpuPart], key: str) -> list[float]:
        values = optimizer._groups.values(key, self._applied)
        for part in parts:
            if max(values) > part.largest and max(values[k] for k in part.group_of) > part.largest:
                index = max(part.group_of.tolist(), key=values.__getitem__)
                raise ValueError(
                    f"{key!r} of group {index} at step {self._applied} is {values[index]!r}, "
                    f"more than the {part.dtype} of its parameters can hold"
                )
        return values

    def _run(self, optimizer: "Optimizer", part: CpuPart) -> None:
        if len(part.row_table):
            factors = part.scalars[:, [rows.RESCALE, rows.DECAY]]
            if optimizer._betas is not None:
                # LAMB centralizes the gradient itself, with no decay in it.
                factors[:, 1] = 0
            part.update_row_means(np.ascontiguousarray(factors), self._num_threads)
        given = (part.addresses, part.scalars, part.rates)
        results = (part.sums, part.norms, part.scales)
        chunks, threads = len(part.table.chunks), self._num_threads
        if optimizer._betas is not None:
            launch.run(cpu.lamb_step, chunks, threads, *given, *part.gradient_tables, *results)
        else:
            launch.run(
                cpu.lars_step, chunks, threads, *given, optimizer._trust, *part.gradient_tables, *results
            )


def _write_rescale(parts: Sequence[CpuPart], clip_factor: float, loss_scale: float) -> None:
    for part in parts:
        part.scalars[:, rows.RESCALE] = clip_factor / loss_scale


def _write_corrections(part: CpuPart, betas: tuple[float, float]) -> None:
    """Write each layer's bias corrections, which are one pair where all took the same number of steps."""
    for column, beta in zip((rows.CORRECTION1, rows.CORRECTION2), betas, strict=True):
        if part.common_step is not None:
            part.scalars[:, column] = rules.bias_correction(beta, part.common_step + 1)
        else:
            steps = part.steps.tolist()
            known = {step: rules.bias_correction(beta, step + 1) for step in set(steps)}
            part.scalars[:, column] = [known[step] for step in steps]
