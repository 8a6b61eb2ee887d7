"""The code on the page about half precision runs, and its tables are what was measured."""

import doctest
import importlib.util
import json
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


def test_the_tables_are_what_was_measured() -> None:
    file = Path(__file__).parents[2] / "docs" / "measure_half.py"
    spec = importlib.util.spec_from_file_location("measure_half", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    page = made.PAGE.read_text()
    assert made.with_tables(page, json.loads(made.RESULTS.read_text())) == page
