"""DynamicLossScale on a GPU: the last kernel of a step writes it, as the CPU would, and nothing waits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import Gpu, Pair
from tests.cuda.test_waiting import waits

SHAPES = {"a": (300,), "b": (3, 7)}
GOOD = (True, False, False, True, True, True, False, True, True, True, True)


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}


def gradients(step: int, scale: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step + 1)
    found = {name: (random.standard_normal(shape) * scale).astype("f4") for name, shape in SHAPES.items()}
    if not GOOD[step]:
        found["a"][-1] = np.inf
    return found


def scales(pair: Pair) -> list[nl.DynamicLossScale]:
    given = {"initial": 8.0, "interval": 2, "minimum": 4.0, "maximum": 16.0, "backoff": 0.75}
    return [nl.DynamicLossScale(each, **given) for each in pair.both]


@pytest.mark.parametrize("limit", [None, 0.5])
def test_it_follows_as_on_the_cpu(gpu: Gpu, limit: float | None, tmp_path: Path) -> None:
    pair = Pair(gpu, weights(), lambda params: nl.Lamb(params, 0.1, nonfinite="skip", max_grad_norm=limit))
    host, there = scales(pair)
    values = []
    for step in range(len(GOOD)):
        given = gradients(step, host.value)
        assert host.step(given) is GOOD[step]
        assert there.step(gpu.arrays(given))
        assert there.state_dict() == host.state_dict()
        values.append(host.value)
    assert values == [8.0, 6.0, 4.5, 4.5, 9.0, 9.0, 6.75, 6.75, 13.5, 13.5, 16.0]
    pair.check()
    # A step of the optimizer alone has no scale.
    pair.step(gradients(0, 1.0))
    pair.check()
    assert there.state_dict() == host.state_dict()
    nl.save(tmp_path / "file.npz", pair.gpu_optimizer, there)
    host.load_state_dict({"value": 5.0, "steps": 0})
    nl.load(tmp_path / "file.npz", pair.cpu, host)
    assert host.state_dict() == there.state_dict()
    there.load_state_dict({"value": 5.0, "steps": 1})
    assert there.value == 5.0


def test_nothing_waits_for_it(gpu: Gpu) -> None:
    optimizer = nl.Lamb(gpu.arrays(weights()), 0.1, nonfinite="skip")
    scale = nl.DynamicLossScale(optimizer)
    given: Any = gpu.arrays(gradients(0, 1.0))
    scale.step(given)
    assert waits(gpu, lambda: [scale.step(given) for _ in range(3)]) == 0
    interface = scale.array.__cuda_array_interface__
    assert (interface["shape"], interface["typestr"]) == ((), "<f4")
