"""What sharding will stand on: sums that come from elsewhere."""

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.layout import CHUNK


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
