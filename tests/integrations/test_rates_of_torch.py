"""PyTorch's learning-rate schedulers with our optimizer: as if the same rates were set by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from numba_lamb.torch import Lamb
from tests.integrations.trainer_toys import DECAY, assert_same_bits, batches, moved, network, train, weights

lr_scheduler = torch.optim.lr_scheduler
STEPS = 12
Betas = tuple[float, ...]


def sequential(optimizer: Any) -> Any:
    warmup = lr_scheduler.LinearLR(optimizer, 0.25, total_iters=4)
    return lr_scheduler.SequentialLR(
        optimizer, [warmup, lr_scheduler.ExponentialLR(optimizer, 0.8)], milestones=[4]
    )


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=STEPS + 1),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, base_lr=0.01, max_lr=0.05, step_size_up=3),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2),
    "SequentialLR": sequential,
}


def advance(scheduler: Any) -> None:
    """Take a step of the schedule; nothing ever improves for the one that watches a loss."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0)
    else:
        scheduler.step()


def rates_with_torch(name: str, lr: Any) -> list[tuple[float, Betas]]:
    """The rates and betas that the scheduler gives to an optimizer of PyTorch's own."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = SCHEDULERS[name](optimizer)
    found = []

    def note() -> None:
        group = optimizer.param_groups[0]
        found.append((float(group["lr"]), tuple(float(beta) for beta in group["betas"])))

    train(model, optimizer, batches(STEPS), before_step=note, after_step=lambda: advance(scheduler))
    return found


def train_by_hand(model: Any, rates: list[tuple[float, Betas]]) -> Any:
    """Train with a new optimizer for every step, which is made with that step's rate; return the state."""
    state: dict[int, Any] = {}
    for batch, (lr, betas) in zip(batches(STEPS), rates, strict=True):
        optimizer = Lamb(model.parameters(), lr=lr, betas=betas, weight_decay=DECAY)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        train(model, optimizer, [batch])
        state = optimizer.state_dict()["state"]
    return state


@pytest.mark.parametrize("kind", ["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_is_as_good_as_rates_set_by_hand(name: str, kind: str) -> None:
    def rate() -> Any:
        return torch.tensor(0.03) if kind == "tensor" else 0.03

    scheduled, by_hand, constant = network(), network(), network()
    optimizer = Lamb(scheduled.parameters(), lr=rate(), weight_decay=DECAY)
    scheduler = SCHEDULERS[name](optimizer)
    train(scheduled, optimizer, batches(STEPS), after_step=lambda: advance(scheduler))

    rates = rates_with_torch(name, rate())
    assert len(set(rates)) > 2
    assert (len({betas for _, betas in rates}) > 1) == (name in {"OneCycleLR", "CyclicLR"})
    state = train_by_hand(by_hand, rates)
    assert_same_bits(weights(scheduled), weights(by_hand))
    assert_same_bits(optimizer.state_dict()["state"], state)

    train(constant, Lamb(constant.parameters(), lr=rate(), weight_decay=DECAY), batches(STEPS))
    assert moved(weights(scheduled), weights(constant))


def test_a_schedule_goes_on_from_a_checkpoint() -> None:
    straight, resumed = network(), network()
    optimizer = Lamb(straight.parameters(), lr=0.03)
    scheduler = sequential(optimizer)
    data = batches(STEPS)
    train(straight, optimizer, data[:5], after_step=lambda: advance(scheduler))
    resumed.load_state_dict(straight.state_dict())
    optimizer2 = Lamb(resumed.parameters(), lr=0.03)
    scheduler2 = sequential(optimizer2)
    # A copy, as of a file: the tensors of a plain state_dict() are the first optimizer's.
    optimizer2.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    scheduler2.load_state_dict(scheduler.state_dict())
    train(straight, optimizer, data[5:], after_step=lambda: advance(scheduler))
    train(resumed, optimizer2, data[5:], after_step=lambda: advance(scheduler2))
    assert_same_bits(weights(straight), weights(resumed))
    assert scheduler.get_last_lr() == scheduler2.get_last_lr()
