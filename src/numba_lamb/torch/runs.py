"""Runs: which part of each parameter, and of its state, is on this rank."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.precision import Piece
from numba_lamb.kernels import columns
from numba_lamb.layout import LANES, arithmetic_of
from numba_lamb.memory.array_reader import Int64
from numba_lamb.torch.dtensors import local_of
from numba_lamb.torch.scales import scale_shape
from numba_lamb.torch.stored import in_memory_order
from numba_lamb.torch.tensors import address_of


class Runs:
    """The members of a model, each of which may be here in part.

    Parameters
    ----------
    placement : sequence of (Bucket, int)
        Each member's bucket and its row there.
    local, dense : sequence of Tensor
        What there is of each parameter, and a copy of it where that has gaps in its memory.
    flat : bool
        Whether the parameters are whole and their state is a flat part; else both are a DTensor's piece, or whole.
    """

    def __init__(
        self,
        placement: Sequence[tuple[Bucket, int]],
        local: Sequence[Tensor],
        dense: Sequence[Tensor],
        flat: bool,
    ) -> None:
        self._placement, self._local, self._dense, self._flat = placement, local, dense, flat
        runs = [self.of(k) for k in range(len(local))]
        self.firsts = np.array([0 if flat or run is None else run[0] for run in runs], dtype=np.int64)
        """Which element of each parameter is the first that is here."""
        self.forms = [self._form(k) for k in range(len(local))]
        """What there is of each parameter whose state is here, in the form of that: itself, or a run of it."""

    def of(self, k: int) -> tuple[int, int] | None:
        """Return first element and end of what there is of a member; None for all."""
        bucket, row = self._placement[k]
        return None if bucket.runs is None else bucket.runs[row]

    def of_rank(self, k: int, rank: int, shaped: bool) -> tuple[int, int]:
        """Return a rank's run of a member: elements, or rows of 128."""
        bucket, row = self._placement[k]
        assert bucket.division is not None
        first, last = bucket.division.runs(rank)[row]
        return (first, last) if shaped else (first // LANES, -(-last // LANES))

    def whole(self, k: int, piece: Piece, dtype: torch.dtype) -> Tensor:
        """Return a tensor for all of a member's state of one kind."""
        dense = self._dense[k].detach()
        if piece.shaped:
            return torch.empty_like(dense, dtype=dtype)
        return torch.empty(scale_shape(dense), dtype=dtype, device=dense.device)

    def _form(self, k: int) -> Tensor:
        run, dense = self.of(k), self._dense[k]
        if run is None or not self._flat:
            return self._local[k]
        return dense.detach().as_strided((dense.numel(),), (1,))[run[0] : run[1]]

    def cut(self, k: int, held: Any) -> Any:
        """Return the part of a member's state that is here, where somebody put there that of all of it."""
        run, dense = self.of(k), self._dense[k]
        if run is None or not isinstance(held, Mapping):
            return held
        if not self._flat:
            return {name: local_of(value) for name, value in held.items()}
        rows, own = -(-dense.numel() // LANES), slice(run[0] // LANES, -(-run[1] // LANES))
        found = dict(held)
        for name, value in held.items():
            if not isinstance(value, Tensor) or name == "step":
                continue
            if name.endswith("_scale") and value.numel() == rows:
                found[name] = value.reshape(-1)[own]
            elif value.shape == dense.shape:
                found[name] = in_memory_order(value, dense)[slice(*run)]
        return found

    def point(self, k: int, place: int, pieces: Mapping[str, Piece], entry: Mapping[str, Any]) -> None:
        """Write where a member's element 0 and that of its state are, or would be, and what random bits follow."""
        bucket, row = self._placement[k]
        first = 0 if bucket.runs is None else bucket.runs[row][0]
        for name, piece in pieces.items():
            address = address_of(local_of(entry[name]))
            bucket.addresses[row, piece.column] = address - piece.before(first)
        bucket.weights[row] -= int(self.firsts[k]) * bucket.precisions[row].storage.itemsize
        # Of a parameter's place among all, which does not change when others join.
        bucket.random[row, columns.PARAMETER] = place

    def placed(self, found: Int64, dtypes: Mapping[int, Any]) -> Int64:
        """Return where element 0 of each gradient would be, given where those are that are here."""
        sizes = [
            dtypes.get(k, arithmetic_of(bucket.layers[row].dtype)).itemsize
            for k, (bucket, row) in enumerate(self._placement)
        ]
        return np.where(found != 0, found - self.firsts * np.array(sizes, dtype=np.int64), 0)
