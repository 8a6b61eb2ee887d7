"""Tensors on the double's GPU.

There are no CUDA tensors without a GPU. So CPU tensors play them: the double maps their memory, and what PyTorch
itself does to them happens at once, between steps that were carried out.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tests.cuda.double import Gpu


class Mapped:
    """Tells where the double has a tensor's memory."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.storages: dict[int, tuple[int, Any]] = {}
        self._of_thread = threading.local()

    @property
    def is_active(self) -> bool:
        """Whether the calling thread takes tensors for a GPU's."""
        return bool(vars(self._of_thread).get("is_active"))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Play a GPU in this thread, with all carried out before and after."""
        self.gpu.driver.progress()
        self._of_thread.is_active = True
        try:
            yield
        finally:
            self._of_thread.is_active = False
        self.gpu.driver.progress()

    def address_of(self, tensor: Any) -> int:
        storage = tensor.untyped_storage()
        if not self.is_active:
            return tensor.data_ptr()
        if not tensor.numel():
            return 0
        if storage.data_ptr() not in self.storages:
            memory = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            # Held, so that the address stays this storage's.
            self.storages[storage.data_ptr()] = self.gpu.driver.allocate(memory), storage
        return self.storages[storage.data_ptr()][0] + tensor.data_ptr() - storage.data_ptr()


def map_tensors(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Mapped:
    """Have optimizers take tensors for a GPU's while that is active."""
    from numba_lamb.kernels.cpu.object_reader import NOWHERE
    from numba_lamb.memory import device
    from numba_lamb.memory.array_reader import NO_SPANS
    from numba_lamb.memory.arrays import Storage
    from numba_lamb.memory.tensor_reader import TensorReader
    from numba_lamb.torch import backends, model, runs, sharded, tensors

    mapped = Mapped(gpu)

    usual = tensors.storage_of

    def storage_of(tensor: Any) -> Storage:
        if not mapped.is_active:
            return usual(tensor)
        dtype = tensors.NUMPY_DTYPES[tensor.dtype]
        index = 0 if tensor.numel() else None
        return Storage(mapped.address_of(tensor), tuple(tensor.shape), dtype, index, "torch", on_gpu=True)

    for module in (tensors, runs):
        monkeypatch.setattr(module, "address_of", mapped.address_of)
    read = TensorReader.read

    def read_mapped(reader: Any, given: Any, spans: Any = NO_SPANS) -> Any:
        found = read(reader, given, spans)
        if not mapped.is_active or spans is NO_SPANS:
            return found
        (places, unusual) = found or (
            np.array([0 if g is None else 17 for g in given]),
            np.zeros(0, dtype=int),
        )
        for k in np.flatnonzero(places > NOWHERE).tolist():
            places[k] = mapped.address_of(given[k])
        return places, unusual

    monkeypatch.setattr(TensorReader, "read", read_mapped)
    monkeypatch.setattr(model, "storage_of", storage_of)

    for module in (backends, sharded):
        monkeypatch.setattr(module, "index_of", lambda device: 0 if mapped.is_active else None)
    monkeypatch.setattr(device, "current_stream", lambda library, index: device.LEGACY_STREAM)
    return mapped
