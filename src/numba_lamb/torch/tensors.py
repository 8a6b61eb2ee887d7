"""Which tensors can be parameters and gradients, and where their values lie."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from numba_lamb.foreign import is_jax, kind_of
from numba_lamb.layout import BFLOAT16
from numba_lamb.memory.arrays import Storage
from numba_lamb.memory.tensor_reader import is_filled
from numba_lamb.torch.dtensors import check_pieces, is_dtensor, local_of

NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: BFLOAT16,
}
address_of: Callable[[torch.Tensor], int] = torch.Tensor.data_ptr
"""Where kernels find a tensor's values."""
_PLAIN: Any = torch._C._disabled_torch_dispatch_impl
"""What tensors with plain memory have in place of a dispatch of their own."""


def check_params(params: object, where: str = "") -> None:
    """Raise if `params` are a module, a mapping or a list of arrays. PyTorch checks the rest."""
    way = None
    if isinstance(params, torch.nn.Module):
        way = "model.named_parameters()"
    elif isinstance(params, Mapping):
        way = "it in a list, [group]" if "params" in params else "params.items()"
    if way is not None:
        raise TypeError(
            f"params{where} must be an iterable of tensors, (name, tensor) pairs or group dicts, got a "
            f"{kind_of(params)}; give {way}"
        )
    for entry in params if isinstance(params, list) else ():
        tensor = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        if isinstance(tensor, torch.nn.Module):
            check_params(tensor, where)
        if isinstance(tensor, np.ndarray) or is_jax(tensor):
            raise TypeError(
                f"params{where} must be tensors, got a {kind_of(tensor)}; "
                "numba_lamb.Lamb, Lars and Momentum take NumPy arrays"
            )


def check_row_order(name: str, tensor: torch.Tensor) -> None:
    """Raise unless the rows of a parameter, all axes but the first, lie one after the other in memory."""
    if tensor.numel() and tensor.stride(0) * tensor.shape[0] != tensor.numel():
        raise ValueError(
            f"grad_centralization must be False where rows are no runs in memory, got True and strides "
            f"{tuple(tensor.stride())} of parameter {name!r}; tensor.contiguous() has such rows"
        )


def check_group(group: object, where: str) -> None:
    """Raise if a group's ``params`` are something that `check_params` refuses."""
    if isinstance(group, dict):
        check_params(group.get("params"), where)


def check_parameter(name: str, tensor: torch.Tensor) -> None:
    """Raise unless kernels can update `tensor` in place, now or once it has its values."""
    what = f"parameter {name!r}"
    if is_lazy(tensor):
        return
    if is_dtensor(tensor):
        check_pieces(what, tensor)
        tensor = local_of(tensor)
    kind = type(tensor)
    if kind.__torch_dispatch__ is not _PLAIN:
        raise TypeError(f"{what} must be a plain tensor, not a {kind.__module__}.{kind.__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{what} must be a strided tensor, not {tensor.layout}")
    if tensor.dtype not in NUMPY_DTYPES:
        raise TypeError(f"{what} must be bfloat16, float16, float32 or float64, not {tensor.dtype}")
    if tensor.device.type not in ("cpu", "cuda"):
        raise TypeError(f"{what} must be on the CPU or on a CUDA GPU, not on {tensor.device}")
    _check_filled(what, tensor)
    if tensor.is_inference():
        raise ValueError(f"{what} was made in inference mode and cannot be updated")
    strides = zip(tensor.stride(), tensor.shape, strict=True)
    if tensor.numel() and any(stride == 0 and n > 1 for stride, n in strides):
        raise ValueError(f"{what} has elements that share memory (strides {tensor.stride()}); use clone()")


