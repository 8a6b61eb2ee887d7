"""Moments and step counts as PyTorch sees them: tensors in ``state``, which are pieces of flat buffers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from numba_lamb.engine.precision import Piece
from numba_lamb.layout import ALIGNMENT
from numba_lamb.memory.arrays import aligned_zeros
from numba_lamb.torch.counts import check_count
from numba_lamb.torch.entry import StateEntry
from numba_lamb.torch.places import Places
from numba_lamb.torch.scales import scale_shape
from numba_lamb.torch.stored import STATE_DTYPES, Pieces, fitted, shape_of
from numba_lamb.torch.tensors import check_own_memory


class FlatState:
    """Hands out pieces of flat buffers as the state of parameters, and knows them again.

    Parameters
    ----------
    names : sequence of str
        The keys of the moments in a parameter's state.
    needs_steps : bool
        Whether the step count is a part of the formula, so that moments without one are worth nothing.
    """

    def __init__(self, names: Sequence[str], needs_steps: bool) -> None:
        self.names = tuple(names)
        self._needs_steps = needs_steps
        self._homes: dict[torch.Tensor, _Home] = {}
        self.stored: dict[torch.Tensor, dict[str, Any]] = {}
        """How parameters and their state are stored, by option."""
        self._writes = [0]
        # What was handed out, and how often entries had been written to.
        self._pieces = Places(())
        self._seen = 0

    def values(
        self, name: str, tensor: torch.Tensor, pieces: Pieces, held: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the state that somebody put there for a parameter, checked and as its `pieces` are stored.

        What is missing is not in it.
        """
        if not isinstance(held, Mapping):
            raise ValueError(f"state of parameter {name!r} must be a dict, not {type(held).__name__}")
        found: dict[str, Any] = {}
        scales = [f"{key}_scale" for key in self.names]
        for key in dict.fromkeys([*pieces, *self.names, *scales]):
            given = held.get(key)
            if given is None:
                continue
            what = f"state {key!r} of parameter {name!r}"
            shape = scale_shape(tensor) if key in scales else tuple(tensor.shape)
            if key in scales and isinstance(given, torch.Tensor) and given.numel() == math.prod(shape):
                # Those of a part of a parameter are flat.
                given = given.reshape(shape)
            if not isinstance(given, torch.Tensor) or given.shape != shape:
                shown = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
                raise ValueError(f"{what} must be a tensor of shape {shape}, not {shown}")
            self._check_dtype(what, key, given, pieces, held)
            check_own_memory(what, given)
            found[key] = given
        found = dict(fitted(found, pieces, tensor))
        if self._needs_steps and found and "step" not in held:
            raise ValueError(f"state of parameter {name!r} has {next(iter(found))!r} but no 'step'")
        found["step"] = check_count(name, held.get("step", 0))
        if isinstance(held.get("step"), torch.Tensor):
            check_own_memory(f"state 'step' of parameter {name!r}", held["step"])
        return found

    @staticmethod
    def _check_dtype(
        what: str, key: str, given: torch.Tensor, pieces: Pieces, held: Mapping[str, Any]
    ) -> None:
        """Raise unless a piece of state can become what is stored."""
        own = None if key not in pieces else STATE_DTYPES[pieces[key].dtype]
        if given.dtype == own or f"{key}_scale" in held or (own, given.dtype) == (torch.int16, torch.int32):
            return
        if own is not None and not own.is_floating_point and f"{key}_scale" not in pieces:
            raise ValueError(f"{what} must be of dtype {own}, not {given.dtype}")
        if not given.is_floating_point():
            raise ValueError(f"{what} must be of a floating-point dtype, not {given.dtype}")

    def adopt(
        self,
        tensors: Sequence[torch.Tensor],
        forms: Sequence[torch.Tensor],
        pieces: Sequence[Pieces],
        found: Sequence[Mapping[str, Any]],
        order: Sequence[int],
        places: Mapping[int, int],
        state: Any,
        dress: Callable[[torch.Tensor, torch.Tensor, bool], Any],
    ) -> torch.Tensor:
        """Put every parameter's state into flat buffers and `state`; return the flat step counts, float32.

        Parameters
        ----------
        tensors : sequence of Tensor
            The parameters.
        forms : sequence of Tensor
            What there is of each here, whose form its state has.
        pieces : sequence of dict
            What the state of each consists of.
        found : sequence of dict
            For each what `values` returned.
        order : sequence of int
            For each step count, whose it begins with: a parameter by number.
        places : mapping from int to int
            Where each parameter's own step count is among them.
        state : dict
            The optimizer's ``state``; each parameter's entry keeps what else is in it.
        dress : callable
            From a piece of state, its parameter, and whether it has that shape, to what others see of it.
        """
        homeless = [
            (tensor, form, own)
            for tensor, form, own in zip(tensors, forms, pieces, strict=True)
            if not self._has_home(tensor, form, own)
        ]
        fresh = {id(tensor) for tensor, _, _ in homeless}
        if homeless:
            self._make(homeless)
        self._homes = {tensor: self._homes[tensor] for tensor in tensors}
        storages = {
            moment.untyped_storage().data_ptr()
            for home in self._homes.values()
            for moment in home.moments.values()
        }
        moved = []
        for tensor, values in zip(tensors, found, strict=True):
            for key, moment in self._homes[tensor].moments.items():
                value = values.get(key)
                if value is not None and value is not moment and not _is_same(value, moment):
                    # A piece of our buffers in another's place must be read before it is written.
                    shared = value.untyped_storage().data_ptr() in storages
                    moved.append((moment, value.clone() if shared else value))
                elif value is None and id(tensor) not in fresh:
                    moved.append((moment, torch.zeros((), dtype=moment.dtype, device=moment.device)))
        with torch.no_grad():
            for moment, value in moved:
                moment.copy_(value)
            counts = [found[k]["step"] for k in order]
            steps = torch.tensor(counts, dtype=torch.float32, device=tensors[0].device)
        parts: list[torch.Tensor] = []
        for k, tensor in enumerate(tensors):
            step = _piece(steps, places[k], (), ())
            moments = self._homes[tensor].moments
            own = {
                "step": step,
                **{key: dress(moment, tensor, pieces[k][key].shaped) for key, moment in moments.items()},
            }
            state[tensor] = StateEntry({**state[tensor], **own}, self._writes)
            parts += [step, *moments.values()]
        self._pieces = Places(parts)
        self._seen = self._writes[0]
        return steps

    def is_in_place(self) -> bool:
        """Return whether nothing was put in place of a piece of our buffers since they were handed out.

        Writing to an entry is counted; what is assigned to a piece's `data` shows in its address and form.
        """
        return self._writes[0] == self._seen and self._pieces.are_kept()

    def _has_home(self, tensor: torch.Tensor, form: torch.Tensor, pieces: Pieces) -> bool:
        """Return whether there are pieces of flat buffers that fit a parameter as it is now."""
        home = self._homes.get(tensor)
        return (
            home is not None
            and home.is_in_place()
            and [*home.moments] == [*pieces]
            and all(
                moment.device == form.device
                and moment.dtype == STATE_DTYPES[pieces[key].dtype]
                and moment.shape == shape_of(pieces[key], form)
                and moment.stride() == self._strides(form, pieces[key])
                for key, moment in home.moments.items()
            )
        )

    @staticmethod
    def _strides(tensor: torch.Tensor, piece: Piece) -> tuple[int, ...]:
        """Return the strides of a parameter's state: its own where it fills its memory."""
        if not piece.shaped:
            return tuple(torch.empty(shape_of(piece, tensor), device="meta").stride())
        return tuple(torch.empty_like(tensor, device="meta").stride())

    def _make(self, homeless: Sequence[tuple[torch.Tensor, torch.Tensor, Pieces]]) -> None:
        """Give parameters zeroed state, in one flat buffer for each kind and dtype."""
        extents: dict[tuple[str, np.dtype[Any]], int] = {}
        offsets: list[dict[str, int]] = []
        for _, _, pieces in homeless:
            offsets.append({})
            for key, piece in pieces.items():
                before = extents.get((key, piece.dtype), 0)
                offsets[-1][key] = before
                extents[key, piece.dtype] = before + -(-piece.size // ALIGNMENT) * ALIGNMENT
        flats = {
            (key, dtype): _zeros(extent, dtype, homeless[0][0].device)
            for (key, dtype), extent in extents.items()
        }
        for (tensor, form, pieces), own in zip(homeless, offsets, strict=True):
            buffers = [flats[key, piece.dtype] for key, piece in pieces.items()]
            parts = {
                key: _piece(flat, own[key], shape_of(piece, form), self._strides(form, piece))
                for flat, (key, piece) in zip(buffers, pieces.items(), strict=True)
            }
            self._homes[tensor] = _Home(parts, buffers)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of one shape are the same memory."""
    return (one.data_ptr(), one.dtype, one.stride()) == (other.data_ptr(), other.dtype, other.stride())


def _zeros(count: int, dtype: np.dtype[Any], device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(count, dtype=STATE_DTYPES[dtype], device=device)
    # NumPy asks the system for huge pages, and PyTorch does not: a large step takes some percent less.
    raw = torch.from_numpy(aligned_zeros(count * dtype.itemsize, np.dtype(np.uint8)))
    return raw.view(STATE_DTYPES[dtype])


def _piece(flat: torch.Tensor, offset: int, shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    """Return a slice of a flat buffer as a base tensor with a storage of its own.

    So pickling it saves only the slice; a plain view's storage is the whole buffer.
    """
    piece = flat.new_empty(0)
    count = math.prod(shape)
    if count:
        return piece.set_(from_dlpack(flat[offset : offset + count]).untyped_storage(), 0, shape, strides)
    return piece.reshape(shape)


class _Home:
    """One parameter's moments, where they lie, and in which buffers.

    Their addresses are kept, because `data` of a tensor can be assigned.
    """

    def __init__(self, moments: dict[str, torch.Tensor], buffers: Sequence[torch.Tensor]) -> None:
        self.moments = moments
        self.buffers = buffers
        self.addresses = [moment.data_ptr() for moment in moments.values()]

    def is_in_place(self) -> bool:
        """Return whether the moments lie where they did."""
        return [moment.data_ptr() for moment in self.moments.values()] == self.addresses
