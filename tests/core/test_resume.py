"""`save` and `load`: parameters and optimizer in one file, and back, whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import OPTIMIZERS, Gpu, assert_same
from tests.helpers import snapshot
from tests.interrupts import interrupted

SHAPES = {"a": ((40, 30), "f4"), "b": ((), "f8"), "c": ((0, 3), "f4")}


def values(seed: int, shapes: Any = SHAPES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: np.array(random.standard_normal(shape), dtype) for name, (shape, dtype) in shapes.items()}


def trained(kind: str = "Lamb", steps: int = 2, shapes: Any = SHAPES) -> Any:
    opt = OPTIMIZERS[kind](values(0, shapes), lambda step: 0.1 / (step + 1), max_grad_norm=1.0)
    for step in range(steps):
        opt.step(values(1 + step, shapes))
    return opt


def saved(path: Path, opt: Any) -> Path:
    nl.save(path / "training.npz", opt)
    return path / "training.npz"


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole = trained(kind)
    file = saved(tmp_path, whole)
    resumed = trained(kind, steps=0)
    arrays = dict(resumed.params)
    nl.load(file, resumed)
    assert all(resumed.params[name] is array for name, array in arrays.items())
    for opt in (whole, resumed):
        opt.step(values(9))
    assert_same(dict(resumed.params), dict(whole.params))
    assert_same(resumed.state_dict(), whole.state_dict())


def test_arrays_on_a_gpu_and_numpy_arrays_have_the_same_file(gpu: Gpu, tmp_path: Path) -> None:
    make, arrays = OPTIMIZERS["Momentum"], {"w": np.array([1.0, 2.0])}
    on_cpu, on_gpu, again = make(arrays), make(gpu.arrays({"w": np.zeros(2)})), make({"w": np.zeros(2)})
    on_cpu.step({"w": np.ones(2)})
    nl.load(saved(tmp_path, on_cpu), on_gpu)
    assert_same({name: array.get() for name, array in on_gpu.params.items()}, dict(on_cpu.params))
    nl.load(saved(tmp_path, on_gpu), again)
    assert_same(dict(again.params), dict(on_cpu.params))
    assert_same(again.state_dict(), on_cpu.state_dict())


def changed(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        tree = nl.checkpoint.load(file)
        change(tree)
        nl.checkpoint.save(file, tree)

    return write


def read_only(opt: Any) -> None:
    opt.params["b"].flags.writeable = False


REFUSALS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Any], str]] = {
    "a parameter less": (
        changed(lambda tree: tree["params"].pop("b")),
        id,
        "training.npz has no parameter 'b'",
    ),
    "a parameter more": (
        changed(lambda tree: tree["params"].update(d=np.ones(2))),
        id,
        "has parameter 'd', which the optimizer has not",
    ),
    "another shape": (
        changed(lambda tree: tree["params"].update(a=np.ones((30, 40), "f4"))),
        id,
        r"parameter 'a' in .* must be float32 of shape \(40, 30\), got float32 of shape \(30, 40\)",
    ),
    "another dtype": (
        changed(lambda tree: tree["params"].update(b=np.ones((), "f4"))),
        id,
        r"parameter 'b' in .* must be float64 of shape \(\), got float32",
    ),
    "no array": (changed(lambda tree: tree["params"].update(b=1.0)), id, "got float"),
    "no dict": (changed(lambda tree: tree.update(params=[])), id, "must be a dict, got list"),
    "no state of it": (
        changed(lambda tree: tree["optimizer"]["layers"]["c"].pop("v")),
        id,
        r"state\['layers'\]\['c'\] has no 'v'",
    ),
    "a bad number": (
        changed(lambda tree: tree["optimizer"]["groups"][0].update(beta1=1.5)),
        id,
        "beta1 of group 0 must be",
    ),
    "an option of another type": (
        changed(lambda tree: tree["optimizer"]["groups"][0].update(maximize=None)),
        id,
        r"training\.npz must fit the optimizer: maximize of group 0 must be a bool",
    ),
    "another file": (
        lambda file: nl.checkpoint.save(file, {"optimizer": trained().state_dict()}),
        id,
        r"must be a file of numba_lamb.save, .*; load it with checkpoint.load",
    ),
    "damage": (lambda file: file.write_bytes(file.read_bytes()[:-30]), id, "is damaged"),
    "read-only": (id, read_only, "parameter 'b' is read-only"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_changes_nothing(case: str, tmp_path: Path) -> None:
    damage, prepare, message = REFUSALS[case]
    file = saved(tmp_path, trained())
    damage(file)
    opt = trained(steps=1)
    prepare(opt)
    before = snapshot(opt)
    with pytest.raises(ValueError, match=message):
        nl.load(file, opt)
    assert snapshot(opt) == before


@pytest.mark.parametrize("call", [nl.save, nl.load])
def test_other_optimizers_are_refused(call: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"optimizer must be a numba_lamb.Lamb, .* got builtins.dict"):
        call(tmp_path / "x.npz", {})
    torch = pytest.importorskip("torch")
    opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 0.1)
    with pytest.raises(TypeError, match=r"got torch.optim.sgd.SGD; for PyTorch: torch.save\("):
        call(tmp_path / "x.npz", opt)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    opt = trained()
    with pytest.raises(OSError, match="nowhere"):
        nl.save(tmp_path / "nowhere" / "x.npz", opt)
    assert not [*tmp_path.iterdir()]


def test_ctrl_c_finds_both_as_they_were_or_both_as_in_the_file(tmp_path: Path) -> None:
    shapes = {"a": ((3, 2), "f4"), "b": ((), "f8")}
    file = saved(tmp_path, trained(steps=2, shapes=shapes))
    old, new = (whole(trained(steps=steps, shapes=shapes)) for steps in (1, 2))
    ends = []
    for number in range(0, 100_000, 13):
        opt = trained(steps=1, shapes=shapes)
        came = interrupted(lambda opt=opt: nl.load(file, opt), number, "numba_lamb")
        ends.append(whole(opt) == new)
        assert ends[-1] or whole(opt) == old, number
        if not came:
            break
    assert ends[-1]
    assert not ends[0]


def whole(opt: Any) -> Any:
    found = snapshot(opt)
    return found["params"], found["state"]
