"""The code on the page about half precision runs."""

import doctest
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the peers extra is not installed")
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")


@pytest.mark.slow
def test_the_page_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "half-precision.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert failed == 0
    assert tried > 10
