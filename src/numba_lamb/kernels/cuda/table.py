"""Every CUDA kernel by its name."""

from collections.abc import Callable
from typing import Any

from numba_lamb.kernels.cuda import frame, passes
from numba_lamb.kernels.cuda.exchange import EXCHANGE_KERNELS
from numba_lamb.kernels.cuda.lans import LANS_KERNELS

KERNELS: dict[str, Callable[[Any, Any], None]] = {
    kernel.__name__: kernel
    for kernel in (
        frame.open_step,
        frame.gradient_squares,
        frame.clip_gradients,
        frame.scale_gradients,
        frame.decay_weights,
        frame.row_means,
        passes.lamb_advance,
        passes.lamb_other_norm,
        passes.lamb_ratio,
        passes.lamb_descend,
        *LANS_KERNELS,
        passes.lars_sums,
        passes.lars_ratio,
        passes.lars_update,
        *EXCHANGE_KERNELS,
    )
}
"""In the order of a step; then those between ranks."""
