"""Gradients that are PyTorch tensors: the usual ones are recognised without their slow interface."""

import numpy as np
import pytest

from numba_lamb.layout import FlatLayout
from numba_lamb.memory.array_reader import NO_SPANS
from numba_lamb.memory.device_reader import DeviceReader

torch = pytest.importorskip("torch")
# PyTorch numbers the CPU -1, so that a reader of that "GPU" takes tensors that need none.
CPU = -1


def address_of(layer, tensor):
    found, _ = DeviceReader([layer], [None], CPU).gradients((tensor,), NO_SPANS)
    return int(found[0])


def layer_of(shape, dtype="f4"):
    return FlatLayout([("w", shape, dtype)]).layers[0]


@pytest.mark.parametrize(("dtype", "of_tensor"), [("f4", "float32"), ("f8", "float64")])
def test_a_usual_tensor_is_taken_as_it_is(dtype, of_tensor):
    tensor = torch.zeros(3, 4, dtype=getattr(torch, of_tensor))
    assert address_of(layer_of((3, 4), dtype), tensor) == tensor.data_ptr()


def test_a_tensor_that_requires_grad_is_only_read():
    tensor = torch.zeros(2, requires_grad=True)
    assert address_of(layer_of((2,)), tensor) == tensor.data_ptr()


def test_a_tensor_without_values_counts_as_given():
    assert address_of(layer_of((0, 3)), torch.zeros(0, 3)) != 0


class Subclass(torch.Tensor):
    """Stands for tensors whose memory is elsewhere, such as those spread over processes."""


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(4),
        torch.zeros(6)[::2],
        torch.zeros(3, dtype=torch.complex64).conj().imag,
        torch.zeros(3).to_sparse(),
        torch.zeros(3).as_subclass(Subclass),
    ],
    ids=["dtype", "shape", "strides", "negated", "sparse", "subclass"],
)
def test_any_other_tensor_is_looked_at_closely(tensor):
    """The double-checked way refuses all of these here, because none of them is on a GPU."""
    with pytest.raises((TypeError, ValueError), match="gradient of 'w'"):
        address_of(layer_of((3,)), tensor)


def test_a_numpy_array_is_refused():
    with pytest.raises(TypeError, match="gradient of 'w' must be an array on GPU -1"):
        address_of(layer_of((3,)), np.zeros(3, "f4"))
