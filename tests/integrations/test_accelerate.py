"""Accelerate: accumulation, clipping, `save_state` and `load_state`, as by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from numba_lamb.torch import Lamb
from tests.integrations.trainer_toys import (
    DECAY,
    RATE,
    assert_same_bits,
    batches,
    loss_of,
    moved,
    network,
    rows,
    weights,
)

pytestmark = pytest.mark.integrations

accelerate = pytest.importorskip("accelerate")

SIZE = 8
ACCUMULATE = 2
CLIP = 0.1
BATCHES = 12


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps what it is set to for the whole process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


class Session:
    """A network, its optimizer with a schedule, and its data, prepared by an accelerator."""

    def __init__(self) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
        model = network()
        optimizer = Lamb(model.named_parameters(), lr=RATE, weight_decay=DECAY)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        data = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*rows(BATCHES * SIZE)), batch_size=SIZE
        )
        self.model, self.optimizer, self.scheduler, self.data = self.accelerator.prepare(
            model, optimizer, scheduler, data
        )

    def train(self, first: int, last: int) -> None:
        for number, batch in enumerate(self.data):
            if not first <= number < last:
                continue
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(loss_of(self.model, batch))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()

    @property
    def state(self) -> Any:
        return self.optimizer.state_dict()["state"]


def test_trains_as_by_hand() -> None:
    session = Session()
    session.train(0, BATCHES)
    model = network()
    optimizer = Lamb(model.named_parameters(), lr=RATE, weight_decay=DECAY)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for number, batch in enumerate(batches(BATCHES, SIZE)):
        (loss_of(model, batch) / ACCUMULATE).backward()
        if (number + 1) % ACCUMULATE == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert_same_bits(weights(session.model), weights(model))
    assert_same_bits(session.state, optimizer.state_dict()["state"])
    assert moved(weights(model), weights(network()))


def test_training_goes_on_from_a_saved_state(tmp_path: Path) -> None:
    session = Session()
    session.train(0, 8)
    session.accelerator.save_state(str(tmp_path))
    before = weights(session.model)
    session.train(8, BATCHES)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    resumed = Session()
    resumed.accelerator.load_state(str(tmp_path))
    assert_same_bits(weights(resumed.model), before)
    resumed.train(8, BATCHES)
    assert_same_bits(weights(resumed.model), weights(session.model))
    assert_same_bits(resumed.state, session.state)
    assert moved(weights(session.model), before)


def test_the_state_can_be_loaded_into_the_session_that_saved_it(tmp_path: Path) -> None:
    session = Session()
    session.train(0, 4)
    session.accelerator.save_state(str(tmp_path))
    session.train(4, 8)
    first = weights(session.model)
    session.accelerator.load_state(str(tmp_path))
    session.train(4, 8)
    assert_same_bits(weights(session.model), first)
