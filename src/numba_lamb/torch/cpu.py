"""CpuEngine: steps on the CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.kernels import rows
from numba_lamb.optimizers import cpu_step
from numba_lamb.optimizers.backend import named_stats
from numba_lamb.optimizers.cpu_part import CpuPart
from numba_lamb.torch.model import Model, Step
from numba_lamb.torch.options import number


class CpuEngine:
    """Runs the steps of a model on the CPU, on as many threads as PyTorch uses.

    Parameters
    ----------
    has_two_moments : bool
        Whether the kernels are Lamb's.
    """

    make_part = CpuPart

    def __init__(self, has_two_moments: bool) -> None:
        self._has_two_moments = has_two_moments
        self._loss_scale = 1.0
        self._grad_norm: float | None = None
        self.skipped = 0

    def place(self, model: Model, groups: int, quantities: Sequence[tuple[str, int, bool]]) -> None:
        """Get ready for a model that is new."""
        self._slots, self._quantities = model.slots, quantities
        self._parts = [part for part in model.parts if isinstance(part, CpuPart)]
        counts = model.steps.numpy()
        first = 0
        for part in self._parts:
            # A view, so that steps are counted where PyTorch shows them.
            part.steps = counts[first : first + len(part.layers)]
            first += len(part.layers)
        self.options_changed()

    def options_changed(self) -> None:
        """Know that scalars and settings were written anew: gradients are multiplied by their sign alone."""
        self._loss_scale = 1.0
        # What rates and decays were made of: the same objects as long as they are the same.
        self._written: tuple[Any, Any] = (None, None)
        self.checks = any(part.checks for part in self._parts)
        """Whether a step may be refused because of its gradients."""

    def step(
        self,
        step: Step,
        rates: Sequence[float],
        decays: NDArray[np.float64],
        nonfinite: str,
        loss_scale: Any,
        found_inf: Any,
    ) -> bool:
        """Take a step and return whether it was applied.

        Parameters
        ----------
        step : Step
            What the model says of the gradients.
        rates, decays : sequence of float
            Of each group.
        nonfinite : str
            What is done about gradients that are not finite, where a group has them checked.
        loss_scale, found_inf : Tensor or None
            What PyTorch's GradScaler says.
        """
        if found_inf is not None and number(found_inf):
            self.skipped += 1
            return False
        scale = 1.0 if loss_scale is None else float(number(loss_scale))
        written = rates, decays
        for part in self._parts:
            if scale != self._loss_scale:
                part.scalars[:, rows.RESCALE] = part.settings[:, rows.SIGN] * (1.0 / scale)
            if rates is not self._written[0] or decays is not self._written[1]:
                part.write_rates(np.array(rates, dtype=np.float64)[part.group_of])
                part.write_decays(decays[part.group_of])
            part.find_common_step()
            if self._has_two_moments:
                part.write_corrections()
        self._loss_scale = scale
        # Rates that were corrected must be written anew.
        self._written = (None, None) if any(part.corrects_rates for part in self._parts) else written
        passed, norm = cpu_step.inspect(self._parts, nonfinite, scale, None)
        if not passed:
            self.skipped += 1
            return False
        for part in self._parts:
            cpu_step.run(part, self._has_two_moments, None)
        for part in self._parts:
            part.count_step(step.complete)
        self._grad_norm = norm
        return True

    def stats(self) -> Mapping[str, float]:
        """Return statistics by name."""
        written = {id(part): (part.norms, part.updated, part.scalars[:, rows.ADAPT]) for part in self._parts}
        return named_stats(self._quantities, self._slots, written, self._grad_norm)
