"""`torch.amp.GradScaler`: scaled gradients, and a step that overflows."""

import copy
from typing import Any

import pytest
import torch

from numba_lamb.torch import Lamb, Lars, Momentum
from tests.integrations.trainer_toys import (
    DECAY,
    assert_same_bits,
    batches,
    loss_of,
    moved,
    network,
    train,
    weights,
)

SCALE = 1024.0
STEPS = 8
OVERFLOWS = 3
"""The step whose gradients overflow."""


def optimizer_of(kind: type, model: Any, **options: Any) -> Any:
    return kind(model.parameters(), lr=0.02, weight_decay=DECAY, **options)


def overflow(model: Any) -> None:
    next(model.parameters()).grad.view(-1)[1] = float("inf")


def frozen_state(optimizer: Any) -> Any:
    return copy.deepcopy(optimizer.state_dict()["state"])


def train_scaled(model: Any, optimizer: Any, clip: float | None = None) -> list[float]:
    """Train with a scaler, with gradients that are infinite at one step; return the scale after each step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=100)
    scales = []
    for step, batch in enumerate(batches(STEPS)):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        before = weights(model), frozen_state(optimizer)
        if step == OVERFLOWS:
            overflow(model)
        if clip is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if step == OVERFLOWS:
            assert_same_bits((weights(model), frozen_state(optimizer)), before)
        else:
            assert moved(weights(model), before[0])
    return scales


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("fused_amp", [False, True])
@pytest.mark.parametrize("kind", [Lamb, Lars, Momentum])
def test_scaled_training_is_as_unscaled(kind: type, fused_amp: bool, clip: float | None) -> None:
    plain, scaled = network(), network()
    plain_optimizer = optimizer_of(kind, plain)
    data = [batch for step, batch in enumerate(batches(STEPS)) if step != OVERFLOWS]

    def clip_gradients() -> None:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), clip)

    train(plain, plain_optimizer, data, before_step=clip_gradients)
    optimizer = optimizer_of(kind, scaled, fused_amp=fused_amp)
    scales = train_scaled(scaled, optimizer, clip)
    assert scales == [SCALE] * OVERFLOWS + [SCALE / 2] * (STEPS - OVERFLOWS)
    assert_same_bits(weights(scaled), weights(plain))
    assert_same_bits(optimizer.state_dict()["state"], plain_optimizer.state_dict()["state"])


@pytest.mark.parametrize("fused_amp", [False, True])
def test_the_scaler_behaves_as_with_adamw(fused_amp: bool) -> None:
    model, other = network(), network()
    adamw = torch.optim.AdamW(other.parameters(), lr=0.02, weight_decay=DECAY, fused=fused_amp)
    assert train_scaled(other, adamw) == train_scaled(model, optimizer_of(Lamb, model, fused_amp=fused_amp))
