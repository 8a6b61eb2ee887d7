"""Every page of the docs: its code runs, it says for whom it is, its links lead somewhere, its tests exist.

A comment `<!-- needs: apex gpu -->` before a block of code names what has to be installed for it to run; where
that is missing, the block is compiled only.
"""

import ast
import doctest
import importlib
import importlib.util
import re
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
ELSEWHERE = {
    "checkpoints.md": "test_logging_pages.py",
    "coming-from.md": "test_coming_from.py",
    "gallery.md": "../cli/test_plot.py",
    "half-precision.md": "test_half_precision.py",
    "logging.md": "test_logging_pages.py",
    "moving-in.md": "test_migration_page.py",
    "trainers.md": "../integrations/test_trainers_page.py",
}
"""Pages whose code another test runs."""
INCLUDES = {"changelog.md", "contributing.md"}
BLOCK = re.compile(r"(?:<!-- needs: (.*?) -->\n)?```python\n(.*?)```", re.DOTALL)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def is_here(name: str) -> bool:
    if name == "gpu":
        torch = pytest.importorskip("torch")
        return bool(torch.cuda.is_available())
    return name in sys.modules or importlib.util.find_spec(name) is not None


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have timm's optimizers without its models, which need a torchvision that fits this torch."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        return
    for name, folder in {"timm": "", "timm.optim": "optim"}.items():
        bare = ModuleType(name)
        bare.__path__ = [str(Path(root) / folder) for root in spec.submodule_search_locations]
        monkeypatch.setitem(sys.modules, name, bare)
    for kind in ("Lamb", "Lars"):
        setattr(bare, kind, getattr(importlib.import_module(f"timm.optim.{kind.lower()}"), kind))


WITH_CODE = [
    page for page in PAGES if page not in ELSEWHERE and BLOCK.search((DOCS / page).read_text("utf-8"))
]


@pytest.mark.slow
@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the peers extra is not installed")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What torchrun sets, for one process.
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    names: dict[str, Any] = {"__name__": "page"}
    for number, (needs, code) in enumerate(BLOCK.findall((DOCS / page).read_text("utf-8"))):
        where = f"{page}, block {number}"
        if not all(is_here(name) for name in needs.split()):
            ast.parse(code, where)
        elif ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, names, where, page, 0)
            problems: list[str] = []
            failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(
                test, out=problems.append, clear_globs=False
            )
            assert not failed, "".join(problems)
            names = test.globs
        else:
            exec(compile(code, where, "exec"), names)


def test_pages_whose_code_runs_elsewhere_are_named_there() -> None:
    for page, test in ELSEWHERE.items():
        assert (Path(__file__).parent / test).exists()
        assert (DOCS / page).exists()


@pytest.mark.parametrize("page", [page for page in PAGES if page not in INCLUDES])
def test_the_first_sentence_says_for_whom_the_page_is(page: str) -> None:
    title, first, *_ = (DOCS / page).read_text("utf-8").split("\n\n")
    assert title.startswith("# ")
    assert first.startswith("For those ")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text("utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        path = (DOCS / page).parent / target if target else DOCS / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}#{anchor}"


@pytest.mark.slow
def test_made_pages_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, "make_pages", raising=False)
    import make_pages

    for page, make in make_pages.PAGES.items():
        assert make() == (DOCS / page).read_text("utf-8"), (
            f"{page} is out of date: run `python docs/make_pages.py`"
        )


def test_every_test_that_is_named_exists() -> None:
    named = 0
    for page in PAGES:
        for path, test in re.findall(r"`(tests/[\w/]+\.py)`(?:: `(\w+)`)?", (DOCS / page).read_text("utf-8")):
            assert (DOCS.parent / path).exists(), f"{page}: {path}"
            if test:
                assert f"def {test}(" in (DOCS.parent / path).read_text("utf-8"), f"{page}: {path}::{test}"
                named += 1
    assert named > 40


def test_a_row_of_the_comparison_has_a_test_or_a_reason() -> None:
    rows = re.findall(
        r"^\| (.+) \| (.+) \| (.*) \|$", (DOCS / "comparison.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) > 60
    for feature, here, shown in rows:
        assert len(shown) > 2, feature
        assert (
            here != "yes" or "tests/" in shown or shown in ("the same",) or "](" in shown or ";" in shown
        ), feature


SECTIONS = (DOCS / "from.md").read_text("utf-8").split("\n## ")[1:]
PAIRS = [
    (f"{section.splitlines()[0]}-{number}", *BLOCK.findall(pair), float(bound))
    for section in SECTIONS
    for number, (pair, bound) in enumerate(
        re.findall(r"<div class=\"side\">(.*?)</div>.*?at most ([\d.e-]+) after 10 steps", section, re.DOTALL)
    )
]


@pytest.mark.slow
@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("there", "here", "bound"), [pair[1:] for pair in PAIRS], ids=[pair[0] for pair in PAIRS]
)
def test_what_changes_is_as_the_page_says(
    there: tuple[str, str], here: tuple[str, str], bound: float
) -> None:
    torch = pytest.importorskip("torch", reason="the peers extra is not installed")
    for name in there[0].split():
        if not is_here(name):
            pytest.skip("the peers extra is not installed")
    ends = []
    for _, code in (there, here):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        names = {"model": model, "torch": torch}
        exec(code, names)
        for step in range(10):
            torch.manual_seed(step)
            inputs = torch.randn(32, 20)
            names["opt"].zero_grad()
            (model(inputs) - inputs[:, :1]).square().mean().backward()
            names["opt"].step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    difference = ((ends[1] - ends[0]).abs().max() / ends[0].abs().max()).item()
    print(f"difference {difference:.1e}")
    assert difference <= bound
