"""Memory that the optimizers take, as Python's allocator sees it; NumPy reports its arrays there."""

import tracemalloc

from numba_lamb.cli.bench.profiles import PROFILES, parameter_count

from .step import MAKERS, arrays


class Memory:
    """Memory beyond the user's own parameters and gradients."""

    params = (["lamb", "lamb-checked", "lars", "momentum"], ["200-tiny", "resnet-50"])
    param_names = ("optimizer", "profile")
    timeout = 120

    def setup(self, optimizer, profile):
        shapes = PROFILES[profile]
        self.count = parameter_count(shapes)
        self.weights, self.gradients = arrays(shapes), arrays(shapes, seed=1)
        # Compiled before anything is counted, the threaded kernels included.
        MAKERS[optimizer](arrays(shapes, seed=2)).step(self.gradients)
        tracemalloc.start()

    def teardown(self, optimizer, profile):
        tracemalloc.stop()

    def track_state_bytes_per_parameter(self, optimizer, profile):
        """Bytes held after the first step, tables included; two float32 moments alone are 8."""
        before, _ = tracemalloc.get_traced_memory()
        made = MAKERS[optimizer](self.weights)
        made.step(self.gradients)
        after, _ = tracemalloc.get_traced_memory()
        return (after - before) / self.count

    track_state_bytes_per_parameter.unit = "bytes"

    def track_peak_bytes_of_a_step(self, optimizer, profile):
        """Bytes that the second step takes at its peak on top of what is held."""
        made = MAKERS[optimizer](self.weights)
        made.step(self.gradients)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        made.step(self.gradients)
        _, peak = tracemalloc.get_traced_memory()
        return peak - before

    track_peak_bytes_of_a_step.unit = "bytes"
