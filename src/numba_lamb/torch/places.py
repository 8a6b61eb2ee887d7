"""Places: whether tensors still have the form and the place in memory that they had."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from numba_lamb.memory.array_reader import NOTHING
from numba_lamb.memory.tensor_reader import TensorReader, fields_of, form_of, is_filled


class Places:
    """Remembers tensors as they are.

    Parameters
    ----------
    tensors : sequence of Tensor
        Strided tensors on one device, with values.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tuple(tensors)
        forms = [form_of(tensor, type(tensor)) for tensor in tensors]
        self._reader = TensorReader(torch, forms, fields_of(torch))
        found, unusual = self._reader.read(self._tensors) or (NOTHING, NOTHING)
        self._found = found.copy()
        self._reader.keep(found)
        # Those that are never read, such as one whose sign is a mark on it.
        self._unusual = {k: _described(self._tensors[k]) for k in unusual.tolist()}

    def are_kept(self) -> bool:
        """Return whether all have the type, form and address that they had, and storages that hold them."""
        read = self._reader.read(self._tensors)
        if read is None:
            return True
        return np.array_equal(read[0], self._found) and all(
            _described(self._tensors[k]) == described for k, described in self._unusual.items()
        )


def _described(tensor: torch.Tensor) -> tuple[Any, ...]:
    return form_of(tensor, type(tensor)), tensor.data_ptr(), tensor.is_neg(), is_filled(tensor)
