"""State on a GPU: it travels to the CPU and back, survives changes of options, and is given back at the end."""

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb import checkpoint
from numba_lamb.callbacks import LearningRateScheduler
from numba_lamb.memory import device
from tests.cuda.double import (
    OPTIMIZERS,
    Gpu,
    Pair,
    assert_same,
    fresh_gpu,
    gradients_like,
)

WEIGHTS = {
    "a": np.linspace(-1, 1, 200).astype("f4"),
    "e": np.zeros((0, 3), "f4"),
    "b": np.linspace(0, 1, 7),
    "k": np.linspace(-2, 2, 60).reshape(3, 4, 5).astype("f4"),
}


def rate(step: int) -> float:
    return 0.1 / (step + 1)


@pytest.mark.parametrize("maker", OPTIMIZERS)
def test_a_state_goes_from_one_side_to_the_other(gpu: Gpu, maker: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    pair = Pair(gpu, WEIGHTS, lambda params: OPTIMIZERS[maker](params, rate, max_grad_norm=1.0))
    for _ in range(2):
        pair.step({**gradients_like(WEIGHTS, random), "b": None})
    pair.step(gradients_like(WEIGHTS, random))
    checkpoint.save(tmp_path / "state.npz", pair.gpu_optimizer.state_dict())
    # The steps after it are taken back.
    before = {name: array.copy() for name, array in pair.on_cpu.items()}
    pair.step(gradients_like(WEIGHTS, random))
    for name, values in before.items():
        pair.on_cpu[name][...] = values
        gpu.driver.progress()
        pair.on_gpu[name].memory[...] = values
    state = checkpoint.load(tmp_path / "state.npz")
    pair.cpu.load_state_dict(state)
    pair.gpu_optimizer.load_state_dict(pair.cpu.state_dict())
    pair.check()
    assert dict(pair.gpu_optimizer.stats()) == {}
    for _ in range(2):
        pair.step(gradients_like(WEIGHTS, random))
    pair.check()
    assert pair.gpu_optimizer.global_step == 5


def test_a_state_that_does_not_fit_changes_nothing(gpu: Gpu) -> None:
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Lamb(params, rate))
    pair.step(WEIGHTS)
    state = pair.gpu_optimizer.state_dict()
    for key, value in (("eps", 1e-60), ("beta1", 2.0)):
        with pytest.raises(ValueError, match=f"^{key}.* must be "):
            pair.gpu_optimizer.load_state_dict({**state, "groups": [{**state["groups"][0], key: value}]})
    with pytest.raises(ValueError, match="layers"):
        pair.gpu_optimizer.load_state_dict({**state, "layers": {}})
    pair.check()
    pair.step(WEIGHTS)
    pair.check()


def test_a_group_that_is_added_keeps_the_others_state(gpu: Gpu) -> None:
    random = np.random.default_rng(2)
    names = ["a", "b"]
    pair = Pair(
        gpu, {name: WEIGHTS[name] for name in names}, lambda params: nl.Lamb(params, rate, max_grad_norm=1.0)
    )
    for new in ("e", "k", None):
        gradients = gradients_like(pair.on_cpu, random)
        # The last of these steps is still queued when the group is added.
        pair.step(gradients, gpu.driver.stream())
        if new is None:
            break
        pair.on_cpu[new] = WEIGHTS[new].copy()
        pair.on_gpu[new] = gpu.array(WEIGHTS[new])
        for optimizer, arrays in ((pair.cpu, pair.on_cpu), (pair.gpu_optimizer, pair.on_gpu)):
            group = {"params": [(new, arrays[new])], "lr": 0.3, "grad_centralization": new == "k"}
            optimizer.add_param_group(group)
    pair.check()
    steps = [layer["step"] for layer in pair.gpu_optimizer.state_dict()["layers"].values()]
    assert steps == [3, 3, 2, 1]


def test_a_group_that_is_refused_changes_nothing(gpu: Gpu) -> None:
    pair = Pair(gpu, {"a": WEIGHTS["a"]}, lambda params: nl.Lamb(params, rate))
    pair.step({"a": WEIGHTS["a"]})
    for group in (
        {"params": [("x", gpu.array(np.ones(3, "i4")))]},
        {"params": [("x", gpu.array(np.ones(3)))], "lr": -1.0},
        {"params": [("x", gpu.array(np.ones(3)))], "grad_centralization": True},
        {"params": [("a", gpu.array(np.ones(3)))]},
        {"params": [("x", pair.on_gpu["a"])]},
    ):
        memory = dict(gpu.driver.owners)
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            pair.gpu_optimizer.add_param_group(group)
        assert pair.gpu_optimizer.global_step == 1
        assert gpu.driver.owners.keys() == memory.keys()
        assert gpu.driver.contexts == [0]
    pair.step({"a": WEIGHTS["a"]})
    pair.check()


