"""What a release says of itself agrees."""

import re
import tomllib
from pathlib import Path

import numba_lamb

ROOT = Path(__file__).parents[2]


def test_the_version_stands_in_one_place_and_the_changelog_and_the_citation_follow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    release = re.search(r"^## ([\d.]+) - ([\d-]+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert release is not None
    assert release[1] == numba_lamb.__version__
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {release[1]}\ndate-released: {release[2]}\n" in citation
