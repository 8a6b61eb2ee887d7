"""`numba-lamb train`: its baselines, its plan, its claim, and that an interrupted run loses nothing."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from numba_lamb import checkpoint
from numba_lamb.cli import main
from numba_lamb.cli.train import blas, data, model, plan, session, table
from numba_lamb.cli.train.baselines import Adam, MomentumSGD
from numba_lamb.cli.train.display import Display
from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.training import Training

pytestmark = pytest.mark.slow

TINY = ["train", "--quick", "--search", "--epochs", "2"]
RATES = [0.0, 0.1, 0.05, 0.02]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits():
    return data.load()


def interrupt_at(monkeypatch, epoch):
    """Send Ctrl-C while the given epoch, counted from the command's start, is being trained."""
    train_epoch, trained = Training.train_epoch, []

    def with_interrupt(training):
        trained.append(training.run)
        if len(trained) == epoch:
            signal.raise_signal(signal.SIGINT)
        train_epoch(training)

    monkeypatch.setattr(Training, "train_epoch", with_interrupt)


# -- baselines -------------------------------------------------------------------------------------------


def some_gradients(rng):
    return [{"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)} for _ in RATES]


def some_params(rng):
    return {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}


def test_momentum_sgd_is_the_sum_of_decayed_gradients(rng):
    params, gradients = some_params(rng), some_gradients(rng)
    expected = {name: array.copy() for name, array in params.items()}
    for name, array in expected.items():
        for step, rate in enumerate(RATES):
            array -= rate * sum(0.9 ** (step - k) * gradients[k][name] for k in range(step + 1))
    optimizer = MomentumSGD(params, RATES.__getitem__)
    for one in gradients:
        optimizer.step(one)
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-13, atol=1e-13)


def test_adam_is_the_ratio_of_weighted_means(rng):
    params, gradients = some_params(rng), some_gradients(rng)
    expected = {name: array.copy() for name, array in params.items()}
    for name, array in expected.items():
        for step, rate in enumerate(RATES):
            past = np.array([gradients[k][name] for k in range(step + 1)])
            ages = np.arange(step, -1, -1)
            first = np.average(past, axis=0, weights=0.9**ages)
            second = np.average(past**2, axis=0, weights=0.999**ages)
            array -= rate * first / (np.sqrt(second) + 1e-8)
    optimizer = Adam(params, RATES.__getitem__)
    for one in gradients:
        optimizer.step(one)
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["MomentumSGD", "Adam"])
def test_baselines_agree_with_torch(rng, name):
    torch = pytest.importorskip("torch")
    params, gradients = some_params(rng), some_gradients(rng)
    theirs = {key: torch.nn.Parameter(torch.tensor(array)) for key, array in params.items()}
    if name == "Adam":
        ours, peer = Adam(params, RATES.__getitem__), torch.optim.Adam(theirs.values(), lr=0.0)
    else:
        ours, peer = MomentumSGD(params, RATES.__getitem__), torch.optim.SGD(theirs.values(), momentum=0.9)
    for rate, one in zip(RATES, gradients, strict=True):
        ours.step(one)
        peer.param_groups[0]["lr"] = rate
        for key, parameter in theirs.items():
            parameter.grad = torch.tensor(one[key])
        peer.step()
    for key, array in params.items():
        np.testing.assert_allclose(array, theirs[key].detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [MomentumSGD, Adam])
def test_baselines_go_on_from_their_state(rng, make):
    params, gradients = some_params(rng), some_gradients(rng)
    first = make(params, RATES.__getitem__)
    for one in gradients[:2]:
        first.step(one)
    copied = {name: array.copy() for name, array in params.items()}
    second = make(copied, RATES.__getitem__)
    second.load_state_dict(first.state_dict())
    for one in gradients[2:]:
        first.step(one)
        second.step(one)
    for name in params:
        np.testing.assert_array_equal(params[name], copied[name])


# -- the model -------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_folds_cover_the_training_part(digits):
    assert [len(digits.test.inputs), len(digits.test.held_out_labels)] == [1437, 360]
    assert len(digits.folds) == data.FOLDS
    assert sum(len(fold.held_out_labels) for fold in digits.folds) == 1437
    assert all(len(fold.inputs) + len(fold.held_out_labels) == 1437 for fold in digits.folds)


def test_answers_that_are_not_finite_are_wrong(digits):
    params = model.views(model.initial(0))
    params["output bias"][:] = np.nan
    assert model.accuracy(params, digits.test) == 0.0


# -- the plan --------------------------------------------------------------------------------------------


def test_choose_takes_the_best_and_among_equals_the_largest():
    assert plan.choose({0.001: 0.5, 0.01: 0.9, 0.1: 0.7}) == 0.01
    assert plan.choose({0.1: 0.9, 0.01: 0.9, 0.001: 0.2}) == 0.1


