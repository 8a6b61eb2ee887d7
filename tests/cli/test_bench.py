"""`numba-lamb bench`: turns, ratios, what is written, and that a failing competitor costs only itself."""

import argparse
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from numba_lamb.cli import bench
from numba_lamb.cli.bench import figure, machine, report, rounds, subjects, trust, worker
from numba_lamb.cli.bench.competitors import ADAMW, COMPETITORS, SWEEP, Competitor, present
from numba_lamb.cli.bench.fleet import Worker, WorkerError, worker_command, worker_environment
from numba_lamb.cli.bench.profiles import PROFILES, parameter_count
from numba_lamb.cli.bench.rounds import Measurement, batches, play_rounds
from numba_lamb.cli.bench.summary import Row, spread, summarize

JSON_ROW = {
    "profile", "name", "label", "version", "rounds", "median_ms", "low_ms", "high_ms", "ratio_to_fused_adamw",
    "ratio_low", "ratio_high", "bytes_per_param", "floor_fraction", "floor_low", "floor_high",
}  # fmt: skip
times = st.floats(1e-6, 1e3)


def run_bench(*words: str, competitors: dict[str, Competitor] = COMPETITORS) -> int:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return bench.run(parser.parse_args(["bench", *words]), competitors)


class Scripted:
    """Stands for a worker: notes its turns, and fails at one of them."""

    def __init__(self, name: str, log: list[str], usual: float, fails_at: int | None = None) -> None:
        self.name, self.log, self.usual, self.fails_at = name, log, usual, fails_at
        self.requests: list[dict[str, Any]] = []

    def ask(self, **request: Any) -> dict[str, Any]:
        self.log.append(self.name)
        self.requests.append(request)
        if self.fails_at == len(self.requests):
            raise WorkerError("went away")
        return {"step_s": self.usual}


# -- profiles and competitors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "count"),
    [
        ("bert-base", 109_482_240),
        ("bert-large", 335_141_888),
        ("resnet-50", 25_557_032),
        ("200-tiny", 416_000),
        ("one-100M", 100_000_000),
    ],
)
def test_profiles_are_the_models(profile: str, count: int) -> None:
    assert parameter_count(PROFILES[profile]) == count


def test_every_maker_exists_and_nothing_absent_takes_part() -> None:
    for one in COMPETITORS.values():
        module, function = one.maker.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))
    absent = Competitor("absent", "", "nowhere:nothing", 1, needs=("no_such_module_anywhere",))
    assert present([absent, COMPETITORS["lamb"]]) == [COMPETITORS["lamb"]]


# -- rounds --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(rounds, "WARM_SECONDS", 0.0)


