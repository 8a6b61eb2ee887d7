"""Time of one optimizer step on arrays that stay where they are."""

import numpy as np

import numba_lamb as nl
from numba_lamb.cli.bench.machine import available_memory, usable_cpus
from numba_lamb.cli.bench.profiles import PROFILES, parameter_count

MAKERS = {
    "lamb": lambda params, **more: nl.Lamb(params, 1e-3, weight_decay=0.01, nonfinite="propagate", **more),
    "lamb-checked": lambda params, **more: nl.Lamb(params, 1e-3, weight_decay=0.01, **more),
    "lars": lambda params, **more: nl.Lars(MAKERS["momentum"](params, **more)),
    "momentum": lambda params, **more: nl.Momentum(
        params, 1e-3, 0.9, weight_decay=0.01, nonfinite="propagate", **more
    ),
}


def arrays(shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=dtype) for shape in shapes]


class Step:
    """One step, gradients reused: what remains is the kernels and the Python around them."""

    params = (list(MAKERS), ["200-tiny", "resnet-50"])
    param_names = ("optimizer", "profile")
    timeout = 120

    def setup(self, optimizer, profile):
        shapes = PROFILES[profile]
        self.gradients = arrays(shapes, seed=1)
        self.optimizer = MAKERS[optimizer](arrays(shapes))
        # Compile, touch all memory, and fill the address table before the clock runs.
        self.optimizer.step(self.gradients)

    def time_step(self, optimizer, profile):
        """Seconds of one step in float32 with the default number of threads."""
        self.optimizer.step(self.gradients)


class StepByThreads:
    """One step of each kernel in both dtypes, on one thread and on every CPU that may be used."""

    params = (
        ["lamb", "lars", "momentum"],
        ["200-tiny", "resnet-50"],
        ["float32", "float64"],
        sorted({1, usable_cpus()}),
    )
    param_names = ("optimizer", "profile", "dtype", "threads")
    timeout = 120

    def setup(self, optimizer, profile, dtype, threads):
        shapes = PROFILES[profile]
        self.gradients = arrays(shapes, np.dtype(dtype), seed=1)
        self.optimizer = MAKERS[optimizer](arrays(shapes, np.dtype(dtype)), num_threads=threads)
        self.optimizer.step(self.gradients)

    def time_step(self, optimizer, profile, dtype, threads):
        """Seconds of one step; threads and dtypes side by side."""
        self.optimizer.step(self.gradients)


class StepLarge(Step):
    """The step on models that fill the memory; skipped where it does not hold them."""

    params = (list(MAKERS), ["bert-base", "bert-large", "one-100M"])
    timeout = 600

    def setup(self, optimizer, profile):
        memory = available_memory()
        if memory is not None and memory < 20 * parameter_count(PROFILES[profile]):
            raise NotImplementedError("not enough memory")
        super().setup(optimizer, profile)
