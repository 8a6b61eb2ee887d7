"""What suits this processor before any step was timed: it decides how fast a step is, and no bit."""

import os
import platform

from llvmlite import binding

PAGE = 4096
LINE = 64

PROCESSOR = str(binding.get_host_cpu_name())
"""LLVM's name of it."""


def asked_prefetch(asked: str | None) -> int | None:
    """Return how many bytes ahead loops shall prefetch in each stream, 0 for not at all; None if nobody says.

    Parameters
    ----------
    asked : str or None
        What NUMBA_LAMB_PREFETCH says.
    """
    if asked is None:
        return None
    if not asked.isdecimal() or int(asked) % LINE or int(asked) > 2**20:
        raise ValueError(
            f"NUMBA_LAMB_PREFETCH must be a multiple of {LINE} from 0 to {2**20}, got {asked!r}; unset it for "
            "what suits the processor"
        )
    return int(asked)


def usual_prefetch(processor: str, machine: str) -> int:
    """Return the distance for a processor that LLVM calls so, on such an architecture.

    Intel's hardware stops at the end of a page, so loops ask for one page ahead; AMD's are faster left alone.
    """
    is_intel = machine in ("x86_64", "AMD64") and not processor.startswith(("znver", "bdver", "btver"))
    return PAGE if is_intel else 0


ASKED = asked_prefetch(os.environ.get("NUMBA_LAMB_PREFETCH"))
USUAL = usual_prefetch(PROCESSOR, platform.machine())
