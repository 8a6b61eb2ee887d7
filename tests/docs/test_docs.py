"""Pages that are made from results and docstrings are up to date."""

import importlib.util
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def test_readme_tables_are_those_of_the_results() -> None:
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "docs" / "make_readme.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    page = (ROOT / "README.md").read_text()
    assert made.render(page) == page


def test_the_picture_in_the_readme_is_not_taller_than_a_screen() -> None:
    with Image.open(ROOT / "docs" / "bench.png") as image:
        assert image.height <= 700