def check_gradient(name: str, tensor: torch.Tensor, gradient: torch.Tensor) -> None:
    """Raise unless `gradient` can be that of the parameter `tensor`."""
    what = f"gradient of {name!r}"
    if is_dtensor(tensor):
        if not is_dtensor(gradient):
            raise TypeError(f"{what} must be a DTensor, like its parameter, not a {kind_of(gradient)}")
        tensor, gradient = local_of(tensor), local_of(gradient)
    if gradient.layout != torch.strided:
        raise RuntimeError(f"{what} is sparse ({gradient.layout}); sparse gradients are not supported")
    kind = type(gradient)
    if kind.__torch_dispatch__ is not _PLAIN:
        raise TypeError(f"{what} must be a plain tensor, not a {kind.__module__}.{kind.__name__}")
    if gradient.dtype not in NUMPY_DTYPES:
        raise TypeError(
            f"{what} must be bfloat16, float16, float32 or float64, got {gradient.dtype}; "
            "p.grad = p.grad.to(p.dtype) is so"
        )
    if gradient.device != tensor.device:
        raise ValueError(f"{what} must be on the parameter's device {tensor.device}, not {gradient.device}")
    if gradient.shape != tensor.shape:
        raise ValueError(
            f"{what} must have the parameter's shape {tuple(tensor.shape)}, not {tuple(gradient.shape)}"
        )
    _check_filled(what, gradient)


def _check_filled(what: str, tensor: torch.Tensor) -> None:
    """Raise unless the storage of a strided tensor has all its elements."""
    if not tensor._is_zerotensor() and not is_filled(tensor):
        nbytes = tensor.untyped_storage().nbytes()
        if not nbytes:
            raise ValueError(f"{what} has no memory; its storage was freed")
        raise ValueError(
            f"{what} of shape {tuple(tensor.shape)} must lie in its storage, which was cut to {nbytes} bytes"
        )


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's elements fill one piece of memory, in whatever order, as they are."""
    if tensor.is_neg():
        return False
    expected = 1
    lengths = [(stride, n) for stride, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1]
    for stride, n in sorted(lengths):
        if stride != expected:
            return bool(tensor.numel() == 0)
        expected *= n
    return True


def same_order(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether the elements of two tensors of one shape lie in the same order in memory."""
    strides = zip(one.stride(), other.stride(), one.shape, strict=True)
    return all(bool(first == second) for first, second, length in strides if length != 1)


def storage_of(tensor: torch.Tensor) -> Storage:
    """Return where the values of a dense tensor lie; their order in memory is taken as it is."""
    on_gpu = tensor.device.type == "cuda"
    return Storage(
        address_of(tensor),
        tuple(tensor.shape),
        NUMPY_DTYPES[tensor.dtype],
        device=tensor.device.index if on_gpu and tensor.numel() else None,
        library="torch" if on_gpu else None,
        on_gpu=on_gpu,
    )


def is_shared(tensor: torch.Tensor) -> bool:
    """Return whether a tensor on the CPU lies in memory that other processes may have, or in a file's."""
    return tensor.device.type == "cpu" and bool(tensor.untyped_storage().is_shared())


def check_own_memory(what: str, tensor: torch.Tensor) -> None:
    """Raise if a state tensor lies in memory that processes share, which state does not stay in."""
    if is_shared(tensor):
        raise ValueError(
            f"{what} must not be in memory that processes share, which the optimizer's own would replace unseen; "
            "give a clone() to the optimizer or to the other process"
        )


def share_elements(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether an element of one tensor lies where one of the other does."""
    (start, end), (first, last) = _span(one), _span(other)
    if end <= first or last <= start:
        return False
    return bool(np.intersect1d(_words(one), _words(other)).size)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses that a tensor begins and ends at, gaps included."""
    if not tensor.numel():
        return 0, 0
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    last = sum(stride * (length - 1) for stride, length in steps)
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _words(tensor: torch.Tensor) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the addresses of the 4-byte words that a tensor consists of."""
    size = tensor.element_size()
    words = tensor.data_ptr() + np.arange(0, size, 4, dtype=np.int64)
    for stride, length in zip(tensor.stride(), tensor.shape, strict=True):
        words = np.add.outer(words, stride * size * np.arange(length, dtype=np.int64)).ravel()
    return np.asarray(words, dtype=np.int64)
