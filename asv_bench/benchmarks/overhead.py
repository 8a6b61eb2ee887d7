"""What Python costs in a step: arrays so small that the kernels' own time hardly counts."""

import time
from statistics import median

from .step import MAKERS, arrays

TINY = [(8,)] * 200
STEPS = 200


class TinySteps:
    """A step over 200 arrays of 8 values."""

    params = (["lamb", "lamb-checked", "lars", "momentum"],)
    param_names = ("optimizer",)

    def setup(self, optimizer):
        self.optimizer = MAKERS[optimizer](arrays(TINY), num_threads=1)
        self.gradients = arrays(TINY, seed=1)
        self.optimizer.step(self.gradients)

    def time_reused_gradients(self, optimizer):
        """Seconds of a step whose gradient arrays are those of the step before."""
        self.optimizer.step(self.gradients)


class FreshGradients:
    """The same with gradient arrays that the optimizer has not seen, which it must check and look up."""

    params = TinySteps.params
    param_names = TinySteps.param_names
    # One step for each setup, since the second would find the arrays known.
    number = 1
    warmup_time = 0

    def setup(self, optimizer):
        self.optimizer = MAKERS[optimizer](arrays(TINY), num_threads=1)
        self.optimizer.step(arrays(TINY, seed=1))
        self.gradients = arrays(TINY, seed=2)

    def time_fresh_gradients(self, optimizer):
        """Seconds of a step whose gradient arrays are all new."""
        self.optimizer.step(self.gradients)


class PerLayer:
    """How a step's time grows with the number of layers."""

    params = (["lamb", "momentum"], ["reused", "fresh"])
    param_names = ("optimizer", "gradients")
    unit = "microseconds per layer"

    def track_microseconds_per_layer(self, optimizer, gradients):
        """Slope between 100 and 1,100 layers of 8 values."""
        few, many = (step_seconds(optimizer, layers, gradients == "fresh") for layers in (100, 1_100))
        return 1e6 * (many - few) / 1_000


def step_seconds(optimizer, layers, fresh):
    """Return the median time of a step over so many tiny layers."""
    shapes = [(8,)] * layers
    made, source = MAKERS[optimizer](arrays(shapes), num_threads=1), arrays(shapes, seed=1)
    made.step(source)
    times = []
    for _ in range(STEPS):
        given = [array.copy() for array in source] if fresh else source
        start = time.perf_counter()
        made.step(given)
        times.append(time.perf_counter() - start)
    return median(times)
