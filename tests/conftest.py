"""Settings that all tests share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The first example of a test may compile a kernel, and the machine may be busy: no test is about time.
settings.register_profile("numba-lamb", deadline=None)
settings.load_profile("numba-lamb")

TESTS = Path(__file__).parent
SLOW_FOLDERS = {("cuda",), ("integrations",)}
SLOW_FIXTURES = {"gpu", "whole"}


@pytest.fixture(name="gpu")
def gpu_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A GPU for tests that have none."""
    from tests.cuda.double import Gpu

    gpu = Gpu(monkeypatch)
    yield gpu
    gpu.close()


@pytest.fixture(scope="session", name="whole")
def tiny_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a tiny `numba-lamb train` that was left alone."""
    from numba_lamb.cli import main

    out = tmp_path_factory.mktemp("whole")
    assert main(["train", "--quick", "--search", "--epochs", "2", "--out", str(out)]) == 0
    return out


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what compiles CUDA kernels and interprets them, trains networks, or drives trainers."""
    for item in items:
        folder = item.path.parent.relative_to(TESTS).parts[:1] if item.path.is_relative_to(TESTS) else ()
        if folder in SLOW_FOLDERS or SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
