"""Arguments: what kernels are told that run over a part of a bucket, or over messages."""

from collections.abc import Mapping, Sequence

import numpy as np

from numba_lamb.engine.cuda.bucket import CudaBucket
from numba_lamb.engine.cuda.transfers import Mirror
from numba_lamb.kernels.cuda import fields


class Arguments:
    """Rows of arguments on the device, each a bucket's but for some fields.

    Parameters
    ----------
    rows : sequence of (CudaBucket, mapping)
        For each row whose arguments it has, and the fields that differ.
    """

    def __init__(self, rows: Sequence[tuple[CudaBucket, Mapping[int, int]]]) -> None:
        self._rows = rows
        self._table = np.zeros((len(rows), fields.FIELDS), dtype=np.int64)
        self._mirror = Mirror(rows[0][0].device, self._table)

    def send(self, stream: int) -> None:
        """Queue what the buckets say now."""
        for row, (bucket, others) in zip(self._table, self._rows, strict=True):
            row[:] = bucket.args
            row[list(others)] = list(others.values())
        self._mirror.send(stream)

    def address(self, row: int) -> int:
        """Return where a row is."""
        return self._mirror.address + row * fields.FIELDS * self._table.itemsize
