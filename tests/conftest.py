"""Settings that all tests share."""

from pathlib import Path

import pytest
from hypothesis import settings

# The first example of a test may compile a kernel, and the machine may be busy: no test is about time.
settings.register_profile("numba-lamb", deadline=None)
settings.load_profile("numba-lamb")


@pytest.fixture(scope="session", name="whole")
def tiny_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a tiny `numba-lamb train` that was left alone."""
    from numba_lamb.cli import main

    out = tmp_path_factory.mktemp("whole")
    assert main(["train", "--quick", "--search", "--epochs", "2", "--out", str(out)]) == 0
    return out
