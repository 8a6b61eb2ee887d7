"""Lans for PyTorch: the NumPy API's bytes, the specification, and what the contract asks of a class."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

import numba_lamb as nl
from numba_lamb.numerics import reference
from numba_lamb.torch import Lamb, Lans, Lars, Momentum
from tests.helpers import relative_to_largest

SHAPES = {"a": (129,), "b": (3, 5), "c": (4097,), "d": ()}


def arrays(seed: int, dtype: str = "f4") -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.standard_normal(shape), dtype=dtype) for name, shape in SHAPES.items()}


def tensors(values: dict[str, np.ndarray]) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in values.items()}


def give(params: dict[str, torch.nn.Parameter], gradients: dict[str, Any]) -> None:
    for name, p in params.items():
        p.grad = torch.from_numpy(gradients[name].copy())


def groups(held: dict[str, Any]) -> list[dict[str, Any]]:
    items = list(held.items())
    return [
        {"params": items[:2], "lr": 0.1, "weight_decay": 0.3},
        {"params": items[2:], "lr": 0.02, "weight_decay": 0.0},
    ]


def held(params: dict[str, torch.nn.Parameter]) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in params.items()}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_bytes_are_those_of_numpy(dtype: str) -> None:
    options = {"weight_norm_bounds": (0.0, 9.0), "adapt_filter": lambda layer: layer.ndim != 2}
    plain = arrays(1, dtype)
    params = tensors(plain)
    one = nl.Lans(groups(plain), 0.5, 0.8, 0.95, 1e-4, nonfinite="propagate", **options)
    other = Lans(groups(params), betas=(0.8, 0.95), eps=1e-4, **options)
    for step in range(3):
        gradients = arrays(2 + step, dtype)
        one.step(gradients)
        give(params, gradients)
        other.step()
    written = one.state_dict()["layers"]
    for name, p in params.items():
        assert p.detach().numpy().tobytes() == plain[name].tobytes()
        assert other.state[p]["exp_avg"].numpy().tobytes() == written[name]["m"].tobytes()
        assert other.state[p]["exp_avg_sq"].numpy().tobytes() == written[name]["v"].tobytes()
        assert other.state[p]["step"] == 3
    assert dict(other.stats()) == dict(one.stats())


def test_it_follows_the_reference() -> None:
    values = arrays(1, "f8")
    params = tensors(values)
    opt = Lans(params.items(), lr=0.01, weight_decay=0.1)
    expected = {name: (value, 0 * value, 0 * value) for name, value in values.items()}
    for t in range(1, 6):
        gradients = arrays(10 + t, "f8")
        give(params, gradients)
        opt.step()
        for name, gradient in gradients.items():
            made = reference.lans(
                expected[name][0], gradient, *expected[name][1:], t, learning_rate=0.01, weight_decay=0.1
            )
            expected[name] = made[:3]
    for name, p in params.items():
        assert relative_to_largest(p.detach().numpy(), expected[name][0]) < 1e-13


def test_training_goes_on_from_a_state_dict() -> None:
    one, two = tensors(arrays(1)), tensors(arrays(1))
    opt, other = Lans(groups(one), betas=(0.8, 0.95)), Lans(groups(two), betas=(0.8, 0.95))
    for step in range(4):
        gradients = arrays(3 + step)
        give(one, gradients)
        give(two, gradients)
        opt.step()
        other.step()
        if step == 1:
            state = copy.deepcopy(other.state_dict())
            other = Lans(two.items())
            with pytest.raises(ValueError, match="group"):
                other.load_state_dict(state)
            other = Lans(groups(two))
            other.load_state_dict(state)
            assert other.param_groups[0]["betas"] == (0.8, 0.95)
        if step == 2:
            other = Lans.from_optimizer(other)
    assert held(one) == held(two)


def test_groups_are_live_and_can_be_added() -> None:
    one, two = tensors(arrays(1)), tensors(arrays(1))
    opt = Lans([one["a"], one["b"]], lr=0.1)
    opt.add_param_group({"params": [one["c"], one["d"]], "lr": 0.02, "eps": 1e-3})
    twin = Lans(
        [
            {"params": [two["a"], two["b"]], "lr": 0.1},
            {"params": [two["c"], two["d"]], "lr": 0.02, "eps": 1e-3},
        ]
    )
    for step in range(2):
        gradients = arrays(5 + step)
        for params, each in ((one, opt), (two, twin)):
            give(params, gradients)
            each.step()
            each.param_groups[1]["lr"] = 0.5
            each.param_groups[0]["betas"] = (0.5, 0.9)
    assert held(one) == held(two)
    with pytest.raises(ValueError, match="'max_grad_norm' of group 2 is no option of a group of Lans"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "max_grad_norm": 1.0})
    with pytest.raises(TypeError, match=r"'max_grad_norm' is no option of numba_lamb\.torch\.Lans"):
        Lans(one.items(), max_grad_norm=1.0)  # type: ignore[call-arg]


def test_each_class_knows_its_own_state() -> None:
    params = tensors(arrays(1))
    made = {kind.__name__: kind(params.items()) for kind in (Lamb, Lans, Lars, Momentum)}
    for name, opt in made.items():
        for other, taker in made.items():
            if name == other:
                taker.load_state_dict(opt.state_dict())
                continue
            with pytest.raises(
                ValueError, match=f"{other} cannot continue numba_lamb.torch.{name}, which {name} continues"
            ):
                taker.load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match=r"Lans cannot continue torch\.optim\.Adam.*, which Lamb continues"):
        Lans.from_optimizer(torch.optim.AdamW(params.values()))


def test_a_loss_scale_changes_no_bit() -> None:
    one, two = tensors(arrays(1)), tensors(arrays(1))
    opt, other = Lans(one.items(), lr=0.1), Lans(two.items(), lr=0.1)
    gradients = arrays(2)
    give(one, gradients)
    give(two, {name: np.asarray(gradient * np.float32(1024)) for name, gradient in gradients.items()})
    opt.step()
    other.step()
    assert held(one) == held(two)
