"""What `numba-lamb train` is made of: its network, its data, its rates, its map, and what it compiles."""

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core import event
from rich.console import Console

from numba_lamb import Lamb
from numba_lamb.cli import main
from numba_lamb.cli.train import blas, compiling, data, model, plan, rates, session, words
from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.training import Training

FOLDER = Path(data.__file__).parent


@pytest.fixture(scope="module", name="digits")
def loaded_digits() -> data.Digits:
    return data.load()


def cross_entropy(params: Any, inputs: Any, targets: Any) -> Any:
    """The loss once more, in the plainest form."""
    scores = model.logits(params, inputs)
    return np.mean(np.log(np.exp(scores).sum(axis=1)) - (scores * targets).sum(axis=1))


@pytest.mark.parametrize("rows", [8, 5], ids=["a whole batch", "an incomplete one"])
def test_gradients_are_those_of_finite_differences(digits: data.Digits, rows: int) -> None:
    flat = model.initial(0)
    # Biases that are not zero, so that a gradient which forgot them would show.
    rng = np.random.default_rng(1)
    flat += rng.standard_normal(model.SIZE).astype(np.float32) / 50
    gradients = np.full_like(flat, np.nan)
    inputs, targets = digits.test.inputs[:rows], digits.test.targets[:rows]
    loss = model.Backpropagation(8).loss_and_gradients(
        model.views(flat), inputs, targets, model.views(gradients)
    )
    wide = flat.astype(np.float64)
    assert loss == pytest.approx(cross_entropy(model.views(wide), inputs, targets), rel=1e-6)
    picked = model.views(np.arange(model.SIZE))
    for name, places in picked.items():
        for place in rng.choice(places.ravel(), 12):
            nudge = np.zeros_like(wide)
            nudge[place] = 1e-6
            ahead, behind = (
                cross_entropy(model.views(wide + sign * nudge), inputs, targets) for sign in (1, -1)
            )
            slope = (ahead - behind) / 2e-6
            assert gradients[place] == pytest.approx(slope, rel=1e-3, abs=1e-6), (name, place)


def test_views_are_all_of_the_flat_array() -> None:
    flat = np.arange(model.SIZE, dtype=np.float32)
    pieces = model.views(flat)
    assert all(np.shares_memory(piece, flat) for piece in pieces.values())
    np.testing.assert_array_equal(np.concatenate([piece.ravel() for piece in pieces.values()]), flat)


def test_the_digits_are_those_of_uci_and_not_pickled(digits: data.Digits) -> None:
    file = FOLDER / "digits.npz"
    assert file.stat().st_size <= 57_000
    with np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
        assert sorted([*arrays["train"], *arrays["test"]]) == list(range(1797))
    # Of scikit-learn's load_digits, whose values were compared with these.
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == DIGITS_SHA256
    assert (images.shape, images.max()) == ((1797, 64), 16)
    source = (FOLDER / "digits.txt").read_text()
    for part in ("UCI Machine Learning Repository", "E. Alpaydin and C. Kaynak", "CC BY 4.0"):
        assert part in source
    for task in (digits.test, *digits.folds):
        counts = np.bincount(task.held_out_labels) / len(task.held_out_labels)
        assert abs(counts - np.bincount(labels) / len(labels)).max() < 0.01


DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_the_rates_of_the_package_were_chosen_by_the_present_plan() -> None:
    brought = rates.brought()
    assert (brought["batch_size"], brought["epochs"], brought["folds"]) == (plan.BASE_BATCH, 20, data.FOLDS)
    assert list(brought["rates"]) == list(plan.CONTESTANTS)
    for name, contestant in plan.CONTESTANTS.items():
        tried = brought["rates"][name]["tried"]
        assert tuple(one["rate"] for one in tried) == contestant.grid
        found = {one["rate"]: one["mean_validation_accuracy"] for one in tried}
        assert rates.chosen(name) == plan.choose(found)


