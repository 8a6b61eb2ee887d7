"""Exact, bit-reproducible layer-wise adaptive optimizers as Numba kernels."""

from numba_lamb import callbacks, checkpoint, schedules
from numba_lamb.comm import CommError, Sharding
from numba_lamb.history import History
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.loss_scale import DynamicLossScale
from numba_lamb.optimizers import telemetry as _telemetry  # noqa: F401  (what History finds is registered there)
from numba_lamb.optimizers.lamb import Lamb
from numba_lamb.optimizers.lans import Lans
from numba_lamb.optimizers.lars import Lars
from numba_lamb.optimizers.momentum import Momentum
from numba_lamb.resume import load, save

LARS = Lars

__version__ = "0.2.0"

__all__ = [
    "LARS",
    "CommError",
    "DynamicLossScale",
    "FlatLayout",
    "History",
    "Lamb",
    "Lans",
    "Lars",
    "Layer",
    "Momentum",
    "Sharding",
    "callbacks",
    "checkpoint",
    "load",
    "save",
    "schedules",
]
