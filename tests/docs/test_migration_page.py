"""The page about moving in: its examples run, its tables have all variants and sources, its links work."""

import doctest
import math
import re
from pathlib import Path

import pytest

from numba_lamb.numerics import rules
from numba_lamb.numerics.variants import LAMB_VARIANTS, LARS_VARIANTS, LambVariant

pytest.importorskip("torch", reason="the peers extra is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "moving-in.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_examples_run() -> None:
    pytest.importorskip("optax", reason="the peers extra is not installed")
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags, encoding="utf-8")
    assert results.failed == 0
    assert results.attempted > 30


ONES = {
    (rules.UNGUARDED, False): "",
    (rules.ZERO_NORM, False): "a norm is 0",
    (rules.ZERO_NORM, True): "that or the weight norm is 0",
    (rules.ZERO_DECAY, False): "decay or a norm is 0",
    (rules.ZERO_DENOMINATOR, False): "the weight norm or the denominator is 0",
    (rules.LEFT_ALONE, False): "the weight norm is 0",
}


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def tables(title: str) -> list[list[list[str]]]:
    return [rows(table)[2:] for table in re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE)]


def numbers(variant: LambVariant) -> set[float]:
    """The bounds that are not the paper's."""
    bounds = ("weight_floor", "weight_limit", "least", "most")
    return {getattr(variant, name) for name in bounds} - {0.0, math.inf}


def numbers_in(text: str) -> set[float]:
    return {float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.]\d)", text)}


def test_variants_are_as_the_tables_say() -> None:
    lamb, lars = tables("Variants")
    seen = set()
    for names, *cells, text in lamb:
        for name in re.findall(r'"([^"]+)"', names):
            variant = LAMB_VARIANTS[name]
            assert numbers(variant) <= numbers_in(text), name
            expected = [variant.always_adapt, variant.bias_correction, variant.decoupled_decay]
            assert [cell for cell in cells if cell] == [
                str(v) for v, cell in zip(expected, cells, strict=True) if cell
            ]
            seen.add(name)
    assert seen == set(LAMB_VARIANTS)
    seen = set()
    divisor = ""
    for names, adapt, eps, below, ones, place, _ in lars:
        divisor = divisor if below == "the same" else below
        for name in re.findall(r'"([^"]+)"', names):
            variant = LARS_VARIANTS[name]
            assert ones == ONES[variant.guard, variant.decayed_norm], name
            assert (adapt, float(eps)) == (str(variant.always_adapt), variant.eps)
            assert place.split(",")[0] == ("inside" if variant.rate_inside else "outside")
            assert place.endswith("with the ratio") == variant.ratio_outside
            assert (divisor == "`‖g + decay*w‖`") == variant.decayed_norm
            seen.add(name)
    assert seen == set(LARS_VARIANTS)


def test_every_source_is_in_the_table_of_what_is_taken() -> None:
    from numba_lamb.torch.migration.sources import SOURCES

    taken = {cells[0].replace("`", ""): cells[1].strip("`") for cells in tables("What is taken")[0]}
    for source in SOURCES:
        package, name = source.name.split(".")[0], source.name.split(" or ")[0].split(".")[-1]
        found = [kind for text, kind in taken.items() if package.lower() in text.lower() and name in text]
        assert source.kind in found, source.name


def test_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    assert linked <= anchors
    assert len(linked) == len(headings) - 1


def test_no_row_of_a_table_lacks_a_cell() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        widths = {row.count("|") for row in table.splitlines()}
        assert len(widths) == 1, table
