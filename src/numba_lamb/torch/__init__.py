"""The optimizers as `torch.optim.Optimizer` subclasses. This package alone imports torch."""

from numba_lamb.torch import telemetry as _telemetry  # noqa: F401  (what History finds is registered there)
from numba_lamb.torch.lamb import Lamb
from numba_lamb.torch.lans import Lans
from numba_lamb.torch.lars import Lars, Momentum
from numba_lamb.torch.schedule import ScheduleLR
from numba_lamb.torch.sharded import ShardedLamb, ShardedLans, ShardedLars, ShardedMomentum

__all__ = [
    "Lamb",
    "Lans",
    "Lars",
    "Momentum",
    "ScheduleLR",
    "ShardedLamb",
    "ShardedLans",
    "ShardedLars",
    "ShardedMomentum",
]
