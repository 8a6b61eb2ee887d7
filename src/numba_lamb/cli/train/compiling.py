"""The compilation of LAMB's kernels, told when it begins: it takes seconds in which nothing else is shown."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import event

from numba_lamb._compile import cache_state
from numba_lamb.cli.train.model import initial, views
from numba_lamb.cli.train.plan import CONTESTANTS
from numba_lamb.schedules import CosineWithWarmUpLR


def warm_up(say: Callable[[str], None]) -> None:
    """Take one step as the runs do, so that all their kernels are there; call `say` if any had to be compiled."""
    teller = _Teller(say)
    with event.install_listener("numba:compile", teller):
        flat = initial(0)
        schedule = CosineWithWarmUpLR(0.0, warmup_steps=1, total_steps=2)
        CONTESTANTS["lamb"].make(views(flat), schedule).step(views(np.zeros_like(flat)))
    if teller.began is not None:
        say(f"Compiled in {time.monotonic() - teller.began:.1f} s.")


class _Teller(event.Listener):  # type: ignore[misc]
    """Says that kernels are compiled when the first of them is; what comes from the cache is no such event."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.began: float | None = None

    def on_start(self, event: Any) -> None:
        if self.began is None:
            self.began = time.monotonic()
            if cache_state.folder is None:
                when = f"Every process does, because there is no kernel cache: {cache_state.reason}."
            else:
                when = "They are kept on disk: this happens once."
            self._say(f"Compiling LAMB's kernels for float32, some 10 s. {when}")

    def on_end(self, event: Any) -> None:
        pass
