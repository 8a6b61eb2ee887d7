"""CudaScale: a loss scale on a GPU, which the last kernel of each step writes."""

from typing import Any

import numpy as np

from numba_lamb.engine.scale import Following, Scale
from numba_lamb.kernels.cuda import fields
from numba_lamb.memory.cuda_memory import zeros
from numba_lamb.memory.device import Device


class _Scalar:
    """A 0-d float32 array on a GPU, as other libraries take it."""

    def __init__(self, owner: object, address: int) -> None:
        self._owner = owner
        self.__cuda_array_interface__ = {
            "shape": (),
            "typestr": np.dtype(np.float32).str,
            "data": (address, False),
            "version": 3,
        }


class CudaScale(Scale):
    """A loss scale in device memory.

    Parameters
    ----------
    gpu : Device
        Where.
    following : Following
        When and by what it changes.
    value : float
        What it begins with.
    """

    def __init__(self, gpu: Device, following: Following, value: float) -> None:
        self._gpu, self._following = gpu, following
        with gpu.current():
            self._value, self._scaler = zeros(gpu, 8), zeros(gpu, fields.SCALER_FIELDS * 8)
        self.grad_scale, self.scaler = self._value.address, self._scaler.address
        self._scalar = _Scalar(self._value, self.grad_scale)
        self.write(value, 0)

    @property
    def array(self) -> Any:
        """The scale as a 0-d float32 array on the GPU, with ``__cuda_array_interface__``."""
        return self._scalar

    def read(self) -> tuple[float, int]:
        """Return the scale and the steps, after waiting for the device."""
        value, scaler = np.zeros(1, dtype=np.float32), np.zeros(fields.SCALER_FIELDS)
        with self._gpu.current():
            self._gpu.read(self.grad_scale, value)
            self._gpu.read(self.scaler, scaler)
        return float(value[0]), int(scaler[fields.SCALE_STEPS])

    def write(self, value: float, steps: int) -> None:
        """Set both, after waiting for the device."""
        scaler, following = np.zeros(fields.SCALER_FIELDS), self._following
        scaler[fields.SCALE_STEPS], scaler[fields.SCALE_INTERVAL] = steps, following.interval
        scaler[fields.SCALE_GROWTH], scaler[fields.SCALE_BACKOFF] = following.growth, following.backoff
        scaler[fields.SCALE_LEAST], scaler[fields.SCALE_MOST] = following.least, following.most
        with self._gpu.current():
            self._gpu.finish()
            self._gpu.write(self.grad_scale, np.array([value], dtype=np.float32))
            self._gpu.write(self.scaler, scaler)
