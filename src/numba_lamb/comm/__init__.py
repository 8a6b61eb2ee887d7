"""What ranks tell each other, by somebody else's library."""

from numba_lamb.comm.interface import Comm, CommError, DeviceComm, Disagreement, Span
from numba_lamb.comm.sharding import Sharding, is_comm, sharding_of

__all__ = [
    "Comm",
    "CommError",
    "DeviceComm",
    "Disagreement",
    "Sharding",
    "Span",
    "is_comm",
    "sharding_of",
]
