"""Sharding: who shares an optimizer's state, and how."""

import math
from dataclasses import dataclass
from typing import Any

from numba_lamb.comm.alone import Alone
from numba_lamb.comm.interface import Comm
from numba_lamb.comm.mpi import MpiComm
from numba_lamb.foreign import kind_of


@dataclass(frozen=True)
class Sharding:
    """How ranks share the state of an optimizer, and average gradients.

    The average is added up in float64 in the order of ranks and rounded once, so that it does not depend on the
    library by which ranks talk.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm or None
        The ranks; None for this process alone.
    bucket_mb : float, default 25.0
        MiB of gradients that travel together, > 0. Two such buffers are under way at most.
    timeout : float, default 300.0
        Seconds that the other ranks may take to answer, > 0. Then a step raises.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> sharding = nl.Sharding(None, bucket_mb=10)
    >>> w = np.array([3.0, 4.0], dtype=np.float32)
    >>> opt = nl.Lamb({"w": w}, learning_rate=0.1, comm=sharding)
    >>> opt.step({"w": np.array([1.0, -1.0], dtype=np.float32)})
    >>> w.round(4)
    array([2.6464, 4.3536], dtype=float32)
    """

    comm: Any
    bucket_mb: float = 25.0
    timeout: float = 300.0

    def __post_init__(self) -> None:
        for name in ("bucket_mb", "timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number > 0, got {value!r}")

    def connect(self) -> Comm:
        """Return the collectives; every rank must call it."""
        if self.comm is None:
            return Alone()
        if type(self.comm).__module__.partition(".")[0] == "mpi4py":
            return MpiComm(self.comm, self.timeout)
        if is_comm(self.comm):
            found: Comm = self.comm
            return found
        raise TypeError(
            f"comm must be a communicator of mpi4py, a Sharding or None, got a {kind_of(self.comm)}; for "
            "torch.distributed there are numba_lamb.torch.ShardedLamb and its like"
        )


def is_comm(comm: object) -> bool:
    """Return whether an object has what a `Comm` has."""
    return all(hasattr(comm, name) for name in ("sharing", "all_gather", "all_to_all"))


def sharding_of(comm: object) -> Sharding | None:
    """Return `comm` as a Sharding; None for None."""
    return comm if comm is None or isinstance(comm, Sharding) else Sharding(comm)