def test_without_a_search_the_rates_are_those_of_the_package(digits: data.Digits) -> None:
    experiment = Experiment(plan.Settings(seeds=2, epochs=2, folds=0), digits)
    runs = list(experiment.runs())
    assert all(run.fold is None for run in runs)
    assert len(set(runs)) == len(runs)
    first = [
        plan.scaled(rates.chosen(name), plan.CONTESTANTS[name].exponent, 1437) for name in plan.CONTESTANTS
    ]
    assert [run.rate for run in runs[::2][:3]] == first
    # Every cell of the map has its runs: two at the full batch, one elsewhere.
    for name in plan.CONTESTANTS:
        for batch in plan.batch_sizes(1437):
            for multiple in plan.MULTIPLES:
                cell = experiment.map_cell(name, batch, multiple)
                assert set(cell) <= set(runs)
                assert len(cell) == (2 if batch == 1437 else 1)
    assert experiment.total_work() == sum(experiment._work(run) for run in runs)


def test_the_map_and_the_sentences_are_of_the_same_runs(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    cells = results["map"]
    assert len(cells) == 3 * 3 * len(plan.MULTIPLES)
    for row in results["rows"]:
        (same,) = [
            cell
            for cell in cells
            if (cell["optimizer"], cell["batch_size"], cell["multiple"])
            == (row["optimizer"], row["batch_size"], 1)
        ]
        assert same["accuracies"][0] == row["accuracies"][0]
        assert same["peak_rate"] == row["peak_rate"]
    for name, contestant in plan.CONTESTANTS.items():
        best = max(cell["mean"] for cell in cells if (cell["optimizer"], cell["batch_size"]) == (name, 1437))
        assert f"{contestant.title} {100 * best:.1f} % at" in results["summary"]


def test_a_search_says_whether_the_rates_differ(digits: data.Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(plan.Settings(1, 2, 3), digits)
    monkeypatch.setattr(experiment, "chosen_rate", rates.chosen)
    same = words.search_verdict(experiment)
    assert same == (
        "Rates searched at batch 32: LAMB 0.01, Adam 0.01, Momentum SGD 0.1; the same as the package's."
    )
    monkeypatch.setattr(experiment, "chosen_rate", lambda name: 0.1)
    assert "LAMB 0.1 (the package has 0.01)" in words.search_verdict(experiment)


def test_one_thread_is_for_the_runs_alone() -> None:
    found = blas.thread_functions()
    if found is None:
        pytest.skip("NumPy has another BLAS than OpenBLAS")
    before = found[1]()
    with blas.one_thread():
        assert found[1]() == 1
    assert found[1]() == before


class Compiled(event.Listener):  # type: ignore[misc]
    """Keeps the signatures of what is compiled."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def on_start(self, event: Any) -> None:
        self.found.append(str(event.data["args"]))

    def on_end(self, event: Any) -> None:
        pass


def test_what_is_compiled_is_told_first_and_is_float32(
    digits: data.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    starts = compiling._Teller(said.append)
    starts.on_start(None)
    starts.on_start(None)
    assert said == [said[0]]
    assert said[0].startswith("Compiling LAMB's kernels for float32")
    said.clear()
    compiling.warm_up(said.append)
    compiled = Compiled()
    with event.install_listener("numba:compile", compiled):
        # All is there by now: neither a second time nor a run compiles anything.
        again: list[str] = []
        compiling.warm_up(again.append)
        run = plan.Run("lamb", 0.01, batch=512, seed=0, epochs=1, fold=None)
        Training(run, digits.test).train_epoch()
    assert (again, compiled.found) == ([], [])
    optimizer = Lamb(model.views(model.initial(0)), 0.0)
    assert [part.dtype for part in optimizer._buckets] == [np.float32]


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 200])
def test_no_word_is_broken(whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, no_color=True)
    monkeypatch.setattr(session, "_console", lambda: console)
    out = tmp_path / ("long-" * 20 + "path")
    shutil.copytree(whole, out)
    assert main(["train", "--quick", "--search", "--epochs", "2", "--out", str(out), "--resume"]) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    # Below the bar, which is drawn over itself.
    lines = shown[shown.index("Test accuracy in %, one seed") :].splitlines()
    assert max(len(line) for line in lines if str(out) not in line) <= width
    text = " ".join(lines)
    assert json.loads((whole / "results.json").read_text())["summary"] in text
    assert str(out) in text
