"""What a fresh process waits for: the import, and the kernels' compilation or loading."""

import os
import subprocess
import sys
import tempfile

FIRST_STEP = """
import time
import numpy as np
import numba_lamb as nl
w, g = np.ones(100_000, np.float32), np.ones(100_000, np.float32)
momentum = lambda: nl.Momentum([w], 0.1, 0.9)
opt = {"lamb": lambda: nl.Lamb([w], 0.1), "lars": lambda: nl.Lars(momentum()), "momentum": momentum}["%s"]()
start = time.perf_counter()
opt.step([g])
print(time.perf_counter() - start)
"""


def first_step_seconds(optimizer, folder):
    """Return the seconds of the first step in a new process that keeps its kernels in `folder`."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
    code = FIRST_STEP % optimizer
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


class FirstStep:
    """The first step of a process, with checked gradients and the default threads."""

    params = (["lamb", "lars", "momentum"],)
    param_names = ("optimizer",)
    timeout = 300
    unit = "seconds"

    def track_cold(self, optimizer):
        """Seconds with an empty kernel cache: everything compiles."""
        with tempfile.TemporaryDirectory() as folder:
            return first_step_seconds(optimizer, folder)

    def track_warm(self, optimizer):
        """Seconds where another process has filled the cache."""
        with tempfile.TemporaryDirectory() as folder:
            first_step_seconds(optimizer, folder)
            return first_step_seconds(optimizer, folder)


class Import:
    """A new interpreter that imports the package."""

    number = 1
    warmup_time = 0

    def timeraw_import(self):
        """Seconds of ``import numba_lamb``, Numba and NumPy included."""
        return "import numba_lamb"

    def timeraw_import_numba_alone(self):
        """Seconds of ``import numba``, to compare with."""
        return "import numba"
