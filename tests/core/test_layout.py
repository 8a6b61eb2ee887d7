"""FlatLayout: offsets, chunks, and sizes beyond 32 bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.layout import ALIGNMENT, CHUNK

F4, F8 = np.dtype("f4"), np.dtype("f8")
shapes = st.lists(st.lists(st.integers(0, 60), max_size=3).map(tuple), min_size=1, max_size=12)


@given(shapes=shapes, dtypes=st.randoms())
def test_chunks_tile_each_layer_and_never_cross_one(shapes: list[tuple[int, ...]], dtypes: object) -> None:
    kinds = [dtypes.choice([F4, F8]) for _ in shapes]  # type: ignore[attr-defined]
    layout = nl.FlatLayout(
        (f"p{k}", shape, kind) for k, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    )
    assert layout.size == sum(int(np.prod(shape)) for shape in shapes)
    for dtype in layout.dtypes:
        table = layout.table(dtype)
        layers = [layout.layers[k] for k in layout.indices(dtype)]
        end = 0
        for k, layer in enumerate(layers):
            assert layer.offset % ALIGNMENT == 0
            assert layer.offset >= end
            end = layer.offset + layer.size
            own = table.chunks[table.first_chunk[k] : table.first_chunk[k + 1]]
            assert (own[:, 0] == k).all()
            assert own[:, 1].tolist() == list(range(0, layer.size, CHUNK))
        assert table.extent >= end
        assert table.sizes.tolist() == [layer.size for layer in layers]


def test_a_layer_may_exceed_32_bits() -> None:
    size = 2**32 + 12_345
    layout = nl.FlatLayout([("small", (10,), F4), ("huge", (2**16, 2**16), F4), ("last", (size,), F4)])
    table = layout.table(F4)
    assert [layer.offset for layer in layout.layers] == [0, ALIGNMENT, ALIGNMENT + 2**32]
    assert layout.size == 10 + 2**32 + size
    assert table.extent > 2**33
    assert table.sizes.dtype == table.chunks.dtype == table.first_chunk.dtype == np.int64
    assert table.chunks[-1].tolist() == [2, (size - 1) // CHUNK * CHUNK]
    assert len(table.chunks) == 1 + 2**32 // CHUNK + -(-size // CHUNK)


def test_records_and_repr_say_what_a_layer_is() -> None:
    layout = nl.FlatLayout([("a", (2, 3), "f4"), ("b", (), "f8", 1)])
    assert layout.layers[1] == nl.Layer("b", (), F8, 1, 0)
    assert (layout.layers[0].size, layout.layers[1].size, layout.layers[1].ndim) == (6, 1, 0)
    assert repr(layout) == "<FlatLayout: 2 layers, 7 elements>"
    assert layout.dtypes == (F4, F8)


def test_state_starts_on_64_byte_lines() -> None:
    opt = nl.Lamb([np.ones(3, np.float32), np.ones(70, np.float32)], 0.1)
    for part in opt._buckets:
        assert (part.addresses[:, 2:] % 64 == 0).all()


def test_filters_get_the_record() -> None:
    seen: list[tuple[str, tuple[int, ...], int]] = []

    def look(layer: nl.Layer) -> bool:
        seen.append((layer.name, layer.shape, layer.group))
        return True

    groups = [{"params": {"a": np.ones((2, 3))}}, {"params": {"b": np.ones(4)}}]
    nl.Lamb(groups, 0.1, decay_filter=look)
    assert seen == [("a", (2, 3), 0), ("b", (4,), 1)]


def test_layers_are_frozen() -> None:
    layer = nl.FlatLayout([("a", (2,), "f4")]).layers[0]
    with pytest.raises(AttributeError):
        layer.offset = 3  # type: ignore[misc]