def test_rates_scale_from_the_base_batch():
    assert plan.scaled(0.3, 0.5, 32) == 0.3
    assert plan.scaled(0.3, 0.5, 128) == pytest.approx(0.6)
    assert plan.scaled(0.3, 1.0, 128) == pytest.approx(1.2)
    assert {name: one.exponent for name, one in plan.CONTESTANTS.items()} == {
        "lamb": 0.5,
        "adam": 0.5,
        "sgd": 1.0,
    }


def test_schedule_warms_up_over_a_tenth_and_ends_at_zero():
    run = plan.Run("lamb", 0.5, batch=1437, seed=0, epochs=20, fold=None)
    rates = run.schedule(1437)(list(range(21)))
    assert run.steps(1437) == 20
    assert list(rates[:3]) == [0.0, 0.25, 0.5]
    assert (np.diff(rates[2:]) < 0).all()
    assert rates[20] == pytest.approx(0.0, abs=1e-15)


def test_an_incomplete_last_batch_is_a_step():
    assert plan.Run("sgd", 0.1, batch=512, seed=0, epochs=20, fold=None).steps(1437) == 60


# -- training --------------------------------------------------------------------------------------------


def train(run, digits):
    training = Training(run, digits.test)
    with blas.one_thread():
        while not training.finished:
            training.train_epoch()
    return training.result()


def full_batch_accuracies(name, base_rate, digits):
    cell = plan.table_runs(name, base_rate, 1437, plan.Settings(seeds=3, epochs=20, folds=0))
    return [train(run, digits).accuracy for run in cell]


def test_lamb_carries_its_rate_to_the_full_batch_and_momentum_sgd_does_not(digits):
    # The rates that the search chooses at batch 32.
    assert np.mean(full_batch_accuracies("lamb", 0.01, digits)) >= 0.95
    assert np.mean(full_batch_accuracies("sgd", 0.1, digits)) < 0.8


@pytest.mark.parametrize("base_rate", plan.CONTESTANTS["sgd"].grid)
def test_no_rate_of_its_grid_carries_momentum_sgd_to_the_full_batch(digits, base_rate):
    assert np.mean(full_batch_accuracies("sgd", base_rate, digits)) < 0.95


def test_a_run_that_overflows_is_stopped_and_judged(digits):
    result = train(plan.Run("sgd", 1e20, batch=512, seed=0, epochs=3, fold=None), digits)
    assert result.stopped
    assert len(result.losses) < 3
    assert result.accuracy < 0.2


def test_the_seed_decides_the_run(digits):
    runs = [plan.Run("adam", 0.01, batch=512, seed=seed, epochs=2, fold=None) for seed in (0, 0, 1)]
    first, again, other = (train(run, digits).weights_sha256 for run in runs)
    assert first == again
    assert first != other


# -- the command -----------------------------------------------------------------------------------------


def test_the_command_writes_figure_results_and_checkpoint(whole):
    assert (whole / "train.png").read_bytes().startswith(b"\x89PNG")
    assert checkpoint.load(whole / "checkpoint.npz")["current"] is None
    assert sorted(path.name for path in whole.iterdir()) == ["checkpoint.npz", "results.json", "train.png"]
    results = json.loads((whole / "results.json").read_text())
    cells = [(row["optimizer"], row["batch_size"], row["steps"]) for row in results["rows"]]
    steps = [(1437, 2), (128, 24), (32, 90)]
    assert cells == [(name, *pair) for pair in steps for name in ("lamb", "adam", "sgd")]
    assert results["settings"]["epochs"] == 2
    assert results["rates_searched_in_this_run"]
    for name, search in results["rate_search"]["rates"].items():
        tried = {one["rate"]: one["mean_validation_accuracy"] for one in search["tried"]}
        assert search["chosen_rate"] == plan.choose(tried)
        peaks = [row["peak_rate"] for row in results["rows"] if row["optimizer"] == name]
        exponent = plan.CONTESTANTS[name].exponent
        assert peaks == [plan.scaled(search["chosen_rate"], exponent, batch) for batch, _ in steps]


@pytest.mark.parametrize("epochs", [(1,), (2, 30), (11, 19, 12), (50, 60)], ids=str)
def test_interrupted_and_resumed_is_as_if_left_alone(whole, tmp_path, monkeypatch, capsys, epochs):
    arguments = [*TINY, "--out", str(tmp_path)]
    for count, epoch in enumerate(epochs):
        with monkeypatch.context() as patch:
            interrupt_at(patch, epoch)
            assert main([*arguments, "--resume"] if count else arguments) == 130
        said = capsys.readouterr().out
        assert f"numba-lamb train --quick --search --epochs 2 --out {tmp_path} --resume" in said
        assert not (tmp_path / "results.json").exists()
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "results.json").read_text() == (whole / "results.json").read_text()
    resumed, left_alone = (experiment_of(folder) for folder in (tmp_path, whole))
    assert list(resumed.results) == list(left_alone.results)
    for run, result in left_alone.results.items():
        assert resumed.results[run].losses == result.losses
        np.testing.assert_array_equal(resumed.results[run].ratios, result.ratios)