def test_turns_go_round_and_every_other_round_runs_backwards() -> None:
    log: list[str] = []
    workers = {name: Scripted(name, log, usual) for name, usual in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    measurement, shown = Measurement(), []
    play_rounds(workers, 3, measurement, shown.append)
    assert "".join(log) == "".join(shown) == "abc" + "abc" + "cba" + "abc"
    assert measurement.rounds == [{"a": 1.0, "b": 2.0, "c": 3.0}] * 3
    assert not measurement.left_out


def test_short_steps_are_taken_many_at_a_time() -> None:
    workers = {"long": Scripted("long", [], 1.0), "short": Scripted("short", [], rounds.TURN_SECONDS / 40)}
    play_rounds(workers, 1, Measurement(), lambda name: None)
    assert workers["long"].requests == [{"warm": 0.0}, {"steps": 1}]
    assert workers["short"].requests == [{"warm": 0.0}, {"steps": 40}]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_who_fails_is_left_out_with_all_it_did(fails_at: int) -> None:
    workers = {"a": Scripted("a", [], 1.0), "b": Scripted("b", [], 2.0, fails_at)}
    measurement = Measurement()
    play_rounds(workers, 3, measurement, lambda name: None)
    assert measurement.rounds == [{"a": 1.0}] * 3
    assert measurement.left_out == {"b": "went away"}
    assert len(workers["b"].requests) == fails_at


def competitor(name: str, resident: float = 16.0, transient: float = 0.0) -> Competitor:
    return Competitor(name, name, "nowhere:nothing", 40, resident, transient)


def test_batches_fit_into_memory_and_hold_the_yardsticks() -> None:
    a, b, c, adamw, sweep = (competitor(name) for name in ("a", "b", "c", ADAMW, SWEEP))
    everyone, count = [a, b, c, adamw, sweep], 10**9
    assert batches(everyone, count, None) == ([[adamw, sweep, a, b, c]], [])
    assert batches(everyone, count, 75e9) == ([[adamw, sweep, a, b], [adamw, sweep, c]], [])
    assert batches(everyone, count, 60e9) == ([[adamw, sweep, one] for one in (a, b, c)], [])
    assert batches([adamw, sweep], count, 60e9) == ([[adamw, sweep]], [])
    assert batches(everyone, count, 40e9) == ([[adamw, sweep]], [a, b, c])
    found, too_large = batches(everyone, count, 30e9)
    assert not found
    assert {one.name for one in too_large} == {one.name for one in everyone}


def test_what_a_step_needs_for_a_moment_counts_once() -> None:
    adamw, hungry, other = competitor(ADAMW), competitor("hungry", transient=30), competitor("other")
    assert batches([adamw, other, hungry], 10**9, 60e9) == ([[adamw, other]], [hungry])
    assert len(batches([adamw, other, hungry], 10**9, 80e9)[0]) == 2
    assert len(batches([adamw, other, hungry], 10**9, 100e9)[0]) == 1


# -- summary -------------------------------------------------------------------------------------------------


def test_ratios_are_formed_within_a_round() -> None:
    # The machine halves its speed in round 2: plain medians would say 1.5, and no round does.
    played = [
        {"lamb": 0.002, ADAMW: 0.001, SWEEP: 0.0006},
        {"lamb": 0.004, ADAMW: 0.002, SWEEP: 0.0012},
        {"lamb": 0.002, ADAMW: 0.001, SWEEP: 0.0006},
    ]
    lamb, adamw, sweep = summarize("200-tiny", Measurement(played, {"lamb": "1.2"}))
    assert (lamb.name, lamb.version, lamb.rounds, lamb.ms.median) == ("lamb", "1.2", 3, 2.0)
    assert lamb.ratio_to_fused_adamw == spread([2.0])
    assert lamb.floor_fraction is not None
    assert lamb.floor_fraction.median == pytest.approx(0.6 * 40 / 24 / 2)
    assert adamw.ratio_to_fused_adamw == spread([1.0])
    assert sweep.floor_fraction == spread([1.0])


@given(st.lists(st.tuples(times, times, times), min_size=1, max_size=9), st.floats(0.01, 100.0))
def test_drift_that_hits_all_alike_changes_no_ratio(drawn: list[tuple[float, ...]], drift: float) -> None:
    names = ("lamb", ADAMW, SWEEP)
    still = [dict(zip(names, one, strict=True)) for one in drawn]
    drifting = [{name: value * drift**k for name, value in one.items()} for k, one in enumerate(still)]
    for before, after in zip(
        summarize("p", Measurement(still)), summarize("p", Measurement(drifting)), strict=True
    ):
        assert before.ratio_to_fused_adamw is not None
        assert after.ratio_to_fused_adamw is not None
        assert after.ratio_to_fused_adamw.median == pytest.approx(before.ratio_to_fused_adamw.median)
        assert before.floor_fraction is not None
        assert after.floor_fraction is not None
        assert after.floor_fraction.high == pytest.approx(before.floor_fraction.high)


@given(st.lists(times, min_size=1))
def test_spreads_are_ordered(values: list[float]) -> None:
    found = spread(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values) * (1 + 1e-12)


def test_without_yardsticks_ratios_are_blank() -> None:
    (row,) = summarize("200-tiny", Measurement([{"lamb": 0.001}]))
    assert row.ratio_to_fused_adamw is None
    assert row.as_json()["floor_fraction"] is None
    assert report.cells(row) == ('Lamb, "propagate"', "1", "1 to 1", "-", "40", "-")


def test_the_table_is_aligned() -> None:
    rows = summarize("p", Measurement([{"lamb": 0.001, ADAMW: 0.1, SWEEP: 0.01}], {ADAMW: "2.13"}))
    lines = report.text_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[3].startswith("torch AdamW, fused, float32 2.13 ")


# -- workers -------------------------------------------------------------------------------------------------


def spoken(code: str) -> Worker:
    return Worker([sys.executable, "-c", code], os.environ)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import sys; print('no such thing', file=sys.stderr); sys.exit(3)",
            "ended with exit code 3: no such thing",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "was ended by SIGTERM"),
        ("print('hello')", "unexpected output 'hello'"),
        ("""print('{"error": "ImportError: two\\\\nlines"}')""", "ImportError: two lines"),
    ],
)
def test_a_worker_that_fails_says_why_in_one_line(code: str, reason: str) -> None:
    with spoken(code) as one, pytest.raises(WorkerError) as caught:
        one.answer()
    assert str(caught.value) == reason


