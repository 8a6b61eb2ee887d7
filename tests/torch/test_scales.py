"""Scales of 8-bit moments: their shape, and pieces of them."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from numba_lamb.torch.scales import has_whole_rows, scale_shape

tensor = pytest.importorskip("torch.distributed.tensor")
SIZES = st.sampled_from([1, 2, 3, 5, 32, 64, 96, 128, 192, 256, 300])
PLACEMENTS = st.one_of(st.just(tensor.Replicate()), st.builds(tensor.Shard, st.integers(0, 2)))


def dtensor(shape: tuple[int, ...], mesh: tuple[int, ...], placements: list[Any]) -> Any:
    """Return what is asked of a DTensor."""
    whole = torch.empty(shape, device="meta")
    return SimpleNamespace(
        shape=whole.shape,
        ndim=whole.ndim,
        stride=whole.stride,
        placements=placements,
        device_mesh=SimpleNamespace(shape=mesh),
    )


def pieces(
    values: torch.Tensor, mesh: tuple[int, ...], placements: list[Any]
) -> dict[tuple[int, ...], torch.Tensor]:
    """Return every rank's piece, as torch.chunk cuts them, by its place in the mesh."""
    found = {(): values}
    for count, placement in zip(mesh, placements, strict=True):
        found = {
            (*place, k): piece
            for place, held in found.items()
            for k, piece in enumerate(_chunks(held, count, placement))
        }
    return found


def _chunks(values: torch.Tensor, count: int, placement: Any) -> list[torch.Tensor]:
    if placement.is_replicate():
        return [values] * count
    chunks = list(values.chunk(count, placement.dim))
    return chunks + [values.narrow(placement.dim, 0, 0)] * (count - len(chunks))


@given(
    st.lists(SIZES, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(1, 4), PLACEMENTS), min_size=1, max_size=2),
)
def test_a_piece_has_the_scales_of_its_rows(sizes: list[int], axes: list[tuple[int, Any]]) -> None:
    shape, mesh, placements = tuple(sizes), tuple(n for n, _ in axes), [p for _, p in axes]
    assume(all(p.is_replicate() or p.dim < len(shape) for p in placements))
    whole = torch.arange(math.prod(shape)).reshape(shape)
    if not has_whole_rows(dtensor(shape, mesh, placements)):
        return
    scales = torch.arange(-(-whole.numel() // 128)).reshape(scale_shape(whole))
    cuts = [p if n > 1 else tensor.Replicate() for n, p in axes]
    own, rows = pieces(whole, mesh, placements), pieces(scales, mesh, cuts)
    for place in itertools.product(*map(range, mesh)):
        elements = own[place].reshape(-1)
        assert scale_shape(own[place].contiguous()) == rows[place].shape
        expected = rows[place].reshape(-1).repeat_interleave(128)[: elements.numel()]
        assert torch.equal(elements // 128, expected)
        assert elements.numel() % 128 == 0 or elements[-1] == whole.numel() - 1


@pytest.mark.parametrize(
    ("shape", "mesh", "placements", "expected"),
    [
        ((768, 768), (4,), [tensor.Shard(0)], True),
        ((50257, 768), (8,), [tensor.Shard(0)], True),
        ((3072, 768), (3,), [tensor.Shard(1)], True),
        ((3072, 768), (2, 2), [tensor.Shard(0), tensor.Shard(1)], True),
        ((256, 128, 3, 3), (3,), [tensor.Shard(0)], True),
        ((768,), (2,), [tensor.Shard(0)], True),
        ((768,), (4,), [tensor.Shard(0)], False),
        ((768,), (4,), [tensor.Replicate()], True),
        ((3072, 768), (4,), [tensor.Shard(1)], False),
        ((64, 3, 7, 7), (2,), [tensor.Shard(0)], False),
    ],
    ids=str,
)
def test_which_pieces_have_whole_rows(
    shape: tuple[int, ...], mesh: tuple[int, ...], placements: list[Any], expected: bool
) -> None:
    assert has_whole_rows(dtensor(shape, mesh, placements)) is expected


def test_shapes() -> None:
    for shape, expected in {
        (4, 256): (4, 2),
        (256, 4): (8,),
        (2, 128, 3): (2, 3),
        (5, 7): (1,),
        (0, 3): (0,),
    }.items():
        assert scale_shape(torch.empty(shape)) == expected
    assert scale_shape(torch.empty(256, 4).t()) == (8,)
