"""The Hugging Face `Trainer`: training as by hand, evaluation, checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from numba_lamb.torch import Lamb, Lars
from tests.integrations.trainer_toys import (
    DECAY,
    RATE,
    assert_same_bits,
    batches,
    loss_of,
    moved,
    network,
    weights,
)

pytestmark = pytest.mark.integrations

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

SIZE = 8


class Toy(torch.nn.Module):
    """The network as the `Trainer` wants it: with the loss first."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, inputs: Any, labels: Any) -> Any:
        logits = self.body(inputs.to(self.body[0].weight.dtype)).float()
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows_of(data: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"inputs": row, "labels": label}
        for inputs, labels in data
        for row, label in zip(inputs, labels, strict=True)
    ]


def trainer_of(
    folder: Path, steps: int, kind: type = Lamb, model: Any = None, optimizers: Any = None, **arguments: Any
) -> Any:
    """Make a trainer without what would differ from training by hand, unless the arguments ask for it."""
    defaults = {
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
    }
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=SIZE,
        weight_decay=DECAY,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        **{**defaults, **arguments},
    )
    # The rate is an argument of the optimizer: the trainer does not hand on its own.
    given = {"optimizers": optimizers} if optimizers else {"optimizer_cls_and_kwargs": (kind, {"lr": RATE})}
    return transformers.Trainer(
        model=model or Toy(),
        args=settings,
        train_dataset=rows_of(batches(12, SIZE)),
        eval_dataset=rows_of(batches(4, SIZE, seed=2)),
        **given,
    )


def groups_as_trainer(model: Any) -> list[dict[str, Any]]:
    """Group what the `Trainer` gives weight decay to, and then biases and norms."""
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


def train_by_hand(model: Any, optimizer: Any, steps: int, clip: float = 0.0, accumulate: int = 1) -> None:
    data = iter(batches(12, SIZE))
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            (loss_of(model, next(data)) / accumulate).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


@pytest.mark.parametrize("kind", [Lamb, Lars])
@pytest.mark.parametrize(("clip", "accumulate"), [(0.0, 1), (0.1, 1), (0.1, 2)])
def test_trains_as_by_hand(tmp_path: Path, kind: type, clip: float, accumulate: int) -> None:
    trainer = trainer_of(tmp_path, 6, kind, max_grad_norm=clip, gradient_accumulation_steps=accumulate)
    trainer.train()
    model = Toy()
    train_by_hand(model.body, kind(groups_as_trainer(model), lr=RATE), 6, clip, accumulate)
    assert_same_bits(weights(trainer.model), weights(model))
    assert moved(weights(model), weights(Toy()))


def test_an_optimizer_of_ones_own_can_be_passed(tmp_path: Path) -> None:
    model = Toy()
    optimizer = Lamb(
        model.named_parameters(), lr=RATE, weight_decay=DECAY, decay_filter=lambda layer: layer.ndim > 1
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = trainer_of(tmp_path, 6, model=model, optimizers=(optimizer, scheduler))
    trainer.train()
    by_class = trainer_of(tmp_path, 6)
    by_class.train()
    assert_same_bits(weights(model), weights(by_class.model))
    assert "trust_ratio/body.0.weight" in optimizer.stats()


def test_evaluation_improves(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 12)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_resumed_is_as_straight(tmp_path: Path, sampling: str) -> None:
    trainer_of(
        tmp_path / "a", 8, save_strategy="steps", save_steps=8, train_sampling_strategy=sampling
    ).train()
    resumed = trainer_of(tmp_path / "a", 12, train_sampling_strategy=sampling)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-8"))
    straight = trainer_of(tmp_path / "b", 12, train_sampling_strategy=sampling)
    straight.train()
    assert resumed.state.global_step == straight.state.global_step == 12
    assert_same_bits(weights(resumed.model), weights(straight.model))
    assert_same_bits(resumed.optimizer.state_dict()["state"], straight.optimizer.state_dict()["state"])


def test_bfloat16_is_resumed_with_its_masters(tmp_path: Path) -> None:
    straight = trainer_of(tmp_path, 12, model=Toy().bfloat16(), save_strategy="steps", save_steps=8)
    straight.train()
    resumed = trainer_of(tmp_path, 12, model=Toy().bfloat16())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert_same_bits(weights(resumed.model), weights(straight.model))
    state = straight.optimizer.state_dict()["state"]
    assert {key: value.dtype for key, value in state[0].items()} == {
        "step": torch.float32,
        "exp_avg": torch.float32,
        "exp_avg_sq": torch.float32,
        "remainder": torch.int16,
    }
    assert_same_bits(resumed.optimizer.state_dict()["state"], state)


def test_resumed_with_a_schedule_and_clipping(tmp_path: Path) -> None:
    arguments = {"lr_scheduler_type": "cosine", "warmup_steps": 3, "max_grad_norm": 0.1}
    straight = trainer_of(tmp_path, 12, save_strategy="steps", save_steps=8, **arguments)
    straight.train()
    resumed = trainer_of(tmp_path, 12, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert_same_bits(weights(resumed.model), weights(straight.model))
    constant = trainer_of(tmp_path, 12)
    constant.train()
    assert moved(weights(straight.model), weights(constant.model))
