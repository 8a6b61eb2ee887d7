"""What a History costs beside the steps that it records."""

import time

import numpy as np

import numba_lamb as nl
from numba_lamb.cli.bench.profiles import PROFILES

from .step import arrays


class Recording:
    """Steps of 200 small tensors, each followed by a record: the step leaves the caches cold for it."""

    params = (["raise", "propagate"], [1, None])
    param_names = ("nonfinite", "threads")
    timeout = 120

    def setup(self, nonfinite, threads):
        shapes = PROFILES["200-tiny"]
        self.gradients = arrays(shapes, seed=1)
        self.optimizer = nl.Lamb(arrays(shapes), 1e-3, nonfinite=nonfinite, num_threads=threads)
        self.history = nl.History(self.optimizer)
        self.optimizer.step(self.gradients)

    def track_share_of_step(self, nonfinite, threads):
        """Percent that a record takes of a step; medians of 1,000."""
        times = []
        for _ in range(1000):
            start = time.perf_counter_ns()
            self.optimizer.step(self.gradients)
            between = time.perf_counter_ns()
            self.history.record()
            times.append((between - start, time.perf_counter_ns() - between))
        step, record = np.median(times, axis=0)
        return 100 * record / step

    track_share_of_step.unit = "%"