def test_a_worker_that_died_between_turns_is_noticed() -> None:
    with spoken("print('{}', flush=True)") as one:
        assert one.answer() == {}
        one._process.wait()
        with pytest.raises(WorkerError, match="ended with exit code 0"):
            one.ask(steps=1)


def test_no_worker_outlives_the_command() -> None:
    one = spoken("import time; print('{}', flush=True); time.sleep(600)")
    assert one.answer() == {}
    with pytest.raises(KeyboardInterrupt), one:
        raise KeyboardInterrupt
    assert one._process.poll() is not None


def test_the_environment_sets_threads_and_no_policy_of_the_users() -> None:
    found = worker_environment(3, {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "8", "HOME": "h"})
    assert {found[name] for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC")} == {"3"}
    assert "OMP_WAIT_POLICY" not in found
    assert found["HOME"] == "h"


@pytest.mark.slow
def test_a_worker_answers_and_keeps_what_libraries_print_apart() -> None:
    environment = worker_environment(1, os.environ)
    with Worker(worker_command("lamb-fresh", "200-tiny", 1), environment) as one:
        assert one.answer()["ready"]
        assert one.ask(warm=0.0)["step_s"] > 0
        assert one.ask(steps=3)["step_s"] > 0
    done = subprocess.run(
        worker_command("no-such", "200-tiny", 1), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"error": "KeyError: 'no-such'"}


def test_steps_are_timed_without_their_preparation() -> None:
    calls: list[str] = []
    subject = subjects.Subject(lambda: calls.append("s"), "1", lambda: calls.append("p"))
    assert worker.timed(subject, 3) >= 0
    assert "".join(calls) == "psps" + "ps"


def test_a_step_that_fails_ends_the_serving() -> None:
    def step() -> None:
        raise RuntimeError("no\nmore")

    out = io.StringIO()
    assert worker.serve(subjects.Subject(step, "1"), ['{"warm": 0}'], out) == 1
    assert json.loads(out.getvalue()) == {"error": "RuntimeError: no\nmore"}


# -- the command ---------------------------------------------------------------------------------------------

CORE = {name: COMPETITORS[name] for name in ("lamb", "momentum", SWEEP)}


@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    broken = Competitor("broken", "broken", "nowhere:nothing", 1)
    competitors = {**CORE, "broken": broken}
    words = ["--profiles", "200-tiny", "--rounds", "3", "--threads", "1"]
    files = ["--json", str(tmp_path / "b.json"), "--chart", str(tmp_path / "b.svg")]
    assert run_bench(*words, *files, competitors=competitors) == 0
    output, errors = capsys.readouterr()
    assert 'Lamb, "propagate"' in output
    assert "Traceback" not in errors
    assert "200-tiny: left out broken: KeyError: 'broken'" in errors.splitlines()
    found = json.loads((tmp_path / "b.json").read_text())
    assert set(found) == {
        "format_version", "date", "machine", "versions", "threads", "dtype", "rounds", "rows", "left_out",
    }  # fmt: skip
    assert found["left_out"] == [{"profile": "200-tiny", "name": "broken", "reason": "KeyError: 'broken'"}]
    assert [row["name"] for row in found["rows"]] == list(CORE)
    for row in found["rows"]:
        assert set(row) == JSON_ROW
        assert row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["rounds"] == 3
        assert row["ratio_to_fused_adamw"] is None
        assert row["floor_fraction"] > 0
    assert found["machine"]["usable_cpus"] == machine.usable_cpus()
    assert found["versions"]["numba"]
    assert (tmp_path / "b.svg").read_text().count("<svg") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "b.svg"]


