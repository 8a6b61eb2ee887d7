"""Time of one optimizer step on arrays that stay where they are."""

import numpy as np

import numba_lamb as nl

from .profiles import PROFILES

MAKERS = {
    "lamb": lambda params: nl.Lamb(params, 1e-3, weight_decay=0.01, nonfinite="propagate"),
    "lamb-checked": lambda params: nl.Lamb(params, 1e-3, weight_decay=0.01),
    "lars": lambda params: nl.Lars(nl.Momentum(params, 1e-3, 0.9, weight_decay=0.01, nonfinite="propagate")),
    "momentum": lambda params: nl.Momentum(params, 1e-3, 0.9, weight_decay=0.01, nonfinite="propagate"),
}


class Step:
    """One step, gradients reused: what remains is the kernels and the Python around them."""

    params = (list(MAKERS), ["200-tiny", "resnet-50"])
    param_names = ("optimizer", "profile")
    timeout = 120

    def setup(self, optimizer, profile):
        rng = np.random.default_rng(0)
        shapes = PROFILES[profile]
        params = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        self.gradients = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        self.optimizer = MAKERS[optimizer](params)
        # Compile, touch all memory, and fill the address table before the clock runs.
        self.optimizer.step(self.gradients)

    def time_step(self, optimizer, profile):
        self.optimizer.step(self.gradients)
