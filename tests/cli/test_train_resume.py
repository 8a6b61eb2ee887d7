"""`numba-lamb train --resume`: whatever is wrong in the checkpoint is refused, in one line."""

import copy
import math

import numpy as np
import pytest

from numba_lamb import checkpoint
from numba_lamb.cli import main
from numba_lamb.cli.train import data, fit, plan, session
from numba_lamb.cli.train.experiment import Experiment
from tests.helpers import frozen

TINY = ["train", "--quick", "--search", "--epochs", "2"]
SETTINGS = plan.Settings(seeds=1, epochs=2, folds=3)


@pytest.fixture(scope="module", name="digits")
def loaded_digits():
    return data.load()


def stopped_after(digits, tree, results):
    """Return the tree of a run that was stopped after so many results and one epoch of the next run."""
    experiment = Experiment(SETTINGS, digits)
    told = {**tree, "results": tree["results"][:results], "current": None}
    experiment.restore(signed(told))
    experiment.proceed(lambda training: False, lambda result: None)
    return experiment.tree()


def signed(tree):
    told = {key: value for key, value in tree.items() if key != "digest"}
    return {**told, "digest": fit.digest(told)}


@pytest.fixture(scope="module", name="trees")
def real_trees(whole, digits):
    """Checkpoints of a run that is done, and of ones stopped in each optimizer's run at the full batch."""
    done = checkpoint.load(whole / "checkpoint.npz")
    full = [k for k, result in enumerate(done["results"]) if result["run"]["batch"] == 1437][:3]
    assert [done["results"][k]["run"]["optimizer"] for k in full] == ["lamb", "adam", "sgd"]
    return [done, *(stopped_after(digits, done, k) for k in full)]


def accepts(digits, tree):
    try:
        Experiment(SETTINGS, digits).restore(tree)
    except ValueError:
        return False
    return True


def places(node, path=()):
    """Yield the path of every node of a tree below its root."""
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield (*path, key)
            yield from places(node[key], (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


WRONG = [
    None, True, -1, 2**70, 10**6, 1.5, -0.5, math.nan, math.inf, "x", "1", [], [1], {}, {"x": 1},
    np.zeros(3), np.full((2, 2), np.nan, np.float32), np.array("x"), np.zeros(0),
]  # fmt: skip


def mutated(tree, path, rng):
    """Return the tree with one node changed for the worse."""
    changed = copy.deepcopy(tree)
    above, key = at(changed, path[:-1]), path[-1]
    node = above[key]
    match rng.integers(5):
        case 0:
            del above[key]
        case 1 if isinstance(above, dict):
            above["x" + str(key)] = node
        case 2 if isinstance(node, np.ndarray):
            wrong = [node.astype(np.float16), node[:-1], node[None], node * math.nan, node.tolist()]
            above[key] = wrong[rng.integers(len(wrong))]
        case 3 if type(node) in (int, float):
            other = float(node) if type(node) is int else int(node)
            above[key] = [-node - 1, node + 1, math.nan, str(node), other][rng.integers(5)]
        case _:
            above[key] = WRONG[rng.integers(len(WRONG))]
    return changed


def is_possible(path, tree):
    """Whether a run could have that there: a loss, a trust ratio, an end before its time, or no run yet."""
    above, key = at(tree, path[:-1]), path[-1]
    if path[-2:-1] == ("losses",) and key == len(above):
        return at(tree, path[:-2])["stopped"]
    value = above[key]
    if path in (("current",), ("current", "stopped")):
        return value is (None if key == "current" else True)
    return type(value) is float and 0 < value < math.inf and bool({"losses", "ratios"} & set(path))


def test_the_real_ones_are_accepted(digits, trees):
    assert all(accepts(digits, tree) for tree in trees)
    for tree in trees:
        experiment = Experiment(SETTINGS, digits)
        experiment.restore(tree)
        assert frozen(experiment.tree()) == frozen(tree)


@pytest.mark.parametrize("again", [True, False], ids=["signed again", "as it is"])
def test_a_change_of_anything_is_refused(digits, trees, again):
    rng = np.random.default_rng(0)
    tried = 0
    for tree in trees:
        every = list(places(tree))
        current = [path for path in every if path[0] == "current"]
        for path in [*rng.permutation(np.array(every, object))[:60], *current * 2]:
            path = tuple(path)
            changed = mutated(tree, path, rng)
            if frozen(changed) == frozen(tree):
                continue
            tried += 1
            if again and path != ("digest",):
                changed = signed(changed)
            if accepts(digits, changed):
                assert again, path
                assert is_possible(path, changed), path
    assert tried > 400


def test_a_value_that_is_possible_is_told_by_the_digest(digits, trees):
    for change in (
        lambda tree: tree["current"]["losses"].__setitem__(0, 0.5),
        lambda tree: tree["current"]["params"]["output bias"].__setitem__(0, 0.5),
        lambda tree: tree["results"][0].__setitem__("accuracy", 0.5),
        lambda tree: tree["results"][0].__setitem__("weights_sha256", "0" * 64),
    ):
        tree = copy.deepcopy(trees[1])
        change(tree)
        assert not accepts(digits, tree)


def test_results_and_runs_of_another_plan_are_refused(digits, trees):
    done, started = trees[:2]
    elsewhere = copy.deepcopy(started)
    elsewhere["current"] = trees[2]["current"]
    wrong = [
        {**done, "results": done["results"][::-1]},
        {**done, "results": done["results"][1:]},
        {**done, "results": [*done["results"], done["results"][-1]]},
        {**done, "current": started["current"]},
        {**started, "results": started["results"][:-1]},
        elsewhere,
    ]
    assert not any(accepts(digits, signed(tree)) for tree in wrong)


def test_damaged_bytes_are_refused_or_harmless(digits, trees, tmp_path):
    file = tmp_path / "checkpoint.npz"
    checkpoint.save(file, trees[1])
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        start, length = int(rng.integers(len(whole))), int(rng.integers(1, 300))
        content[start : start + length] = [b"", rng.bytes(length), bytes(length)][rng.integers(3)]
        file.write_bytes(content)
        experiment = Experiment(SETTINGS, digits)
        try:
            session._restore(experiment, file)
        except session.SessionError:
            refused += 1
        else:
            assert frozen(experiment.tree()) == frozen(trees[1])
    assert refused > 80


FILES = {
    "empty": lambda file, tree: file.write_bytes(b""),
    "a folder": lambda file, tree: file.mkdir(),
    "NaN": lambda file, tree: checkpoint.save(file, signed({**tree, "current": math.nan})),
    "lines": lambda file, tree: checkpoint.save(file, {**tree, "protocol": {"seeds": "a\nb" * 9000}}),
    "no results": lambda file, tree: checkpoint.save(file, {**tree, "results": None}),
    "kind an array": lambda file, tree: checkpoint.save(file, {**tree, "kind": np.zeros(2)}),
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_the_command_says_it_in_one_line(trees, tmp_path, capsys, write):
    write(tmp_path / "checkpoint.npz", trees[0])
    assert main([*TINY, "--resume", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "checkpoint.npz" in err
    assert len(err) < 1100
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]