def test_a_profile_that_memory_does_not_hold_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "available_memory", lambda: 1e9)
    assert run_bench("--profiles", "bert-base", competitors=CORE) == 2
    errors = capsys.readouterr().err.splitlines()
    assert (
        "bert-base: left out lamb: needs 1.8 GB beside the yardsticks, and 1.0 GB are free in all" in errors
    )
    assert errors[-1] == "numba-lamb bench: nothing could be measured"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "100000"], "--threads must be at most"),
        (["--json", "no/such/folder/b.json"], "there is no folder 'no/such/folder'"),
        (["--json", "."], "'.' is a folder"),
        (["--chart", "b.txt"], "--chart must end in .png or .svg"),
    ],
)
def test_what_the_caller_must_mend_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(*words, competitors=CORE) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("words", [["--profiles", "bert"], ["--only", "adam"], ["--rounds", "0"]])
def test_wrong_names_and_counts_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_bench(*words)
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_only_what_is_not_installed_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    absent = {"absent": Competitor("absent", "", "nowhere:nothing", 1, needs=("no_such_module_anywhere",))}
    assert run_bench(competitors=absent) == 2
    assert "none of these is installed: absent" in capsys.readouterr().err


def test_the_chart_needs_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_bench("--chart", "b.png", competitors=CORE) == 2
    assert "pip install -e '.[demo]'" in capsys.readouterr().err


def test_a_chart_replaces_the_file_whole_or_not_at_all(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = summarize("p", Measurement([{"lamb": 0.001, ADAMW: 0.1, SWEEP: 0.01}]))
    with pytest.raises(OSError, match="no"):
        figure.draw({"p": rows}, tmp_path / "no" / "b.png")
    figure.draw({"p": rows, "q": rows[:1]}, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_who_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = ("numpy", "no_such_module", "nor_this")
    others = {"x": Competitor("x", "their Lamb", "nowhere:nothing", 1, needs=needs)}
    monkeypatch.setattr(bench, "run_profile", lambda *arguments: (summarized(0.01), Measurement()))
    assert run_bench("--profiles", "200-tiny", competitors={**CORE, **others}) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not measured")]
    assert line == "not measured: their Lamb, for which no_such_module, nor_this would have to be installed"


def summarized(*seconds: float) -> list[Row]:
    return summarize("p", Measurement([{"lamb": 0.001, SWEEP: one} for one in seconds]))


@pytest.mark.parametrize(("load", "threads", "busy"), [(0.2, 4, False), (1.0, 4, True), (1.0, 3, False)])
def test_a_busy_machine_is_told_before(
    load: float, threads: int, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "usable_cpus", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    told = trust.load_warning(threads)
    assert (told is not None) == busy
    if told:
        assert told.startswith("the machine is busy: a load of 1.00 on 4 CPUs leaves fewer than 4 free")


def test_a_busy_machine_is_told_after() -> None:
    assert trust.spread_warning("p", summarized(1.0, 1.0, 1.1, 1.1)) is None
    told = trust.spread_warning("p", summarized(1.0, 1.0, 1.4, 1.4))
    assert told == (
        "p: the machine was busy: the middle half of memory sweep a = c*a + b spans 33% of its median, and 15% is "
        "the most; measure again"
    )
    assert trust.spread_warning("p", []) is None


def test_a_row_comes_back_from_json() -> None:
    rows = summarize("p", Measurement([{"timm": 0.002, ADAMW: 0.1}], {"timm": "1.0"}))
    assert [Row.from_json(row.as_json()) for row in rows] == rows


def test_the_chart_says_what_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = summarize("p", Measurement([{"lamb": 0.001, "timm": 0.004, ADAMW: 0.1, SWEEP: 0.01}] * 3))
    figure.draw({"p: 3 parameters": rows, "q": rows[:1]}, tmp_path / "b.svg", "Some CPU")
    drawn = (tmp_path / "b.svg").read_text()
    for text in (
        "Time of one optimizer step, shorter is faster",
        "Some CPU",
        "time of a step in ms, median of 3 rounds",
        "(line: middle half; x: times fused AdamW)",
        "numba-lamb",
        "LAMB of other packages",
        "3 parameters",
    ):
        assert f"<!-- {text} -->" in drawn
    figure.draw(dict.fromkeys("abc", rows * 4), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.height <= 700


# -- the machine ---------------------------------------------------------------------------------------------


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.available_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000 kB\n")
    assert machine.available_memory() == 8000 * 1024
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert machine.available_memory() == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory() == 8000 * 1024
