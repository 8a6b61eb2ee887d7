"""TensorReader: where many PyTorch tensors have their values, and which of them are not as expected.

PyTorch says it tensor by tensor, a storage's size at the price of a new object. Where its structs have what its
attributes tell is found out on a few tensors and proved on others; where that fails, the attributes are asked.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from numba_lamb.kernels.cpu import object_reader as at
from numba_lamb.kernels.cpu.object_reader import ABSENT, NOWHERE, UNUSUAL, read_tensors
from numba_lamb.memory.array_reader import (
    NO_SPANS,
    NOTHING,
    Int64,
    bound,
    fields_are_known,
    forms_of,
    items_of,
)

_NONE = id(None)


class Form(NamedTuple):
    """What a tensor must be to be read.

    Attributes
    ----------
    shape, strides : tuple of int
        Strides in elements; axes of length 1 may have others.
    dtype, device : torch.dtype, torch.device
        Of its values.
    kind : type or None
        Its type; None for `torch.Tensor` or `torch.nn.Parameter`.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any
    device: Any
    kind: type | None = None

    @property
    def extent(self) -> int:
        """Elements from the first to the last, gaps included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))


def form_of(tensor: Any, kind: type | None = None) -> Form:
    """Return the form of a tensor as it is."""
    return Form(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device, kind)


class TensorReader:
    """Reads tensors of known forms, all on one device.

    Parameters
    ----------
    torch : module
        PyTorch.
    forms : sequence of Form
        For each tensor what it must be.
    fields : int64 array or None
        What `fields_of` returned.
    """

    def __init__(self, torch: Any, forms: Sequence[Form], fields: Int64 | None) -> None:
        self._torch, self._forms, self._fields = torch, forms, fields
        self._plain = torch.Tensor, torch.nn.Parameter
        self._kept, self._found = (np.full(len(forms), UNUSUAL, dtype=np.int64) for _ in range(2))
        self._read = self._described(fields) if fields is not None and forms else None

    def keep(self, found: Int64) -> None:
        """Keep the addresses in use, with which `read` compares."""
        self._kept[:] = found

    def _described(self, fields: Int64) -> Callable[..., int]:
        """Return what reads tensors of these forms."""
        words: dict[Any, int] = {}
        for form in self._forms:
            if form.dtype not in words:
                probe = self._torch.empty(0, dtype=form.dtype, device=form.device)
                own = _word(id(probe) + int(fields[at.IMPL]))
                words[form.dtype] = _word(own + int(fields[at.DTYPE_AND_DEVICE])) & at.DTYPE_MASK
                keys = _word(own + int(fields[at.KEYS]))
        kinds = np.array([id(kind) for kind in self._plain], dtype=np.int64)
        itemsizes = [form.dtype.itemsize for form in self._forms]
        table = forms_of(
            [(*form.shape, *form.strides) for form in self._forms],
            [
                [len(form.shape) for form in self._forms],
                [words[form.dtype] for form in self._forms],
                [0 if form.kind is None else id(form.kind) for form in self._forms],
                [form.extent * size for form, size in zip(self._forms, itemsizes, strict=True)],
                itemsizes,
            ],
        )
        return bound(read_tensors, *table, _NONE, kinds, keys, fields, self._kept, self._found)

    def read(
        self, tensors: tuple[Any, ...], spans: tuple[Int64, Int64] = NO_SPANS
    ) -> tuple[Int64, Int64] | None:
        """Return the address of each tensor's values, and the indices of those that must be looked at closely.

        None says that all are usual and where `keep` was told. After any other answer nothing is kept, because an
        interrupt may leave what is in use half written. The next call overwrites what is returned.

        Parameters
        ----------
        tensors : tuple of Tensor or None
            One for each form. None has address 0, a tensor without values 16.
        spans : pair of int64 array
            Sorted starts and ends of memory; what meets it must be looked at closely.
        """
        if self._read is None:
            self._found[:] = [self._ask(*each, spans) for each in zip(tensors, self._forms, strict=True)]
        else:
            outcome = self._read(*spans, items_of(tensors))
            if outcome == at.ALIKE:
                return None
            self._kept.fill(UNUSUAL)
            if outcome == at.MOVED:
                return self._found, NOTHING
        return self._found, np.flatnonzero(self._found == UNUSUAL)

    def _ask(self, tensor: Any, form: Form, spans: tuple[Int64, Int64]) -> int:
        """Return what is read of a tensor, but from its attributes."""
        if tensor is None:
            return ABSENT
        kind = type(tensor)
        if kind is not form.kind and (form.kind is not None or kind not in self._plain):
            return UNUSUAL
        if tensor.layout is not self._torch.strided or tensor._is_zerotensor() or not is_filled(tensor):
            return UNUSUAL
        if tensor.dtype is not form.dtype or tensor.device != form.device or tensor.shape != form.shape:
            return UNUSUAL
        strides = zip(tensor.stride(), form.strides, form.shape, strict=True)
        if any(own != step and length != 1 for own, step, length in strides):
            return UNUSUAL
        if tensor.is_neg() or tensor.is_inference():
            return UNUSUAL
        address, nbytes = int(tensor.data_ptr()), form.extent * form.dtype.itemsize
        if not nbytes:
            return NOWHERE
        starts, ends = spans
        last = int(np.searchsorted(starts, address + nbytes)) - 1
        if address % form.dtype.itemsize or (last >= 0 and ends[last] > address):
            return UNUSUAL
        return address


def is_filled(tensor: Any) -> bool:
    """Return whether the storage of a strided tensor has all its elements, which it can lose under the tensor."""
    extent = form_of(tensor).extent
    storage = tensor.untyped_storage()
    needed = (tensor.storage_offset() + extent) * tensor.element_size()
    return not extent or bool(storage.data_ptr() and needed <= storage.nbytes())


@cache
def fields_of(torch: Any) -> Int64 | None:
    """Return where this PyTorch's structs have what is read, None if that cannot be said for sure."""
    if not fields_are_known():
        return None
    try:
        fields = _find(torch)
        return fields if _are_right(torch, fields) else None
    except (AttributeError, RuntimeError, ValueError):
        return None


