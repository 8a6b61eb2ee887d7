"""Member: a parameter that takes part; Step: its gradients in one step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from numba_lamb.groups import Parameter
from numba_lamb.layout import FlatLayout
from numba_lamb.memory.array_reader import Int64
from numba_lamb.memory.arrays import Storage
from numba_lamb.memory.gradients import Held
from numba_lamb.torch.tensors import NUMPY_DTYPES


class Member(NamedTuple):
    """A parameter that takes part: its name, its group, and its place among all parameters."""

    name: str
    group: int
    place: int
    tensor: Tensor

    def without_values(self) -> Parameter:
        """Return it as one that keeps its place alone."""
        device, dtype = self.tensor.device, NUMPY_DTYPES[self.tensor.dtype]
        storage = Storage(0, (0,), dtype, on_gpu=device.type != "cpu")
        return Parameter(self.name, torch.empty(0, device=device), self.group, storage)


class Step(NamedTuple):
    """The gradients of one step: the tensors, copies to keep alive, addresses."""

    gradients: Sequence[Any]
    copies: list[Tensor]
    found: Int64
    dtypes: Mapping[int, Any]

    def read(self) -> Held:
        """Return them as a backend takes them, which were read already."""
        return Held(self.gradients, self.found, dtypes=self.dtypes)


def layout_of(parameters: Sequence[Parameter]) -> FlatLayout:
    """Return the layout of parameters, each whole, of which only a piece may be here."""
    return FlatLayout((p.name, tuple(p.array.shape), p.storage.dtype, p.group) for p in parameters)
