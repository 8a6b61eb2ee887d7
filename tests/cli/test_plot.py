"""``numba-lamb plot``, and the gallery of schedules that is drawn with it."""

import argparse
import ast
import importlib.util
import os
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from numba_lamb import schedules
from numba_lamb.cli import main, plot
from numba_lamb.schedules import expression

DOCS = Path(__file__).parents[2] / "docs"
COSINE = "CosineWithWarmUpLR(1e-3, warmup_steps=100, total_steps=1000)"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*words):
    parser = argparse.ArgumentParser()
    plot.add_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["plot", *words])
    return arguments.run(arguments)


def description(path):
    """What a picture says of its curves."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.text["Description"]
    return ElementTree.parse(path).findtext(".//{http://purl.org/dc/elements/1.1/}description")


def drawn(path):
    """The steps that a picture says it shows, by curve: first and last."""
    found = re.findall(r"(\S[^;]*?) at steps (\d+): [^;]*?(?:(\d+): [^:;]+)?(?:;|$)", description(path))
    return {label: (int(first), int(last or first)) for label, first, last in found}


def files():
    return sorted(path.name for path in Path().iterdir())


def refused(capsys, *words):
    """Run with words that are refused; return the one line on stderr."""
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert files() == []
    assert err.count("\n") == 1
    assert err.startswith("numba-lamb plot: ")
    return err


# -- what is drawn -----------------------------------------------------------------------------------------


def test_the_default_is_a_png_of_the_whole_schedule(capsys):
    assert run(COSINE) == 0
    assert capsys.readouterr() == ("schedule.png\n", "")
    assert files() == ["schedule.png"]
    path = Path("schedule.png")
    assert drawn(path) == {COSINE: (0, 999)}
    assert "374: 0.000788216" in description(path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1200
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


@pytest.mark.parametrize("name", ["a.svg", "A.SVG", "b.PNG"])
def test_the_suffix_says_the_format(name, capsys):
    assert run("WarmUpLR(0.1, 5)", "--out", name) == 0
    assert capsys.readouterr().out == f"{name}\n"
    start = Path(name).read_bytes()[:8]
    assert start.startswith(b"<?xml" if name.lower().endswith("svg") else b"\x89PNG")


def test_a_chart_is_as_long_as_its_longest_schedule_and_a_table_ends_where_it_ends():
    table = "cosine_decay_lr(0.0, 0.1, total_step=30, step_per_epoch=2, decay_epoch=10)"
    joined = "sequence([WarmUpLR(0.1, 10), [0.1, 0.05]], [10])"
    assert run(table, "WarmUpLR(0.1, 50)", joined, "[0.1, 0.2]", "--out", "a.svg") == 0
    path = Path("a.svg")
    assert drawn(path) == {
        table: (0, 29),
        "WarmUpLR(0.1, 50)": (0, 99),
        joined: (0, 11),
        "[0.1, 0.2]": (0, 1),
    }


def test_steps_sets_the_length_but_for_tables():
    table = "warmup_lr(0.1, 4, 1, 2)"
    assert run(table, "WarmUpLR(0.1, 50)", "--steps", "7", "--out", "a.svg") == 0
    assert drawn(Path("a.svg")) == {table: (0, 3), "WarmUpLR(0.1, 50)": (0, 6)}


@pytest.mark.parametrize("steps", [1, 2, 19_999, 20_001, 40_000, 10**12])
def test_long_schedules_are_drawn_from_some_of_their_steps(steps):
    curve = plot.curve("w", schedules.WarmUpLR(1.0, 5), steps)
    assert len(curve.steps) == len(curve.rates) <= plot.MAX_POINTS + 1
    assert curve.steps[0] == 0
    assert curve.steps[-1] == steps - 1
    assert list(curve.rates) == [min(step, 5) / 5 for step in curve.steps]


def test_a_logarithmic_axis_leaves_out_what_is_not_above_zero():
    assert run(COSINE, "--log", "--out", "a.svg") == 0
    assert r"{10^{-3}}" in Path("a.svg").read_text()
    assert run("ExponentialDecayLR(0.1, 10.0, 1)", "--log", "--steps", "2000") == 0


def test_rates_below_zero_and_beyond_floats_are_no_obstacle():
    falling = "WarmUpStableDecayLR(0.1, warmup_steps=1, total_steps=9, decay_start_steps=5)"
    assert (
        run(falling, "ExponentialDecayLR(0.1, 1e300, 1)", "scale(WarmUpLR(0.1, 3), 0)", "--steps", "40") == 0
    )


def test_every_line_looks_different():
    looks = {(k % len(plot._COLORS), k % len(plot._DASHES)) for k in range(plot.MAX_CURVES)}
    assert len(looks) == plot.MAX_CURVES
    assert run(*(f"WarmUpLR(0.1, {k})" for k in range(1, plot.MAX_CURVES + 1))) == 0


def test_long_labels_are_wrapped_then_shortened():
    label = plot._wrap(f"sequence([{', '.join(['WarmUpLR(1e-3, 5)'] * 60)}], [1])")
    lines = label.split("\n")
    assert len(lines) == 4
    assert max(map(len, lines)) <= 88
    assert not any(line.endswith("1e-") for line in lines)
    assert label.endswith(" ...")
    assert plot._wrap("WarmUpLR(0.1, 5)  # $x$") == r"WarmUpLR(0.1, 5)  # \$x\$"


def test_the_same_words_give_the_same_bytes():
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        assert run(COSINE, "warmup_lr(0.1, 4, 1, 2)", "--out", name) == 0
    for suffix in ("svg", "png"):
        assert Path(f"a.{suffix}").read_bytes() == Path(f"b.{suffix}").read_bytes()


def test_settings_of_the_user_do_not_reach_in():
    from matplotlib import rc_context

    assert run(COSINE, "--out", "a.png") == 0
    with rc_context({"axes.facecolor": "black", "font.size": 30}):
        assert run(COSINE, "--out", "b.png") == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


# -- what is refused -----------------------------------------------------------------------------------------

BAD = {
    "WarmUpLr(0.1, 5)": "did you mean WarmUpLR",
    "__import__('os').getcwd()": "is neither a literal nor a call of a schedule",
    "WarmUpLR(0.1": "cannot read",
    "WarmUpLR(0.1, 0)": "warmup_steps must be >= 1, got 0",
    "WarmUpLR(0.1,\n'x')": "warmup_steps must be an integer",
    "cosine_decay_lr(0.2, 0.1, 6, 2, 2)": "min_lr must be < max_lr",
    "0.1": "is not a schedule",
    "WarmUpLR(0.1, 5), 3": "is not a schedule",
    "": "cannot read",
    "[]": "is not a schedule",
    "WarmbootingCosineLR(1.0, 8, lf=WarmUpLR(0.1, 5))": "has no rate at step 0",
    f"ConstantWarmUpLR(0.1, warmup_ratio=0.5, total_steps=1{'0' * 400})": "too large",
    f"WarmUpLR(0.1, 1{'0' * 400})": "has no rate at step 0: int too large",
    "ExponentialDecayLR(1e299, 1.0, 5)": "has no rate that can be drawn",
    "polynomial_decay_lr(0.1, 0.1, 9999999999, 1, 1, 1.0)": "total_step must be at most 1,000,000, got 9999999999",
    "hold_last(warmup_lr(0.1, 10**9, 1, 2))": "total_step must be at most 1,000,000",
    "warmup_lr(0.1, 1000001, 1, 1)": "total_step must be at most 1,000,000, got 1000001",
    "piecewise_constant_lr([5, 99999999999], [0.1, 0.2])": "milestone must be at most 1,000,000, got 99999999999",
    "sequence([warmup_lr(0.1, 9, 1, 1), warmup_lr(0.1, 999999, 1, 1)], [5])": "at most 999,991, got 999999",
}


@pytest.mark.parametrize(("expression", "message"), BAD.items(), ids=[bad[:40] for bad in BAD])
def test_a_bad_schedule_is_one_line_and_no_file(expression, message, capsys):
    assert message in refused(capsys, "WarmUpLR(0.1, 5)", expression)


LONG = {
    "text": "WarmUpLR(0.1, '" + "x" * 9000 + "')",
    "unknown": "x" * 9000,
    "keyword": "WarmUpLR(0.1, 5, " + "x" * 9000 + "=1)",
    "digits": "WarmUpLR(0.1, 0x" + "f" * 9000 + ")",
    "brackets": "[" * 9000,
    "list": "WarmUpLR([" + "0.1, " * 3000 + "], 5)",
    "table": "[" + "'a', " * 3000 + "]",
    "too long": "WarmUpLR(0.1, 5)" + " " * 30_000,
}


@pytest.mark.parametrize("expression", LONG.values(), ids=LONG)
def test_long_input_is_not_repeated_whole(expression, capsys):
    assert len(refused(capsys, "WarmUpLR(0.1, 5)", expression)) < 1100


def test_long_options_are_not_repeated_whole(capsys):
    for words in (
        ["plot", "WarmUpLR(0.1, 5)", "--steps", "9" * 9000],
        ["x" * 9000],
        ["plot", "--" + "x" * 9000],
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert len(capsys.readouterr().err) < 1000
    assert len(refused(capsys, "WarmUpLR(0.1, 5)", "--out", "x" * 9000)) < 1100


def test_a_picture_that_is_replaced_hands_on_its_mode():
    Path("a.svg").touch()
    Path("a.svg").chmod(0o640)
    assert run("WarmUpLR(0.1, 5)", "--out", "a.svg") == 0
    assert Path("a.svg").stat().st_mode & 0o777 == 0o640


def test_nothing_to_show_on_a_logarithmic_axis(capsys):
    message = refused(capsys, "--log", "scale(WarmUpLR(0.1, 5), 0)")
    assert "'scale(WarmUpLR(0.1, 5), 0)' has no rate above 0 that --log can show" in message


@pytest.mark.parametrize("name", ["a.pdf", "a", ".png", "a.png.gz"])
def test_other_suffixes(name, capsys):
    assert f"--out must end in .png or .svg, not '{name}'" in refused(
        capsys, "WarmUpLR(0.1, 5)", "--out", name
    )


def test_too_many_schedules(capsys):
    words = ["WarmUpLR(0.1, 5)"] * (plot.MAX_CURVES + 1)
    assert "at most 28 schedules can be told apart, not 29" in refused(capsys, *words)


@pytest.mark.parametrize("steps", ["0", "-1", "1.5", "x", str(10**12 + 1)])
def test_bad_step_counts(steps, capsys):
    with pytest.raises(SystemExit) as caught:
        run("WarmUpLR(0.1, 5)", f"--steps={steps}")
    assert caught.value.code == 2
    assert "--steps" in capsys.readouterr().err


def test_no_schedule(capsys):
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    assert "SCHEDULE" in capsys.readouterr().err


def test_without_matplotlib_the_way_out_is_named(capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    message = refused(capsys, "WarmUpLR(0.1, 5)")
    assert message == "numba-lamb plot: needs matplotlib: python -m pip install matplotlib\n"


def test_a_missing_folder(capsys):
    message = refused(capsys, "WarmUpLR(0.1, 5)", "--out", "no/a.png")
    assert message == f"numba-lamb plot: cannot write {Path('no/a.png')}: No such file or directory\n"


def test_a_folder_in_the_place_of_the_file(capsys):
    Path("a.png").mkdir()
    assert run("WarmUpLR(0.1, 5)", "--out", "a.png") == 2
    assert "cannot write a.png" in capsys.readouterr().err
    assert files() == ["a.png"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_was_there_stays_when_writing_fails(error, monkeypatch, capsys):
    Path("a.png").write_bytes(b"before")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    if isinstance(error, OSError):
        assert run("WarmUpLR(0.1, 5)", "--out", "a.png") == 2
        assert capsys.readouterr().err == "numba-lamb plot: cannot write a.png: No space left on device\n"
    else:
        with pytest.raises(KeyboardInterrupt):
            run("WarmUpLR(0.1, 5)", "--out", "a.png")
    assert files() == ["a.png"]
    assert Path("a.png").read_bytes() == b"before"


# -- the gallery ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_gallery():
    spec = importlib.util.spec_from_file_location("make_gallery", DOCS / "make_gallery.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_gallery"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_gallery"]


STALE = "is out of date: run `python docs/make_gallery.py`"


def test_the_gallery_is_up_to_date(make_gallery):
    found = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert found == make_gallery.page(), f"docs/gallery.md {STALE}"


def test_the_gallery_has_each_public_schedule_once(make_gallery):
    sections = re.findall(r"^### (\w+)$", make_gallery.page(), re.MULTILINE)
    assert sorted(sections) == sorted(set(schedules.__all__) - make_gallery.NO_RATES)
    assert {*make_gallery.EXAMPLES, make_gallery.DRIVEN} == set(sections)
    assert set(make_gallery.STEPS) <= set(sections)
    for name in make_gallery.EXAMPLES:
        assert any(name in example for example in make_gallery.EXAMPLES[name])


def test_each_section_has_a_formula_and_no_leftover_markup(make_gallery):
    sections = re.split(r"^### ", make_gallery.page(), flags=re.MULTILINE)[1:]
    for section in sections:
        assert "```math\n" in section or "| $`" in section, section
    assert not re.search(r":\w+:`|\.\. math|(?<!`)``(?!`)|MATH", make_gallery.page())


def test_pictures_show_what_the_schedules_give_now(make_gallery):
    names = set(re.findall(r"^### (\w+)$", make_gallery.page(), re.MULTILINE))
    assert {path.stem for path in (DOCS / "gallery").iterdir()} == names
    for name in names:
        path = DOCS / "gallery" / f"{name}.svg"
        assert description(path) == plot.describe(make_gallery.curves_of(name)), f"{path.name} {STALE}"
        assert path.stat().st_size < 25_000


@pytest.mark.slow
def test_one_call_writes_it_all_and_removes_what_is_no_more(make_gallery, tmp_path):
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "OldLR.svg").write_text("")
    make_gallery.main(tmp_path)
    assert (tmp_path / "gallery.md").read_bytes() == (DOCS / "gallery.md").read_bytes()
    pictures = {path.name for path in (tmp_path / "gallery").iterdir()}
    assert pictures == {path.name for path in (DOCS / "gallery").iterdir()}


# -- arithmetic and scales -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10**5", 100_000),
        ("3 * 30_000 // 7", 12_857),
        ("-(2 + 3) - -4", -1),
        ("+1 / 4", 0.25),
        ("2**63", 2**63),
        ("2**-1", 0.5),
        ("0.9**3", 0.9**3),
        ("1e3 * 5", 5e3),
    ],
)
def test_constants_are_worked_out(text, value):
    found = expression._Reading(text).value(ast.parse(text, mode="eval").body)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "9**9**9**9",
        "(-9)**99999999999",
        "2**64",
        "2**63 + 1",
        "10**18 * 10**18",
        "1 << 10**9",
        "1e308 * 10",
        "10.0**400",
        "1 / 0",
        "1 // 0",
        "0**-1",
        "(-8)**0.5",
        "'a' * 10**9",
        "[0.1] * 10**9",
        "True + 1",
        "WarmUpLR(0.1, 5) * 2",
        "7 % 2",
        "~1",
        "+" * 100_000 + "1",
        "1" + "+1" * 100_000,
        f"{'9' * 4000} * 1",
    ],
)
def test_arithmetic_has_bounds(text):
    with pytest.raises(ValueError, match=r"must be a real number|neither a literal|cannot read"):
        schedules.parse(f"WarmUpLR({text}, 5)")


@pytest.mark.parametrize("low", ["0.01", "0.011"])
def test_scales_that_differ_a_hundredfold_are_told(low, capsys):
    words = ("WarmUpLR(1.0, 5)", f"WarmUpLR({low}, 5)", "[0.0, 0.0]")
    assert run(*words) == 0
    told = "numba-lamb plot: 'WarmUpLR(0.01, 5)' is at most 0.01 and 'WarmUpLR(1.0, 5)' 1: --log shows both\n"
    assert capsys.readouterr().err == (told if low == "0.01" else "")
    assert run(*words[:2], "--log") == 0
    assert capsys.readouterr().err == ""
