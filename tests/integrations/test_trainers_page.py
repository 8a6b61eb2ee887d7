"""The code on the page about trainers runs, and trains."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

REPORT = """
import pathlib
pathlib.Path(f"loss{rank}").write_text(str(cross_entropy(getattr(model, "module", model)(inputs), labels).item()))
"""

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)
    for title, body in re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
}
FIRST = "A loop of your own"
SCRIPTS = {
    "DistributedDataParallel",
    "ZeroRedundancyOptimizer",
    "ShardedLamb",
    "FSDP2 and tensor parallelism",
}
NEEDS = {
    "Hugging Face Trainer": "transformers",
    "Accelerate": "accelerate",
    "Lightning": "lightning",
    "Hydra": "hydra",
}
CONTINUED = [
    pytest.param(title, marks=pytest.mark.integrations if title in NEEDS else ())
    for title, blocks in SECTIONS.items()
    if blocks and title not in SCRIPTS
]


def loss_of(names: dict[str, Any]) -> float:
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(names["model"](names["inputs"]), names["labels"]))


def run(title: str, names: dict[str, Any]) -> None:
    for code in SECTIONS[title]:
        exec(compile(code, f"{PAGE.name}, {title}", "exec"), names)


def test_every_section_has_code() -> None:
    assert set(SECTIONS) >= {FIRST, *SCRIPTS, *NEEDS}
    assert {title for title, blocks in SECTIONS.items() if not blocks} == {"Several nodes"}


@pytest.fixture(name="timm")
def timm_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's registry of optimizers, without timm's models, which need a torchvision that fits this torch."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the peers extra is not installed")
    for name, folder in {"timm": "", "timm.optim": "optim", "timm.models": "models"}.items():
        bare = ModuleType(name)
        bare.__path__ = [str(Path(root) / folder) for root in spec.submodule_search_locations]
        monkeypatch.setitem(sys.modules, name, bare)
    sys.modules["timm.models"].group_parameters = None  # type: ignore[attr-defined]


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:GPU available but not used")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
@pytest.mark.parametrize("title", CONTINUED)
def test_the_code_trains(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if title in NEEDS:
        pytest.importorskip(NEEDS[title])
    if title == "timm":
        request.getfixturevalue("timm")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    run(FIRST, names)
    if title != FIRST:
        before = loss_of(names)
        run(title, names)
        assert loss_of(names) < before
    else:
        assert loss_of(names) < 1.0


@pytest.mark.parametrize("title", sorted(SCRIPTS))
def test_the_script_runs_in_two_processes(title: str, tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    (code,) = SECTIONS[title]
    (tmp_path / "script.py").write_text(code + REPORT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "script.py",
    ]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    losses = [float((tmp_path / f"loss{rank}").read_text()) for rank in range(2)]
    assert losses[0] == losses[1] < 1.0
