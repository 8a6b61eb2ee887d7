"""CudaEngine: steps on one GPU, queued on PyTorch's current stream there without ever waiting for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.cuda.backend import CudaBackend
from numba_lamb.engine.cuda.bucket import CudaBucket
from numba_lamb.engine.records import Record
from numba_lamb.groups import Parameter
from numba_lamb.kernels.cpu.program import run_in_order
from numba_lamb.layout import FlatLayout
from numba_lamb.rates import RATE_KEYS, Rate, RateCache
from numba_lamb.torch import tensors
from numba_lamb.torch.keys import where
from numba_lamb.torch.model import Model, Step


class _Groups:
    """The groups' rates as a backend asks for them: those of the step that is being taken."""

    def __init__(self) -> None:
        self._book = RateCache()
        self._given: dict[str, Sequence[Any]] = dict.fromkeys(RATE_KEYS, ())
        self.dicts: Sequence[Mapping[str, Any]] = ()

    def give(self, rates: Sequence[Any], decays: Sequence[float]) -> None:
        """Say what the rates are now."""
        self._given = dict(zip(RATE_KEYS, (rates, decays), strict=True))

    def rate(self, index: int, key: str) -> Rate:
        """Return the rate that a group has under `key` now."""
        given = self._given[key][index]
        if isinstance(given, Tensor):
            given = given.detach().reshape(())
        return self._book.get((index, key), given, f"{key}{where(index)}")

    def values(self, key: str, step: int) -> list[float]:
        """Return each group's value under `key`."""
        return [self.rate(index, key)(step) for index in range(len(self.dicts))]


class _Gradients:
    """The gradients of the step that is being taken, whose addresses the model has written."""

    found = np.zeros(0, dtype=np.int64)

    def ordered(self, gradients: Step) -> Sequence[Any]:
        """Return them by layer."""
        self.found = gradients.found
        return gradients.gradients

    def update(self, gradients: Sequence[Any]) -> None:
        """Do nothing: the model has looked at them."""

    def producers(self, gradients: Sequence[Any]) -> set[int]:
        """Return no stream: PyTorch's tensors do not name one."""
        return set()


class CudaEngine:
    """Runs the steps of a model on one GPU.

    Parameters
    ----------
    has_two_moments : bool
        Whether the kernels are Lamb's.
    index : int
        The GPU.
    """

    def __init__(self, has_two_moments: bool, index: int) -> None:
        self._backend = CudaBackend(index, "torch", None)
        self._has_two_moments = has_two_moments
        self._groups = _Groups()
        self._gradients = _Gradients()
        self._nonfinite = "skip"
        self._loss_scale = 1.0
        self._statistics: Sequence[tuple[str, int, bool]] = ()
        self._decays: NDArray[np.float64] | None = None
        self._decay_list: list[float] = []
        self._step: Step | None = None
        self._scales: list[Tensor | None] = []

    def make_bucket(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        state_names: Sequence[str],
    ) -> Bucket:
        """Return tables for the layers of `dtype`."""
        return self._backend.new_bucket(layout, dtype, parameters, state_names)

    def place(self, model: Model, groups: int, statistics: Sequence[tuple[str, int, bool]]) -> None:
        """Get ready for a model that is new."""
        self._buckets = [bucket for bucket in model.buckets if isinstance(bucket, CudaBucket)]
        self._placement, self.layout, self._statistics = model.placement, model.layout, statistics
        self._parameters, self._arrays = model.parameters, [p.array for p in model.parameters]
        # Kernels count steps where PyTorch shows them; the tensor must live as long as they may.
        self._steps = model.steps
        first = tensors.address_of(model.steps)
        for bucket in self._buckets:
            bucket.use_steps(first)
            first += len(bucket.layers) * model.steps.element_size()
        self._groups.dicts = [{}] * groups
        self._groups.give([0.0] * groups, [0.0] * groups)
        self._backend.placed(self)

    def options_changed(self) -> None:
        """Do nothing: the columns that were rewritten are sent with the next step."""

    def prepare(
        self,
        step: Step,
        rates: Sequence[Any],
        decays: NDArray[np.float64],
        nonfinite: str,
        loss_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> bool:
        """Note what a step depends on; arguments as for `CpuEngine.prepare`, rates also as tensors.

        Whether the step can be taken is known on the device alone.
        """
        self._nonfinite = nonfinite if any(bucket.checks for bucket in self._buckets) else "propagate"
        if decays is not self._decays:
            # The same floats as long as the decays are the same, for each of which a backend keeps a rate.
            self._decays, self._decay_list = decays, decays.tolist()
        self._groups.give(rates, self._decay_list)
        # Held until the step is queued; after that the stream's order protects them.
        self._step, self._scales = (
            step,
            [None if value is None else _on_device(value, self._steps) for value in (loss_scale, found_inf)],
        )
        self._backend.grad_scale, self._backend.found_inf = (
            0 if value is None else tensors.address_of(value) for value in self._scales
        )
        return True

    def commit(self, scatter: Sequence[Callable[[], Any]]) -> None:
        """Queue the step that was prepared, and `scatter` behind it."""
        try:
            self._backend.step(self, self._step, None)
            run_in_order(scatter)
        finally:
            self._step, self._scales = None, []

    @property
    def skipped(self) -> int:
        """Steps left out, after waiting for the GPU."""
        return self._backend.counters()[1]

    def stats(self) -> Mapping[str, float]:
        """Return statistics by name, which are waited for when the first is read."""
        return self._backend.stats(self)

    def record(self) -> Record:
        """Return a copy of what the last step left, without waiting for it."""
        return self._backend.record(self)


def _on_device(value: Tensor, like: Tensor) -> Tensor:
    """Return what GradScaler says as one float32 value beside `like`."""
    return value.detach().to(device=like.device, dtype=like.dtype).reshape(())
