"""Fixtures of tests that use the double of the GPU."""

from typing import Any

import pytest

from tests.cuda.double import Gpu


@pytest.fixture(name="mapped")
def mapped_fixture(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Any:
    """CPU tensors that can be taken for those of a GPU."""
    from tests.cuda.mapped import map_tensors

    return map_tensors(gpu, monkeypatch)
