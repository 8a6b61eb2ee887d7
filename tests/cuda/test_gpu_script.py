"""The measurement on a GPU, run on the double of a driver: its sections, its arithmetic, its files."""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import Gpu, fresh_gpu
from tests.cuda.gpu_arrays import NO_GPU

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

ROOT = Path(__file__).parents[2]
SHAPES = [(5,), (2, 65)]
MACHINE = {
    "device": {
        "name": "a GPU",
        "capability": [9, 0],
        "multiprocessors": 1,
        "memory_bytes": 2**30,
        "driver": "580.0",
    },
    "versions": {"numpy": "2.0"},
}


class Script:
    """The files of the measurement, which are no package."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
        self.main = importlib.import_module("gpu")
        self.sections = importlib.import_module("gpu_sections")
        self.report = importlib.import_module("gpu_report")


def test_the_table_of_memory_is_that_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
    row = importlib.import_module("cuda_memory").row("200-tiny", "momentum")
    assert row in (ROOT / "docs/benchmarks/cuda.md").read_text().splitlines()


@pytest.fixture(name="script")
def script_fixture(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


class Lab:
    """The double of a GPU instead of PyTorch's; everything takes 1 microsecond more than the last time."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.clock = 0.0
        self.taken: list[str] = []

    def arrays(self, shapes: Sequence[tuple[int, ...]], seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        return [self.gpu.array(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]

    def copies(self, arrays: Sequence[Any]) -> list[Any]:
        return [self.gpu.array(array.get()) for array in arrays]

    def stream(self) -> int:
        return 0

    def finish(self) -> None:
        self.gpu.driver.progress()

    def free(self) -> None:
        pass

    def seconds(self, step: Callable[[], object], steps: int) -> float:
        step()
        self.clock += 1e-6
        return self.clock

    def seconds_of_each(self, steps: Sequence[Callable[[], object]]) -> list[float]:
        return [self.seconds(step, 1) for step in steps]

    def copy(self) -> tuple[Callable[[], object], int]:
        return lambda: None, 1000

    sweep = copy

    def peers(self, shapes: Any, gradients: Any) -> dict[str, Any]:
        def broken() -> Any:
            raise ImportError("no such peer")

        return {"adamw-fused": (lambda: lambda: None, 28), "broken": (broken, 52)}

    def graph(self, step: Callable[[], object]) -> Callable[[], object]:
        step()
        return lambda: None


@pytest.fixture(name="lab")
def lab_fixture(script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    usual = script.sections.OURS
    monkeypatch.setattr(script.sections, "OURS", {name: usual[name] for name in ("lamb", "lamb-checked")})
    monkeypatch.setattr(script.sections, "ROUNDS", 2)
    monkeypatch.setattr(script.sections, "HOST_STEPS", 1)
    with fresh_gpu() as gpu:
        yield Lab(gpu)


def test_every_section_that_measures_runs(script: Script, lab: Lab, tmp_path: Path) -> None:
    one = script.sections
    sections = {
        "bandwidth": lambda: one.bandwidth(lab),
        "steps 200-tiny": lambda: one.steps(lab, SHAPES),
        "kernels 200-tiny": lambda: one.kernels(lab, SHAPES),
        "host 200-tiny": lambda: one.host(lab, SHAPES, fresh=True),
        "graph 200-tiny": lambda: one.graph(lab, SHAPES),
    }
    out = tmp_path / "results.json"
    assert script.main.run(sections, MACHINE, out) == 0
    found = json.loads(out.read_text())
    assert found["failed"] == {}
    assert list(found["sections"]) == list(sections)
    steps = found["sections"]["steps 200-tiny"]
    assert [row["name"] for row in steps["rows"]] == ["lamb", "lamb-checked", "adamw-fused"]
    assert steps["failed"] == {"broken": "ImportError: no such peer"}
    assert (steps["parameters"], steps["tensors"]) == (135, 2)
    kernels = found["sections"]["kernels 200-tiny"]["us"]
    assert list(kernels["lamb"]) == ["open_step", "lamb_advance", "lamb_ratio", "lamb_descend"]
    assert set(found["sections"]["host 200-tiny"]["host"]["lamb"]) == {"reused_us", "fresh_us"}
    assert len(found["targets"]) == 3


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


def test_sections_are_named_after_profiles_and_measure_all_that_is_aimed_at(script: Script) -> None:
    names = list(script.sections.sections_of(None, ROOT))
    assert names[:2] == ["tests", "bandwidth"]
    assert {f"steps {name}" for name in script.sections.MEASURED} <= set(names)
    for name in ("steps bert-large", "steps resnet-50", "steps 200-tiny", "host 200-tiny", "graph 200-tiny"):
        assert name in names


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
    found = script.sections.take_turns(Clock(), turns)
    assert order == ["a3", "a3", "b3", "b3", "a15", "b15", "b15", "a15"]
    assert found == {"a": [1e-3, 1e-3], "b": [1e-3, 1e-3]}


def test_what_fails_leaves_the_rest(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Any:
        raise MemoryError("too large")

    out = tmp_path / "results.json"
    bandwidth = {"gb_per_s": {"copy": [1.0, 1.0, 1.0]}}
    assert script.main.run({"steps": broken, "bandwidth": lambda: bandwidth}, MACHINE, out) == 1
    found = json.loads(out.read_text())
    assert found["failed"] == {"steps": "MemoryError: too large"}
    assert found["sections"] == {"bandwidth": bandwidth}
    assert "gb_per_s copy : 1.00 (1.00 to 1.00)" in capsys.readouterr().out


def test_a_failing_test_shows_in_the_exit_code(script: Script, tmp_path: Path) -> None:
    tests = {"exit_code": 1, "summary": "1 failed", "not_passed": ["FAILED x"], "tail": "text"}
    assert script.main.run({"tests": lambda: tests}, MACHINE, tmp_path / "results.json") == 1


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


def test_without_a_gpu_it_says_so(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert script.main.main(["--out", str(tmp_path / "results.json")]) == 2
    assert capsys.readouterr().err == "nothing was measured: PyTorch sees no GPU\n"
    assert not (tmp_path / "results.json").exists()


def test_the_tests_section_runs_pytest(script: Script) -> None:
    if NO_GPU is None:
        pytest.skip("there is a GPU, on which those tests take minutes")
    found = script.sections.tests(ROOT)
    assert found["exit_code"] in (0, 5)
    assert "passed" in found["summary"] or "skipped" in found["summary"]
