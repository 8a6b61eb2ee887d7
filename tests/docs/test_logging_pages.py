"""The code on the pages about checkpoints and logging runs, in order; what is not installed has a stand-in."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


class Writer:
    """Stands for TensorBoard's writer and for a run of wandb."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.hyper: dict[str, list[tuple[int, float]]] = {}
        self.rows: list[dict[str, float]] = []
        made.append(self)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.hyper.setdefault(name, []).append((step, value))

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)


made: list[Writer] = []


@pytest.fixture(autouse=True)
def loggers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made.clear()
    monkeypatch.chdir(tmp_path)
    for name in ("torch.utils.tensorboard", "wandb"):
        module = ModuleType(name)
        module.SummaryWriter = module.init = Writer  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)


def run(page: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.S)):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_checkpoints() -> None:
    pytest.importorskip("torch", reason="the peers extra is not installed")
    run("checkpoints.md")
    assert {path.name for path in Path().iterdir()} == {
        *("training.npz", "mine.npz", "training.pt", "ranks.npz", "ranks-1")
    }


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the page draws a picture")
def test_logging() -> None:
    pytest.importorskip("torch", reason="the page imports a part of it")
    names = run("logging.md")
    history, (board, second, wandb) = names["history"], made
    ratios = history.trust_ratio[:, 0].tolist()
    assert board.hyper["trust_ratio/weight"] == list(zip(range(1, 21), ratios, strict=True))
    assert second.hyper["trust_ratio/weight"] == [(20, ratios[-1])]
    assert [row["trust_ratio/weight"] for row in wandb.rows] == ratios
    assert {path.name for path in Path().iterdir()} == {"ratios.png", "history.csv"}