def test_options_that_change_hold_from_the_next_step(gpu: Gpu) -> None:
    random = np.random.default_rng(3)

    def make(params: Any) -> Any:
        return nl.Lars(
            nl.Momentum(
                [{"params": {"k": params["k"]}}, {"params": {"a": params["a"], "b": params["b"]}}], 0.1, 0.9
            )
        )

    pair = Pair(gpu, {name: WEIGHTS[name] for name in "kab"}, make)

    def group(index: int, **options: Any) -> Callable[[Any], None]:
        return lambda optimizer: optimizer.param_groups[index].update(options)

    changes: list[Callable[[Any], Any]] = [
        lambda optimizer: setattr(optimizer, "learning_rate", 0.2),
        group(0, grad_centralization=True),
        group(1, weight_decay=0.1),
        lambda optimizer: setattr(optimizer, "max_grad_norm", 0.5),
        group(1, lr=rate),
        group(0, weight_decay=lambda step: 0.01 * step),
        lambda optimizer: setattr(optimizer, "max_grad_norm", None),
        group(0, grad_centralization=False),
        lambda optimizer: setattr(optimizer, "learning_rate", np.linspace(0.1, 1, 20)),
        group(0, grad_centralization=True, lr=0.3),
        lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
    ]
    for change in changes:
        for optimizer in pair.both:
            change(optimizer)
        pair.step(gradients_like(pair.on_cpu, random))
        assert pair.gpu_optimizer.get_lr() == pair.cpu.get_lr()
        assert pair.gpu_optimizer.get_weight_decay() == pair.cpu.get_weight_decay()
    pair.check()


def test_lars_takes_over_a_momentum_that_has_stepped(gpu: Gpu) -> None:
    random = np.random.default_rng(4)
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Momentum(params, rate, 0.9, weight_decay=0.1))
    for _ in range(2):
        pair.step(gradients_like(WEIGHTS, random), gpu.driver.stream())
    under = pair.gpu_optimizer
    pair.cpu, pair.gpu_optimizer = nl.Lars(pair.cpu), nl.Lars(pair.gpu_optimizer)
    for _ in range(2):
        pair.step(gradients_like(WEIGHTS, random))
    pair.check()
    assert under.global_step == 4


def test_a_scheduler_between_steps(gpu: Gpu) -> None:
    random = np.random.default_rng(5)
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Lamb(params, 0.5))
    for _ in range(3):
        pair.step(gradients_like(WEIGHTS, random))
        for optimizer in pair.both:
            LearningRateScheduler(lambda rate, step: rate / (step + 1))(optimizer)
    pair.check()
    assert pair.gpu_optimizer.get_lr() == pair.cpu.get_lr()


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_it_cannot_be_copied(gpu: Gpu, how: Callable[[Any], Any]) -> None:
    optimizer = nl.Lamb(gpu.arrays(WEIGHTS), 0.5)
    with pytest.raises(TypeError, match="state_dict and load_state_dict"):
        how(optimizer)


def test_the_parameters_are_the_users_arrays(gpu: Gpu) -> None:
    arrays = gpu.arrays(WEIGHTS)
    optimizer = nl.Lamb(arrays, 0.5)
    assert all(optimizer.params[name] is array for name, array in arrays.items())
    assert optimizer.param_groups[0]["params"] == list(arrays.values())


@pytest.mark.parametrize("outer", [0, 2])
def test_no_call_leaves_a_device_current(outer: int) -> None:
    """Whatever device the caller has current, none or another one, he finds it so again."""
    with fresh_gpu(devices=2) as gpu:
        contexts = gpu.driver.contexts
        contexts[:] = [0, outer] if outer else [0]
        before = list(contexts)
        optimizer = nl.Momentum(gpu.arrays(WEIGHTS), rate, 0.9, nonfinite="raise")
        assert contexts == before
        for name, call in every_call(gpu, optimizer).items():
            call()
            assert contexts == before, name
        bad = gpu.arrays({**WEIGHTS, "b": np.full(7, np.nan)})
        for gradients, stream, error in (
            ({**bad, "x": None}, None, FloatingPointError),
            (bad, None, KeyError),
            ({**bad, "x": None}, -1, ValueError),
        ):
            with pytest.raises(error):
                optimizer.step(gradients, stream)
            assert contexts == before
        optimizer.step({**gpu.arrays(WEIGHTS), "x": None})
        stats = optimizer.stats()
        del optimizer
        gc.collect()
        assert len(stats) > 0
        assert contexts == before


def every_call(gpu: Gpu, optimizer: Any) -> dict[str, Callable[[], Any]]:
    return {
        "step": lambda: optimizer.step(gpu.arrays(WEIGHTS)),
        "call": lambda: optimizer(gpu.arrays(WEIGHTS)),
        "stats": lambda: dict(optimizer.stats()),
        "state_dict": lambda: optimizer.state_dict(),
        "load_state_dict": lambda: optimizer.load_state_dict(optimizer.state_dict()),
        "counters": lambda: (optimizer.global_step, optimizer.skipped_steps, optimizer.check()),
        "get_lr": lambda: optimizer.get_lr(),
        "max_grad_norm": lambda: setattr(optimizer, "max_grad_norm", 1.0),
        "Lars": lambda: nl.Lars(optimizer),
        "add_param_group": lambda: optimizer.add_param_group({"params": [("x", gpu.array(np.ones(3)))]}),
    }


def test_a_driver_that_fails_is_quoted(gpu: Gpu) -> None:
    with pytest.raises(RuntimeError, match="cuDeviceGet failed: CUDA_ERROR_INVALID_VALUE"):
        device.open_device(7)


def test_equal_layouts_share_nothing(gpu: Gpu) -> None:
    """Two optimizers at once, on one device, with their steps in turn."""
    random = np.random.default_rng(6)
    one, two = (Pair(gpu, WEIGHTS, lambda params: nl.Lamb(params, 0.1)) for _ in range(2))
    for _ in range(2):
        for pair in (one, two):
            pair.step(gradients_like(WEIGHTS, random))
    for pair in (one, two):
        pair.check()
    assert_same(one.gpu_optimizer.global_step, 2)
