"""How near a step comes to what a bare sweep shows the memory can do."""

from statistics import median

from numba_lamb.cli.bench.competitors import COMPETITORS, SWEEP
from numba_lamb.cli.bench.machine import usable_cpus
from numba_lamb.cli.bench.profiles import PROFILES
from numba_lamb.cli.bench.subjects import lamb, lamb_checked, lars, memory_sweep, momentum
from numba_lamb.cli.bench.worker import timed

MAKERS = {"lamb": lamb, "lamb-checked": lamb_checked, "lars": lars, "momentum": momentum}
ROUNDS = 9


class Bandwidth:
    """The step's bytes by theory at the sweep's bandwidth, over the step's time, both from the same rounds."""

    params = (list(MAKERS), ["resnet-50"])
    param_names = ("optimizer", "profile")
    timeout = 300
    unit = "fraction of the floor"

    def track_floor_fraction(self, optimizer, profile):
        """Median over rounds of floor time / step time; above 1 where a cache serves the second pass."""
        shapes, threads = PROFILES[profile], usable_cpus()
        step, sweep = MAKERS[optimizer](shapes, threads), memory_sweep(shapes, threads)
        timed(step, 3)
        timed(sweep, 3)
        share = COMPETITORS[optimizer].bytes_per_param / COMPETITORS[SWEEP].bytes_per_param
        return median(share * timed(sweep, 3) / timed(step, 3) for _ in range(ROUNDS))


class BandwidthLarge(Bandwidth):
    """The same on models that no cache holds."""

    params = (list(MAKERS), ["bert-base", "one-100M"])
    timeout = 900
