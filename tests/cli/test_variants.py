"""`numba-lamb variants`: every formula is there, what is said follows the data, and no word is broken."""

import json
import re
import sys
from dataclasses import fields

import pytest

from numba_lamb.cli import main, variants
from numba_lamb.cli.variants import Formula
from numba_lamb.numerics.variants import LAMB_VARIANTS, LARS_VARIANTS, LambVariant, LarsVariant

NAMES = [*(("lamb", name) for name in LAMB_VARIANTS), *(("lars", name) for name in LARS_VARIANTS)]


@pytest.fixture(scope="module")
def formulas() -> list[Formula]:
    return variants.collect()


def test_every_formula_has_one_row(formulas: list[Formula]) -> None:
    assert [(formula.method, formula.name) for formula in formulas] == NAMES
    rows = [
        line.split()[0] for line in variants.describe(formulas).splitlines() if re.search(r"  \d\S*$", line)
    ]
    assert rows == [name for _, name in NAMES]


@pytest.mark.parametrize("kind", [LambVariant, LarsVariant])
def test_every_field_has_words(kind: type[LambVariant] | type[LarsVariant]) -> None:
    assert {field.name for field in fields(kind)} - {"eps"} <= set(variants._SAID)


def test_what_is_said_is_what_differs(formulas: list[Formula]) -> None:
    found = {(formula.method, formula.name): formula for formula in formulas}
    assert found["lamb", "paper"].differs == found["lamb", "optax"].differs == []
    assert found["lamb", "gluonnlp"].differs == [
        "moments not corrected",
        "weight norm at least 0.001",
        "weight norm at most 10",
    ]
    assert found["lars", "timm"].fields == {
        "eps": 1e-8,
        "guard": LARS_VARIANTS["timm"].guard,
        "rate_inside": False,
        "always_adapt": False,
    }
    assert found["lars", "ipex"].eps == 0
    assert found["lamb", "apex"].first_step["bias"] == pytest.approx(10, rel=0.01)
    assert found["lars", "optax"].first_step["bias from 0"] is None


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("columns", [80, 200])
def test_no_word_is_broken(
    drawn: bool,
    columns: int,
    formulas: list[Formula],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: drawn)
    assert main(["variants"]) == 0
    out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= columns
    assert sorted(out.replace("─", "").split()) == sorted(variants.describe(formulas).split())


def test_json_has_all_that_there_is(formulas: list[Formula], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [vars(formula) for formula in formulas]
