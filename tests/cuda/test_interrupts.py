"""A step on a GPU is queued whole or not at all, wherever a KeyboardInterrupt comes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.memory.device import Device
from tests.cuda.double import OPTIMIZERS, Gpu, Pair, gradients_like
from tests.interrupts import interrupted

PACKAGE = str(Path(nl.__file__).parent)
WEIGHTS = {"a": np.linspace(-1, 1, 200, dtype=np.float32), "b": np.linspace(0, 1, 7)}


# One that comes inside a finalizer is told and goes by, as Python does with all of them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("kind", ["Lamb", "Lars"])
def test_a_step_is_queued_whole_or_not_at_all(gpu: Gpu, kind: str, nonfinite: str) -> None:
    """At so many places where the interpreter looks for signals; the environment sets how many."""
    count = int(os.environ.get("NUMBA_LAMB_CUDA_INTERRUPTS", "8"))
    options: dict[str, Any] = {"max_grad_norm": 1.0, "nonfinite": nonfinite}
    pair = Pair(
        gpu, WEIGHTS, lambda params: OPTIMIZERS[kind](params, lambda step: 0.1 / (step + 1), **options)
    )
    random = np.random.default_rng(1)
    pair.step(gradients_like(WEIGHTS, random))
    came = 0
    for place in np.linspace(0, 500, count, dtype=int).tolist():
        values = gradients_like(WEIGHTS, random)
        gradients = gpu.arrays(values)
        before = pair.gpu_optimizer.global_step
        came += interrupted(lambda: pair.gpu_optimizer.step(gradients), place, PACKAGE)  # noqa: B023
        if pair.gpu_optimizer.global_step > before:
            pair.cpu.step(values)
        pair.check()
    assert came > count // 2
    for _ in range(2):
        pair.step(gradients_like(WEIGHTS, random))
    pair.check()


@pytest.mark.parametrize("change", ["gradients", "rate", "option"])
def test_an_interrupted_step_leaves_nothing_to_later_ones(
    gpu: Gpu, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something is changed, the step is interrupted behind each copy that it queues, and it is changed back."""
    pair = Pair(gpu, WEIGHTS, lambda params: nl.Lamb(params, lambda step: 0.1 / (step + 1)))
    random = np.random.default_rng(1)
    values = [gradients_like(WEIGHTS, random) for _ in range(2)]
    gradients = [gpu.arrays(each) for each in values]
    left, send = -1, Device.send

    def interrupt(*arguments: Any) -> None:
        nonlocal left
        send(*arguments)
        left -= 1
        if left == -1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Device, "send", interrupt)
    key, value = ("lr", 0.5) if change == "rate" else ("eps", 0.1)
    came, place = True, 0
    while came:
        pair.gpu_optimizer.step(gradients[0])
        pair.cpu.step(values[0])
        group = pair.gpu_optimizer.param_groups[0]
        before, which = group[key], int(change == "gradients")
        if change != "gradients":
            group[key] = value
        left, came = place, False
        try:
            pair.gpu_optimizer.step(gradients[which])
        except KeyboardInterrupt:
            came = True
        left = -1
        if not came:
            pair.cpu.param_groups[0][key] = group[key]
            pair.cpu.step(values[which])
        for optimizer in pair.both:
            optimizer.param_groups[0][key] = before
        pair.gpu_optimizer.step(gradients[0])
        pair.cpu.step(values[0])
        pair.check()
        place += 1
    assert place > 1
