"""What low precision and sharding will stand on: dtypes apart, and sums that come from elsewhere."""

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numba import njit

import numba_lamb as nl
from numba_lamb._compile import Kernel
from numba_lamb.engine import bucket as bucket_module
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.engine.precision import Precision
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import passes
from numba_lamb.kernels.cpu.intrinsics import pointer_to
from numba_lamb.layout import CHUNK

WIDE = Precision(np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float64))
"""Stored in float32, computed with in float64: a double of half precision."""


@njit
def wide_advance(addresses, hyper, sizes, sums):
    for layer in range(sizes.shape[0]):
        count, row = sizes[layer], hyper[layer]
        w = pointer_to(addresses[layer, columns.WEIGHTS], np.float32(0))
        g = pointer_to(addresses[layer, columns.GRADIENT], np.float32(0))
        m, v = pointer_to(addresses[layer, columns.EXP_AVG], 0.0), pointer_to(addresses[layer, 3], 0.0)
        sums[layer, 0] = sums[layer, 1] = 0.0
        for i in range(count):
            m[i] = row[columns.BETA1] * m[i] + row[columns.COMPLEMENT1] * g[i]
            v[i] = row[columns.BETA2] * v[i] + row[columns.COMPLEMENT2] * g[i] * g[i]
            u = wide_direction(w[i], m[i], v[i], row)
            sums[layer, 0] += np.float64(w[i]) ** 2
            sums[layer, 1] += u * u


@njit
def wide_direction(w, m, v, row):
    corrected = m * row[columns.CORRECTION1] / (np.sqrt(v * row[columns.CORRECTION2]) + row[columns.EPS])
    return corrected + row[columns.DECAY] * w


@njit
def wide_descend(addresses, hyper, sizes, scales):
    for layer in range(sizes.shape[0]):
        w = pointer_to(addresses[layer, columns.WEIGHTS], np.float32(0))
        m, v = pointer_to(addresses[layer, columns.EXP_AVG], 0.0), pointer_to(addresses[layer, 3], 0.0)
        for i in range(sizes[layer]):
            u = wide_direction(w[i], m[i], v[i], hyper[layer])
            w[i] = np.float32(w[i] - scales[layer, columns.DESCEND] * u)


class WideBucket(CpuBucket):
    kernels = {  # noqa: RUF012
        **passes.KERNELS,
        "lamb_advance": Kernel(wide_advance, wide_advance),
        "lamb_descend": Kernel(wide_descend, wide_descend),
    }


def test_parameters_arithmetic_and_moments_have_dtypes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "precision_of", lambda dtype: WIDE)
    monkeypatch.setattr("numba_lamb.engine.cpu.backend.CpuBucket", WideBucket)
    rng = np.random.default_rng(3)
    w = rng.standard_normal(300).astype(np.float32)
    expected = w.astype(np.float64)
    opt = nl.Lamb({"w": w}, 0.1, weight_decay=0.01, nonfinite="propagate")
    m, v = np.zeros((2, 300))
    for step in range(1, 6):
        given = rng.standard_normal(300).astype(np.float32)
        opt.step([given])
        g = given.astype(np.float64)
        m, v = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g**2
        u = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6) + 0.01 * expected
        ratio = np.linalg.norm(expected) / np.linalg.norm(u)
        expected = np.float64(np.float32(expected - 0.1 * ratio * u))
    saved = opt.state_dict()["layers"]["w"]
    assert (w.dtype, saved["m"].dtype, opt._buckets[0].hyper.dtype) == (np.float32, np.float64, np.float64)
    np.testing.assert_allclose(saved["m"], m, rtol=1e-13)
    np.testing.assert_allclose(w, expected, rtol=3e-7)


class Piece:
    """One process's piece of a layer, with its own optimizer."""

    def __init__(self, values: np.ndarray, make: Any) -> None:
        self.opt = make(values)

    def join(self, before: int, chunks: int, meet: Any) -> None:
        """Have norms be those of all `chunks`, of which this piece's come after `before` others."""
        (bucket,) = self.opt._buckets
        bucket.all_sums = np.zeros((chunks, bucket.sums.shape[1]))
        bucket.all_first_chunk = np.array([0, chunks], dtype=np.int64)

        def exchange() -> None:
            meet(before, bucket)

        self.opt._plan.exchange = exchange
        self.opt._backend.columns_changed()


@pytest.mark.parametrize(
    "make",
    [
        lambda w: nl.Lamb({"w": w}, 0.1, weight_decay=0.1),
        lambda w: nl.Lamb({"w": w}, 0.1, variant="oneflow"),
        lambda w: nl.Lars(nl.Momentum({"w": w}, 0.1, 0.9, weight_decay=0.1), coefficient=0.1),
    ],
    ids=["lamb", "two passes of sums", "lars"],
)
def test_a_layer_in_pieces_has_the_norms_of_the_whole(make: Any) -> None:
    rng = np.random.default_rng(4)
    whole = rng.standard_normal(4 * CHUNK + 77).astype(np.float32)
    cuts = [0, CHUNK, 3 * CHUNK, whole.size]
    parts = [whole[a:b].copy() for a, b in pairwise(cuts)]
    single, pieces = make(whole), [Piece(part, make) for part in parts]
    chunks = [len(piece.opt._buckets[0].sums) for piece in pieces]
    barrier, told = threading.Barrier(len(pieces), timeout=60), [np.zeros(0)] * len(pieces)

    def meeting(number: int) -> Any:
        def meet(before: int, bucket: Any) -> None:
            told[number] = bucket.sums.copy()
            barrier.wait()
            bucket.all_sums[:] = np.concatenate(told)
            barrier.wait()

        return meet

    for number, piece in enumerate(pieces):
        piece.join(sum(chunks[:number]), sum(chunks), meeting(number))
    for _ in range(4):
        g = rng.standard_normal(whole.size).astype(np.float32)
        single.step([g])
        threads = [
            threading.Thread(target=piece.opt.step, args=([g[a:b].copy()],))
            for piece, a, b in zip(pieces, cuts, cuts[1:], strict=False)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert np.concatenate(parts).tobytes() == whole.tobytes()
        ratios = {piece.opt.stats()["trust_ratio/w"] for piece in pieces}
        assert ratios == {single.stats()["trust_ratio/w"]}


def test_norms_that_are_needed_twice_are_not_exchanged() -> None:
    opt = nl.Lans({"w": np.ones(3)}, 0.1)
    opt._plan.exchange = lambda: None
    with pytest.raises(ValueError, match="exchange must be None for Lans"):
        opt._backend.place(opt._plan)
