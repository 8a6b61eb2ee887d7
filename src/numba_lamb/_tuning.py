"""What suits this processor: it decides how fast a step is, and no bit."""

import os

from llvmlite import binding

PAGE = 4096
LINE = 64


def prefetch_distance(asked: str | None, processor: str) -> int:
    """Return how many bytes ahead loops prefetch in each stream, 0 for not at all.

    Parameters
    ----------
    asked : str or None
        What NUMBA_LAMB_PREFETCH says.
    processor : str
        LLVM's name. Intel's hardware stops at the end of a page, so loops ask for one page ahead; AMD's Zen is
        faster when left alone.
    """
    if asked is None:
        return 0 if processor.startswith("znver") else PAGE
    if not asked.isdecimal() or int(asked) % LINE or int(asked) > 2**20:
        raise ValueError(
            f"NUMBA_LAMB_PREFETCH must be a multiple of {LINE} from 0 to {2**20}, got {asked!r}; unset it for "
            "what suits the processor"
        )
    return int(asked)


PREFETCH_BYTES = prefetch_distance(os.environ.get("NUMBA_LAMB_PREFETCH"), binding.get_host_cpu_name())
