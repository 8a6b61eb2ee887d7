"""The measurement on a GPU, run on the double of a driver: its sections, arithmetic, processes and files."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda import gpu_script_double
from tests.cuda.double import fresh_gpu
from tests.cuda.gpu_arrays import NO_GPU
from tests.cuda.gpu_script_double import SHAPES, Lab

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

ROOT = Path(__file__).parents[2]


class Script:
    """The files of the measurement, which are no package."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
        self.main = importlib.import_module("gpu")
        self.sections = importlib.import_module("gpu_sections")
        self.contact = importlib.import_module("gpu_contact")
        self.cubins = importlib.import_module("gpu_cubins")
        self.report = importlib.import_module("gpu_report")


def test_the_table_of_memory_is_that_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
    row = importlib.import_module("cuda_memory").row("200-tiny", "momentum")
    assert row in (ROOT / "docs/benchmarks/cuda.md").read_text().splitlines()


@pytest.fixture(name="script")
def script_fixture(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


@pytest.fixture(name="lab")
def lab_fixture(script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    usual = script.sections.OURS
    monkeypatch.setattr(script.sections, "OURS", {name: usual[name] for name in ("lamb", "lamb-checked")})
    monkeypatch.setattr(script.sections, "ROUNDS", 2)
    monkeypatch.setattr(script.sections, "HOST_STEPS", 1)
    with fresh_gpu() as gpu:
        lab = Lab(gpu)
        monkeypatch.setattr(script.sections, "new_lab", lambda: lab)
        yield lab


# -- sections ------------------------------------------------------------------------------------------------


def test_every_section_that_measures_runs(script: Script, lab: Lab) -> None:
    one = script.sections
    sections = {
        "bandwidth": list(one.bandwidth()),
        "steps 200-tiny": list(one.steps(SHAPES)),
        "kernels 200-tiny": list(one.kernels(SHAPES)),
        "host 200-tiny": list(one.host(SHAPES, fresh=True)),
        "graph 200-tiny": list(one.graph(SHAPES)),
        "workload": list(one.workload(SHAPES)),
    }
    assert {name: len(found) for name, found in sections.items()} == dict.fromkeys(sections, 2)
    last: dict[str, Any] = {name: found[-1] for name, found in sections.items()}
    steps = last["steps 200-tiny"]
    assert [row["name"] for row in steps["rows"]] == ["lamb", "lamb-checked", "adamw-fused"]
    assert steps["failed"] == {"broken": "ImportError: no such peer"}
    assert (steps["parameters"], steps["tensors"]) == (135, 2)
    kernels = last["kernels 200-tiny"]["us"]
    assert list(kernels["lamb"]) == ["open_step", "lamb_advance", "lamb_ratio", "lamb_descend"]
    assert set(last["host 200-tiny"]["host"]["lamb"]) == {"reused_us", "fresh_us"}
    assert len(script.report.targets(last)) == 3
    for name, found in last.items():
        assert name in script.report.text_of(name, found)


def test_first_questions_are_asked(script: Script, lab: Lab) -> None:
    contact = script.contact
    *_, bits = contact.bits()
    assert bits == {"the same bits": ["lamb", "lamb-clipped"]}
    (compiled,) = contact.compiling()
    assert compiled["lamb_advance"]["bytes"] > 1000
    first, there_is = contact.what_there_is()
    assert "device" not in first
    assert (there_is["device"]["capability"], there_is["device"]["multiprocessors"]) == ([9, 0], 132)
    assert set(there_is["compilers"]) == {"nvvm", "nvJitLink"}
    assert "capability 9.0" in script.report.text_of("versions", there_is)
    *_, found = contact.waiting_in_a_capture()
    assert found["in a capture"]["nothing"] == ["capture ends with CUDA_SUCCESS"]
    assert found["in a capture"]["cuCtxSynchronize"] == [
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "capture ends with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
    ]


def test_tools_run_a_section_and_what_is_not_there_is_told(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "compute-sanitizer").write_text('#!/bin/sh\necho "$@"\nexit 9\n')
    (tmp_path / "compute-sanitizer").chmod(0o700)
    monkeypatch.setattr(script.contact, "find_tool", lambda name: None)
    assert list(script.contact.profiled()) == [{"left_out": "ncu is not installed"}]
    monkeypatch.setattr(script.contact, "find_tool", lambda name: str(tmp_path / name))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--section", "memcheck", "--out", "a.json", "--cubins", "c"])
    (found,) = script.contact.checked_by("memcheck")
    assert found["exit_code"] == 9
    assert "--tool memcheck --error-exitcode 9 " in found["summary"]
    assert " gpu.py --cubins c --section bits --out " in found["summary"]


def test_the_tests_section_runs_pytest(script: Script) -> None:
    if NO_GPU is None:
        pytest.skip("there is a GPU, on which those tests take minutes")
    (found,) = script.contact.gpu_tests()
    assert found["exit_code"] == 0
    assert "passed" in found["summary"] or "skipped" in found["summary"]


def test_all_of_ours_step_as_they_are_called(script: Script) -> None:
    """With the bytes that the CPU's competitors have for them."""
    params = [np.ones(3, np.float32)]
    made = {name: make(params) for name, (_, make) in script.sections.OURS.items()}
    assert [type(one) for one in made.values()] == [nl.Lamb, nl.Lamb, nl.Lamb, nl.Lars, nl.Momentum]
    assert made["lamb-clipped"].max_grad_norm == 1.0
    competitors = importlib.import_module("numba_lamb.cli.bench.competitors").COMPETITORS
    for name, (count, _) in script.sections.OURS.items():
        if name in competitors:
            assert count == competitors[name].bytes_per_param


def test_sections_measure_all_that_is_aimed_at_and_first_contact_comes_first(script: Script) -> None:
    names = list(script.sections.SECTIONS)
    contact = ["versions", "bits", "compiling", "waiting in a capture", "memcheck", "racecheck", "tests"]
    assert names[: len(contact)] == contact
    for name in ("steps bert-large", "steps resnet-50", "steps 200-tiny", "host 200-tiny", "graph 200-tiny"):
        assert name in names
    assert script.main.DEADLINE < 600


def test_ratios_are_formed_within_rounds(script: Script) -> None:
    samples = {"copy": [1.0, 2.0, 4.0], "lamb": [4.0, 8.0, 16.0], "adamw-fused": [2.0, 4.0, 8.0]}
    lamb, adamw = script.sections.rows_of(samples, {"lamb": 40, "adamw-fused": 28}, 10, 200)
    assert lamb["us"] == [8e6, 6e6, 12e6]
    assert lamb["ratio_to_fused_adamw"] == [2.0, 2.0, 2.0]
    # 400 bytes in four times what 200 bytes take: half the bandwidth.
    assert lamb["share_of_copy"] == [0.5, 0.5, 0.5]
    assert lamb["gb_per_s"] == pytest.approx(400 / 8 * 1e-9)
    assert adamw["ratio_to_fused_adamw"] == [1.0, 1.0, 1.0]
    (alone,) = script.sections.rows_of({"copy": [1.0], "lamb": [4.0]}, {"lamb": 40}, 10, 200)
    assert alone["ratio_to_fused_adamw"] is None


def test_a_turn_runs_there_and_back(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Clock:
        def seconds(self, step: Callable[[], object], steps: int) -> float:
            order.append(f"{step()}{steps}")
            return 1e-3

    monkeypatch.setattr(script.sections, "ROUNDS", 2)
    turns: dict[str, Callable[[], object]] = {"a": lambda: "a", "b": lambda: "b"}
    *_, found = script.sections.take_turns(Clock(), turns)
    assert order == ["a3", "a3", "b3", "b3", "a15", "b15", "b15", "a15"]
    assert found == {"a": [1e-3, 1e-3], "b": [1e-3, 1e-3]}


def test_targets_say_what_was_found(script: Script) -> None:
    row = {
        "name": "lamb",
        "us": [3000.0, 2900.0, 3100.0],
        "bytes_per_param": 40,
        "gb_per_s": 4400.0,
        "share_of_copy": [0.91, 0.9, 0.92],
        "ratio_to_fused_adamw": [1.6, 1.5, 1.7],
    }
    section = {"rows": [row], "at_52_bytes_us": 3660.0, "parameters": 335, "failed": {}}
    found = script.report.targets({"steps bert-large": section})
    assert [(one["found"], one["met"]) for one in found] == [(0.91, True), (1.6, False), (1.22, True)]
    table = script.report.text_of("steps bert-large", section)
    assert table.splitlines()[3].split() == ["lamb", "3000.0", "40", "4400", "0.91", "1.60"]
    assert "NO" in script.report.text_of("targets", {"targets": found})


# -- processes -----------------------------------------------------------------------------------------------


@pytest.fixture(name="paths")
def paths_for_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def test_sections_run_in_processes_of_their_own(script: Script, paths: None, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = (sys.executable, gpu_script_double.__file__)
    assert script.main.run({"versions": 100, "steps 200-tiny": 100}, command, out, 200) == 0
    found = json.loads(out.read_text())
    assert found["failed"] == {}
    assert found["device"] == found["sections"]["versions"]["device"]
    assert len(found["targets"]) == 1


GOES_WRONG = """
import os, sys, time
section, out = sys.argv[2], sys.argv[4]
if section != "crashes":
    open(out, "w").write('{"us": {"lamb": {"first": [1.0, 1.0, 1.0]}}}')
print("this is printed", flush=True)
if section == "hangs":
    time.sleep(600)
if section == "crashes":
    os.abort()
"""


def test_it_runs_to_its_end_whatever_a_section_does(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found and printed before is kept."""
    monkeypatch.setattr(script.main, "LEAST", 1)
    out = tmp_path / "results.json"
    limits = {"hangs": 3.0, "crashes": 100.0, "works": 100.0, "has no time": 0.1}
    assert script.main.run(limits, [sys.executable, "-c", GOES_WRONG], out, 300) == 1
    found = json.loads(out.read_text())
    assert list(found["sections"]) == ["hangs", "works"]
    assert list(found["failed"]) == ["hangs", "crashes", "has no time"]
    assert found["failed"]["hangs"] == "stopped after 3 s\nthis is printed"
    assert found["failed"]["crashes"].startswith("exit code -6\nthis is printed")
    assert found["failed"]["has no time"] == "left out: no time was left for it"
    assert list(found["seconds"]) == list(limits)
    assert "lamb first: 1.00 (1.00 to 1.00)" in capsys.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".log", ".log", ".log"]


def test_no_section_begins_after_the_deadline(script: Script, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    assert script.main.run({"versions": 60, "bits": 60}, ["no such command"], out, 0.0) == 1
    assert set(json.loads(out.read_text())["failed"]) == {"versions", "bits"}


def test_a_failing_test_shows_in_the_exit_code(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"exit_code": 1, "summary": "1 failed", "not_passed": ["FAILED x"], "tail": "text"}
    monkeypatch.setattr(script.main, "process_of", lambda *_: (found, None))
    assert script.main.run({"tests": 60}, [], tmp_path / "results.json", 100) == 1


def test_machine_code_that_was_made_before_is_taken(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = script.cubins.build
    kernels = {kernel.__name__: kernel for kernel in script.cubins.KERNELS}
    some = {name: kernels[name] for name in ("lamb_ratio", "lamb_descend_stored")}
    monkeypatch.setattr(script.cubins, "KERNELS", [*some.values()])
    monkeypatch.setattr(build, "machine_code", lambda kernel, *_: kernel.__name__.encode())
    assert script.main.main(["--build", str(tmp_path / "cubins"), "--capability", "8.0"]) == 0
    assert len(list((tmp_path / "cubins").iterdir())) == 4
    monkeypatch.setattr(build, "machine_code", lambda *_: b"compiled")
    script.cubins.use(tmp_path / "cubins")
    float32 = np.dtype("float32")
    assert build.machine_code(some["lamb_ratio"], float32, (8, 0)) == b"lamb_ratio"
    assert build.machine_code(some["lamb_ratio"], float32, (9, 0)) == b"compiled"
    monkeypatch.setattr(script.cubins, "source_hash", lambda: "of other sources")
    assert build.machine_code(some["lamb_ratio"], float32, (8, 0)) == b"compiled"
