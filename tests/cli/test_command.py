"""The command itself: its help, its version, and lines that fit a terminal; and optimizers in words."""

import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.cli import info, main, output
from numba_lamb.cli.bench import report
from numba_lamb.cli.bench.summary import Row, Spread
from numba_lamb.engine.cpu import calibration
from tests.cuda.double import Gpu


@pytest.mark.slow
def test_python_m_runs_the_command() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "numba_lamb", "--version"], capture_output=True, text=True, env=os.environ
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, f"numba-lamb {nl.__version__}\n", "")


def test_without_words_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: numba-lamb [-h] [--version] command ...")
    assert err == ""


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["plot", "-h"],
        ["bench", "-h"],
        ["train", "-h"],
        ["variants", "-h"],
        ["info", "-h"],
        ["verify", "-h"],
    ],
)
def test_help_breaks_no_word(
    words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    unbroken = help_of(words, capsys)
    monkeypatch.setenv("COLUMNS", str(columns))
    found = help_of(words, capsys)
    assert max(map(len, found.splitlines())) <= columns
    assert found.split() == unbroken.split()


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with suppress(SystemExit):
        main(words)
    return capsys.readouterr().out


def test_info_and_errors_break_no_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"versions": {"numba": "0.68"}, "gpu": {"because": "a-hyphen " * 30, "path": "/x" * 60}}
    text = info.describe(found, 80)
    assert text.split() == info.describe(found).split()
    assert all(len(line) <= 80 or line.split() == ["/x" * 60] for line in text.splitlines())
    folder = "/a/path/" + "x" * 60
    assert info.describe({"gpu": {"a long name of it": folder}}, 80).splitlines()[1:] == [
        "  a long name of it",
        f"    {folder}",
    ]
    monkeypatch.setenv("COLUMNS", "80")
    assert output.fail("numba-lamb plot", "a long line " * 20) == 2
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).split() == ["numba-lamb", "plot:", *["a", "long", "line"] * 20]


def test_wrong_arguments_break_no_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main(["formulas"])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "numba-lamb: error: argument command: invalid choice: 'formulas' (choose from" in text


def test_the_table_of_bench_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    title = "torch SGD + momentum, fused 2.13.0+cpu"
    spread = Spread(1234.0, 1200.0, 1300.0)
    row = Row("p", "sgd-fused", title, "", title, 3, spread, 20, spread, spread)
    monkeypatch.setenv("COLUMNS", "80")
    report.print_table("title", [row])
    found = capsys.readouterr().out
    assert max(map(len, found.splitlines())) <= 80
    assert set(title.split()) <= set(found.split())


@pytest.mark.slow
def test_what_others_are_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_PARTNERS", ("numpy", "no-such-package"))
    found = info.collect()
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["no-such-package"] == "not installed"
    assert found["cpu"]["prefetch_bytes"] == calibration.usual().distance


@pytest.mark.parametrize(
    ("asked", "quota", "reason"),
    [(1, None, "OMP_NUM_THREADS is 1, fewer"), (None, 1, "the container's CPU quota is that of 1, fewer")],
)
def test_the_choice_of_threads_has_a_reason(
    asked: Any, quota: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "thread_count": lambda threads: 1,
        "usable_cpus": lambda: 4,
        "thread_limit": lambda: 4,
        "omp_num_threads": lambda: asked,
        "cpu_quota": lambda: quota,
    }.items():
        monkeypatch.setattr(info, name, value)
    assert info._threads()["because"].startswith(reason)


# Optimizers in words ----------------------------------------------------------------------------------


def test_an_optimizer_in_words() -> None:
    groups = [
        {"params": {"a": np.ones((20, 100)), "b": np.ones(3)}, "lr": np.ones(30)},
        {"params": {"c": np.ones(3)}, "weight_decay": 0.5},
    ]
    opt = nl.Lars(nl.Momentum(groups, nl.schedules.WarmUpLR(0.1, 5), 0.9))
    opt.step([np.ones((20, 100)), np.ones(3), None])
    opt.weight_norm_bounds = (0.0, 10.0)
    kind, loss_scale, *told, steps, end = repr(opt).splitlines()
    assert (kind, loss_scale, steps, end) == ("Lars (", "loss_scale: 1.0", "steps: 1", ")")
    second = told.index("Parameter Group 1")
    assert told[0] == "Parameter Group 0"
    assert told[1:second] == sorted(told[1:second])
    own = [line for line in told[1:second] if line not in told[second:]]
    assert own == [
        "    layers: 2 with 2,003 elements",
        "    lr: float64 array of 30 values",
        "    weight_decay: 0.0",
    ]
    own = [line for line in told[second + 1 :] if line not in told[1:second]]
    assert own == [
        "    layers: 1 with 3 elements",
        "    lr: WarmUpLR(learning_rate=0.1, warmup_steps=5)",
        "    weight_decay: 0.5",
    ]
    shared = {"    variant: mindspore", "    momentum: 0.9", "    weight_norm_bounds: (0.0, 10.0)"}
    assert shared <= {*told[1:second]} & {*told[second:]}


def test_rates_of_other_kinds_in_words() -> None:
    opt = nl.Lamb([np.ones(2)], lambda step: 0.1, weight_decay=[0.1, 0.2])
    assert f"    lr: {__name__}.test_rates_of_other_kinds_in_words.<locals>.<lambda>" in repr(opt)
    assert "    weight_decay: list of 2 values" in repr(opt)


def test_an_optimizer_on_a_gpu_in_words_waits_for_nothing(gpu: Gpu) -> None:
    opt = nl.Momentum(gpu.arrays({"w": np.ones(2)}), gpu.array(np.float64(0.1)), 0.9)
    opt.step(gpu.arrays({"w": np.ones(2)}))
    before = gpu.driver.waits
    told = repr(opt)
    assert gpu.driver.waits == before
    assert "    lr: a value on the GPU\n" in told
    assert told.endswith("steps: counted on the GPU\n)")
