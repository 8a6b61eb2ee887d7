"""`History` of PyTorch's optimizers, whose tables are made anew when a parameter gets its first gradient."""

from typing import Any

import numpy as np
import pytest
import torch

import numba_lamb as nl
from numba_lamb.torch import Lamb, Lars, Momentum


def model_and_gradients() -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    return model, torch.randn(5, 4)


def step(opt: Any, model: Any, inputs: Any, scale: float = 1.0) -> None:
    opt.zero_grad()
    (scale * model(inputs)).square().sum().backward()
    opt.step()


@pytest.mark.parametrize("kind", [Lamb, Lars, Momentum])
def test_a_record_says_what_stats_says(kind: Any) -> None:
    model, inputs = model_and_gradients()
    opt = kind(model.named_parameters(), 0.01, max_grad_norm=1.0)
    history = nl.History(opt)
    for _ in range(3):
        step(opt, model, inputs)
        history.record()
        told = {
            k: v for k, v in history.rows(last=1)[0].items() if k not in ("step", "clip_factor", "skipped")
        }
        assert told == dict(opt.stats())
    assert history.layers == tuple(name for name, _ in model.named_parameters())
    np.testing.assert_array_equal(history.clip_factor, np.minimum(1, 1 / history.grad_norm))


def test_a_layer_begins_with_its_first_gradient() -> None:
    model, inputs = model_and_gradients()
    model[0].requires_grad_(False)
    opt = Lamb(model.named_parameters(), 0.01, nonfinite="skip")
    history = nl.History(opt)
    history.record()
    step(opt, model, inputs)
    history.record()
    model[0].requires_grad_(True)
    for scale in (1.0, np.inf, 1.0):
        step(opt, model, inputs, scale)
        history.record()
    assert history.layers == ("0.weight", "0.bias", "1.weight", "1.bias")
    updated = ~np.isnan(history.trust_ratio)
    assert updated.tolist() == [[False] * 4, [False, False, True, True], [True] * 4, [False] * 4, [True] * 4]
    assert history.skipped.tolist() == [False, False, False, True, False]


def test_a_state_that_is_loaded_and_a_limit_by_group() -> None:
    model, inputs = model_and_gradients()
    groups = [
        {"params": [*model[0].named_parameters()], "max_grad_norm": 0.5},
        {"params": [*model[1].named_parameters()]},
    ]
    opt = Lamb(groups, 0.01)
    history = nl.History(opt)
    step(opt, model, inputs)
    history.record()
    opt.load_state_dict(opt.state_dict())
    history.record()
    step(opt, model, inputs)
    history.record()
    assert np.isnan(history.trust_ratio).all(axis=1).tolist() == [False, True, False]
    np.testing.assert_array_equal(history.clip_factor[[0, 2]], 0.5 / history.grad_norm[[0, 2]])
