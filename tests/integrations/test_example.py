"""The examples run as the page beside them says, and learn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, folder: Path, *options: str) -> str:
    """Run an example from a folder of its own; a warning of ours or PyTorch's is an error."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "error" if name == "finetune.py" else "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not list(folder.iterdir())
    return result.stdout


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_the_loss_falls(optimizer: str, tmp_path: Path) -> None:
    output = run("finetune.py", tmp_path, "--steps=30", "--batch=16", f"--optimizer={optimizer}", "--seed=3")
    assert "30 steps of 16 x 64 characters" in output
    losses = [float(loss) for loss in re.findall(r"^step .* loss (\S+)$", output, re.MULTILINE)]
    assert len(losses) >= 10
    assert losses[-1] < losses[0] - 1
    before, after = re.findall(r"held-out loss (\S+) before, (\S+) after", output)[0]
    assert float(after) < float(before) - 1
    assert ("trust ratio" in output) == (optimizer == "lamb")
    table = re.findall(r"^(\S+\.weight) +(\S+) +(\S+) +(\S+)$", output, re.MULTILINE)
    assert (len(table) >= 3) == (optimizer == "lamb")
    for _, weight, update, ratio in table:
        assert float(ratio) == pytest.approx(float(weight) / float(update), rel=0.01)


@pytest.mark.integrations
def test_the_trainer_resumes_as_if_it_never_stopped(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    output = run("finetune_trainer.py", tmp_path, "--steps=20", "--batch=32")
    losses = [float(loss) for loss in re.findall(r"^held-out loss (\S+)", output, re.MULTILINE)]
    before, after, resumed = losses
    assert after < before - 1
    assert resumed == after
    assert "weights are the same, bit for bit" in output
    assert "resumed at 10" in output
