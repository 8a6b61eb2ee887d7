"""Lint, formatting, types, import contracts and benchmarks: `pytest` alone runs them all."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = {
    "ruff check": ["-m", "ruff", "check", "--no-cache", "."],
    "ruff format": ["-m", "ruff", "format", "--no-cache", "--check", "."],
    "mypy": ["-m", "mypy"],
    "import contracts": [
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ],
}


def run_tool(module: str, arguments: list[str], folder: Path = ROOT, **environment: str) -> str:
    if importlib.util.find_spec(module) is None:
        pytest.fail(f'{module} is not installed: python -m pip install -e ".[test]"')
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_is_content(tool: str) -> None:
    arguments = TOOLS[tool]
    module = "importlinter" if tool == "import contracts" else arguments[1]
    run_tool(module, arguments)


def test_the_core_needs_numba_and_numpy_alone() -> None:
    code = """
import sys
import numba_lamb
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "cupy", "matplotlib", "rich", "jax", "mpi4py"}))
"""
    assert run_tool("numba", ["-c", code]).strip() == "[]"


@pytest.mark.slow
def test_benchmarks_are_found_and_run(tmp_path: Path) -> None:
    def asv(*arguments: str) -> str:
        # A home of its own, where asv keeps what it knows of the machine.
        command = ["-W", "ignore", "-m", "asv", *arguments]
        return run_tool("asv", command, ROOT / "asv_bench", HOME=str(tmp_path), USERPROFILE=str(tmp_path))

    assert "No problems found" in asv("check", "--python=same")
    asv("machine", "--yes")
    bench = r"^step\.Step\.time_step\('lamb', '200-tiny'\)"
    output = asv("run", "--python=same", "--quick", "--dry-run", "--show-stderr", "--bench", bench)
    assert "failed" not in output
    assert re.search(r"\d+(\.\d+)?\s*[±+]?\S*\s*[mμun]?s", output), output


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.name)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