def experiment_of(folder):
    experiment = Experiment(plan.Settings(seeds=1, epochs=2, folds=3), data.load())
    experiment.restore(checkpoint.load(folder / "checkpoint.npz"))
    return experiment


def test_a_finished_run_resumes_to_the_same_table(whole, capsys):
    before = (whole / "results.json").read_text()
    assert main([*TINY, "--out", str(whole), "--resume"]) == 0
    assert (whole / "results.json").read_text() == before
    assert "LAMB" in capsys.readouterr().out


def test_checkpoints_are_written_while_runs_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    train_epoch, trained = Training.train_epoch, []

    def dies_at_fourth(training):
        trained.append(training)
        if len(trained) == 4:
            raise RuntimeError("killed")
        train_epoch(training)

    monkeypatch.setattr(Training, "train_epoch", dies_at_fourth)
    with pytest.raises(RuntimeError, match="killed"):
        main([*TINY, "--out", str(tmp_path)])
    tree = checkpoint.load(tmp_path / "checkpoint.npz")
    assert len(tree["results"]) == 1
    assert len(tree["current"]["losses"]) == 1


def test_ctrl_c_handler_is_put_back(whole):
    before = signal.getsignal(signal.SIGINT)
    main([*TINY, "--out", str(whole), "--resume"])
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_needs_a_checkpoint(tmp_path, capsys):
    assert main(["train", "--resume", "--out", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "there is no checkpoint" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--epochs", "3"], "epochs = 2"), (["--epochs", "2", "--seeds", "2"], "seeds = 1")],
)
def test_resume_needs_the_same_settings(whole, capsys, options, named):
    assert main(["train", "--quick", "--search", *options, "--out", str(whole), "--resume"]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_resume_refuses_what_is_no_checkpoint_of_the_command(tmp_path, capsys):
    checkpoint.save(tmp_path / "checkpoint.npz", {"something": 1})
    assert main([*TINY, "--resume", "--out", str(tmp_path)]) == 2
    assert "not a checkpoint of numba-lamb train" in capsys.readouterr().err
    (tmp_path / "checkpoint.npz").write_bytes(b"damaged")
    assert main([*TINY, "--resume", "--out", str(tmp_path)]) == 2


def test_a_file_in_the_folders_place_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*TINY, "--out", str(tmp_path / "file")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--epochs", "1"], ["--seeds", "0"], ["--seeds", "x"]], ids=" ".join)
def test_options_out_of_range_are_refused(capsys, options):
    with pytest.raises(SystemExit) as stop:
        main(["train", *options])
    assert stop.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_missing_packages_are_one_line_that_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == (
        "numba-lamb train: needs rich, matplotlib: python -m pip install -e '.[demo]' in a checkout, or "
        "'WHEEL[demo]' with a wheel's file name\n"
    )


def test_the_cli_imports_without_the_demo_packages():
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'rich'): sys.modules[name] = None\n"
        "from numba_lamb.cli import main\n"
        "sys.exit(main(['train']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(model.__file__).parents[3])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.returncode == 2
    assert "needs rich, matplotlib" in found.stderr
    assert "Traceback" not in found.stderr


# -- what is shown ---------------------------------------------------------------------------------------


def test_output_that_is_no_terminal_is_plain_lines(whole, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*TINY, "--out", str(whole)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\r" not in said
    assert said.isascii()
    assert len([line for line in said.splitlines() if " search " in line]) == 9
    assert len([line for line in said.splitlines() if "] train " in line]) == 9
    assert len([line for line in said.splitlines() if "] map " in line]) == 10


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_gets_a_bar(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with Display(console, total=100, done=20) as display:
        display.update("LAMB", loss=0.5, done=60)
        display.line("half way")
    said = stream.getvalue()
    assert "half way" in said
    assert ("\x1b" in said) == terminal
    assert ("[ 60 %] half way" in said) != terminal
    assert ("loss 5.0e-01" in said) == terminal


def test_the_summary_says_what_the_rows_say(whole):
    results = json.loads((whole / "results.json").read_text())
    full = [row for row in results["rows"] if row["batch_size"] == 1437]
    for row in full:
        title = plan.CONTESTANTS[row["optimizer"]].title
        assert f"{title} {100 * row['mean']:.1f} %" in results["summary"]
        assert row["low"] <= row["mean"] <= row["high"]


def test_the_table_shows_every_row(whole):
    stream = io.StringIO()
    experiment = experiment_of(whole)
    Console(file=stream, width=100).print(table.rich_table(experiment, ascii_only=True))
    for row in table.table_rows(experiment):
        assert f"{100 * row.mean:.1f}" in stream.getvalue()
        assert f"{row.peak_rate:.3g}" in stream.getvalue()