def _word(address: int) -> int:
    return int(ctypes.c_int64.from_address(address).value)


def _find(torch: Any) -> Int64:
    """Return where fields seem to be; ValueError where one is not found."""
    # Lengths and strides that stand nowhere else.
    base = torch.empty(40_000)
    tensor = torch.as_strided(base, (3, 5, 7, 2, 11), (6161, 1111, 101, 37, 3), 1234)
    fields = np.zeros(at.TENSOR_FIELDS, dtype=np.int64)

    def look(start: int, first: int, wanted: Iterable[int], words: int) -> int:
        sought = list(wanted)
        for offset in range(first, words * 8, 8):
            if [_word(start + offset + 8 * k) for k in range(len(sought))] == sought:
                return offset
        raise ValueError(f"{sought} is not there")

    impl, storage = int(tensor._cdata), int(tensor.untyped_storage()._cdata)
    fields[at.IMPL] = look(id(tensor), 16, [impl], 5)
    fields[at.STORAGE] = look(impl, 8, [storage], 6)
    fields[at.AXES] = axes = look(impl, 8, [5, *tensor.shape, *tensor.stride()], 14)
    fields[at.OFFSET] = axes + 8 * (1 + 2 * at.INLINE_AXES)
    # After the offset the number of elements, dtype and device with flags, and the keys.
    fields[at.DTYPE_AND_DEVICE], fields[at.KEYS] = fields[at.OFFSET] + 16, fields[at.OFFSET] + 24
    if (
        _word(impl + int(fields[at.OFFSET])) != 1234
        or _word(impl + int(fields[at.OFFSET]) + 8) != tensor.numel()
    ):
        raise ValueError("the offset is not there")
    whole = base.untyped_storage()
    fields[at.DATA] = look(storage, 8, [whole.data_ptr()], 6)
    fields[at.STORAGE_NBYTES] = look(storage, int(fields[at.DATA]) + 8, [whole.nbytes()], 10)
    fields[at.CHECKS] = fields[at.STORAGE_NBYTES] + 8
    return fields


def _are_right(torch: Any, fields: Int64) -> bool:
    """Return whether tensors of all kinds are read as their attributes tell, or not taken for ordinary ones."""
    usual, unusual = _samples(torch)
    reader = TensorReader(torch, [*map(form_of, usual), *(form for _, form in unusual)], fields)
    found = reader.read((*usual, *(tensor for tensor, _ in unusual)))
    expected = [tensor.data_ptr() if tensor.numel() else NOWHERE for tensor in usual]
    return found is not None and bool(found[0].tolist() == expected + [UNUSUAL] * len(unusual))


def _samples(torch: Any) -> tuple[list[Any], list[tuple[Any, Form]]]:
    """Return ordinary tensors, and others with forms that they must not be taken to have."""
    cpu = torch.device("cpu")

    def form(*shape: int, dtype: Any = torch.float32) -> Form:
        return form_of(torch.empty(shape, dtype=dtype))

    usual = [
        *(torch.zeros(shape) for shape in ((), (3,), (2, 3, 4), (2,) * 5, (2,) * 6, (1,) * 9, (2, 0, 5))),
        *(torch.zeros((2, 3), dtype=dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)),
        torch.zeros(3, requires_grad=True),
        torch.nn.Parameter(torch.zeros(2, 3, 4, 5, 6, 7).permute(5, 0, 4, 1, 3, 2)),
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(12)[5:],
        torch.zeros(12)[3:9:2],
        torch.zeros(3, requires_grad=True) * 2,
        torch.zeros(3).detach(),
        torch.zeros(3).share_memory_(),
    ]
    cut = torch.zeros(8)
    cut.untyped_storage().resize_(16)
    freed = torch.zeros(8)
    freed.untyped_storage().resize_(0)
    with torch.inference_mode():
        inferred = torch.zeros(3)
    cloned = torch.zeros(3)
    kept = torch._lazy_clone(cloned)

    class Subclass(torch.Tensor):  # type: ignore[misc]
        pass

    unusual = [
        (cut, form(8)),
        (freed, form(8)),
        (inferred, form(3)),
        (cloned, form(3)),
        (kept, form(3)),
        (torch.zeros(3).as_subclass(Subclass), form(3)),
        (torch.zeros(3).to_sparse(), form(3)),
        (torch.zeros(3, dtype=torch.complex64).conj().imag, Form((3,), (2,), torch.float32, cpu)),
        (torch._neg_view(torch.zeros(3)), form(3)),
        (torch._efficientzerotensor(3), form(3)),
        (torch.zeros(3, device="meta"), form(3)),
        (torch.zeros(3, dtype=torch.float64), form(3)),
        (torch.zeros(3, dtype=torch.int32), form(3)),
        (torch.zeros(4), form(3)),
        (torch.zeros(3, 1), form(3)),
        (torch.zeros(4, 3).t(), form(3, 4)),
        (torch.zeros(3), form(3)._replace(kind=torch.nn.Parameter)),
    ]
    return usual, unusual
