"""How layers are cut over ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_lamb.layout import CHUNK, FlatLayout
from numba_lamb.sharding import Division, cut

F4 = np.dtype("f4")
SIZES = st.lists(
    st.sampled_from([0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3]), min_size=1, max_size=9
)


def table_of(sizes: list[int]):
    return FlatLayout((f"w{k}", (size,), F4) for k, size in enumerate(sizes)).table(F4)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, ranks=st.integers(1, 9), whole=st.sets(st.integers(0, 8)))
def test_every_element_lies_on_one_rank_and_runs_begin_at_chunks(
    sizes: list[int], ranks: int, whole: set[int]
) -> None:
    table = table_of(sizes)
    division = cut(table, ranks, whole)
    assert division.chunks.tolist() == table.chunks.tolist()
    assert division.first_chunk.tolist() == table.first_chunk.tolist()
    assert np.sort(np.concatenate(division.own)).tolist() == list(range(len(table.chunks)))
    assert (division.stops - division.starts).sum(axis=0).tolist() == sizes
    assert not (division.starts % CHUNK).any()
    for layer in whole & set(range(len(sizes))):
        assert np.count_nonzero(division.stops[:, layer] > division.starts[:, layer]) == (sizes[layer] > 0)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, ranks=st.integers(1, 9))
def test_ranks_have_as_much_but_for_a_chunk(sizes: list[int], ranks: int) -> None:
    division = cut(table_of(sizes), ranks)
    counts = (division.stops - division.starts).sum(axis=1)
    assert abs(counts - sum(sizes) / ranks).max() <= CHUNK


def test_a_run_that_several_ranks_have_counts_once() -> None:
    starts, stops = np.array([[0], [0], [70]]), np.array([[70], [70], [2 * CHUNK + 9]])
    division = Division(starts, stops)
    # Its chunks end where those of the whole layer do, by which random bits go.
    assert division.chunks.tolist() == [[0, 0], [0, 70], [0, CHUNK], [0, 2 * CHUNK]]
    assert [own.tolist() for own in division.own] == [[0], [0], [1, 2, 3]]


@pytest.mark.parametrize("ranks", [2, 64, 1000])
def test_more_ranks_than_chunks_leave_some_without(ranks: int) -> None:
    division = cut(table_of([CHUNK, 5]), ranks)
    assert (division.stops - division.starts).sum() == CHUNK + 5
