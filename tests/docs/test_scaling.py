"""What a sharded step sends and keeps is what the page says."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import simulate_scaling as simulated

from numba_lamb.engine.traffic import pieces_of
from numba_lamb.layout import FlatLayout
from numba_lamb.sharding import cut
from tests.sharding.ranks import ThreadComm, _Meeting

DOCS = Path(__file__).parents[2] / "docs"

SHAPES = [(300, 100), (10,), (7000,), (64, 64), (0, 3), (3,), (50_000,), (1,)]
"""22 chunks of many lengths."""


@pytest.mark.parametrize("method", simulated.MEETINGS)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_step_sends_and_keeps_what_was_computed(ranks: int, method: str) -> None:
    # As many pieces as chunks allow, several, and one.
    for bucket_mb in (0.001, 0.1, 25.0):
        expected = simulated.count(SHAPES, ranks, bucket_mb)
        expected = replace(expected, meetings=simulated.MEETINGS[method])
        moments = 1 if method in ("Lars", "Momentum") else 2
        real = simulated.real_steps(SHAPES, ranks, bucket_mb, method)
        assert [one.messages for one in real] == [expected.messages] * ranks
        assert [one.handed for one in real] == [expected.handed] * ranks
        assert [one.state for one in real] == (expected.state * moments // 2).tolist()
        assert max(one.buffers for one in real) == expected.buffers


def test_ranks_that_have_nothing_send_as_much() -> None:
    expected = simulated.count([(10,), (20,)], 8)
    assert expected.elements.tolist().count(0) == 6
    for one in simulated.real_steps([(10,), (20,)], 8, 25.0):
        assert (one.messages, one.handed) == (expected.messages, expected.handed)


@pytest.mark.parametrize(("ranks", "bucket_mb"), [(3, 25.0), (64, 5.0), (1000, 25.0)])
def test_pieces_of_many_ranks_are_as_computed(ranks: int, bucket_mb: float) -> None:
    shapes = simulated.MODELS["ResNet-50"]
    layout = FlatLayout((str(number), shape, "f4") for number, shape in enumerate(shapes))
    division = cut(layout.table(np.dtype("f4")), ranks)
    widths = np.full(len(shapes), 4, dtype=np.int64)
    pieces = pieces_of(division, ThreadComm(0, _Meeting(ranks)), int(bucket_mb * 2**20), 4, widths)
    found = simulated.count(shapes, ranks, bucket_mb)
    assert [piece.room for piece in pieces] == found.rooms.tolist()
    assert [len(own) for own in division.own] == found.chunks.tolist()


def test_the_page_has_the_tables_that_the_script_makes() -> None:
    page = (DOCS / "scaling.md").read_text("utf-8")
    assert simulated.render(page) == page


def test_the_picture_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the demo extra is not installed")
    simulated.draw(tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 50_000
