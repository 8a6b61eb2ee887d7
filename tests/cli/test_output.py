"""The command where its output cannot be written: no traceback, exit code 1."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from numba_lamb.cli import main

pytestmark = pytest.mark.slow

FULL = Path("/dev/full")
RUN = "import sys; from numba_lamb.cli import main; sys.exit(main())"
COMMANDS = {
    "help": ["--help"],
    "info": ["info"],
    "info --json": ["info", "--json"],
    "plot": ["plot", "WarmUpLR(0.1, 5)"],
    "bench": ["bench", "--profiles", "200-tiny", "--only", "copy", "--rounds", "1", "--threads", "1"],
    "train": ["train", "--quick", "--epochs", "2"],
}


def closed_pipe() -> Any:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize("kind", ["full", "closed pipe"])
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_output_that_cannot_be_written(
    words: list[str],
    kind: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if words[0] == "train":
        pytest.importorskip("rich")
    if kind == "full" and not FULL.exists():
        pytest.skip("there is no /dev/full")
    monkeypatch.chdir(tmp_path)
    # What it measures is not the question.
    monkeypatch.setattr("numba_lamb.cli.bench.run_profile", measured_nothing)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    with FULL.open("w") if kind == "full" else closed_pipe() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(words) == 1
    assert capfd.readouterr().err == (UNWRITTEN if kind == "full" else "")


def measured_nothing(*arguments: Any) -> Any:
    print("a table", flush=True)


UNWRITTEN = "numba-lamb: cannot write to standard output: No space left on device\n"
PROCESSES = {
    "full": ("--help >/dev/full", "", 1, UNWRITTEN),
    "full, unbuffered": ("--help >/dev/full", "1", 1, UNWRITTEN),
    "closed": ("info >&-", "", 1, "numba-lamb: standard output is closed\n"),
    "closed pipe": ("info | true; exit ${PIPESTATUS[0]}", "", 1, ""),
    "errors full": ("plot nothing 2>/dev/full", "", 2, ""),
}


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(("words", "unbuffered", "status", "error"), PROCESSES.values(), ids=PROCESSES)
def test_a_process_ends_without_a_traceback(words: str, unbuffered: str, status: int, error: str) -> None:
    command = f"{sys.executable} -c '{RUN}' {words}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (found.returncode, found.stderr) == (status, error)


def test_errors_of_other_files_are_not_taken_for_those_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(arguments: object) -> int:
        raise OSError(28, "No space left on device", "elsewhere")

    monkeypatch.setattr("numba_lamb.cli.info.run", fails)
    with pytest.raises(OSError, match="elsewhere"):
        main(["info"])
