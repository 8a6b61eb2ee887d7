"""Lightning: fit, gradient clipping and checkpoints, as by hand."""

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
    train,
    weights,
)

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    # What it says on machines with more cores than this needs, or with a GPU.
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]

lightning = pytest.importorskip("lightning")

SIZE = 8
EPOCH = 4
EPOCHS = 3
STEPS = EPOCHS * EPOCH
CLIP = 0.1


class Module(lightning.LightningModule):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.body = network()
        self.options = options

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return loss_of(self.body, batch)

    def configure_optimizers(self) -> Any:
        optimizer = Lamb(self.body.named_parameters(), lr=RATE, weight_decay=DECAY, **self.options)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(
    folder: Path,
    clip: float | None = None,
    resume: Path | None = None,
    precision: str = "32-true",
    **options: Any,
) -> tuple[Any, Any]:
    """Fit as users do: Lightning calls the step with a closure."""
    module = Module(**options)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows(EPOCH * SIZE)), batch_size=SIZE)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        gradient_clip_val=clip,
        precision=precision,
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=resume)
    return trainer, module


@pytest.mark.parametrize("clip", [None, CLIP])
def test_fits_as_by_hand(tmp_path: Path, clip: float | None) -> None:
    trainer, module = fit(tmp_path, clip)
    model = network()
    optimizer = Lamb(model.named_parameters(), lr=RATE, weight_decay=DECAY)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def clip_gradients() -> None:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)

    train(
        model, optimizer, EPOCHS * batches(EPOCH, SIZE), before_step=clip_gradients, after_step=scheduler.step
    )
    assert trainer.global_step == STEPS
    assert_same_bits(weights(module.body), weights(model))
    assert_same_bits(trainer.optimizers[0].state_dict()["state"], optimizer.state_dict()["state"])
    assert moved(weights(model), weights(network()))


def test_clipping_made_a_difference(tmp_path: Path) -> None:
    assert moved(weights(fit(tmp_path / "a", CLIP)[1]), weights(fit(tmp_path / "b")[1]))


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    straight_trainer, straight = fit(tmp_path / "a", CLIP)
    resumed_trainer, resumed = fit(tmp_path / "b", CLIP, resume=tmp_path / "a" / f"step={2 * EPOCH}.ckpt")
    assert resumed_trainer.global_step == STEPS
    assert_same_bits(weights(resumed), weights(straight))
    assert_same_bits(
        resumed_trainer.optimizers[0].state_dict()["state"],
        straight_trainer.optimizers[0].state_dict()["state"],
    )
    assert moved(weights(straight), weights(Module()))


def test_bfloat16_goes_on_with_its_masters(tmp_path: Path) -> None:
    options: dict[str, Any] = {"precision": "bf16-true", "moments": "bfloat16"}
    straight_trainer, straight = fit(tmp_path / "a", **options)
    resumed_trainer, resumed = fit(
        tmp_path / "b", resume=tmp_path / "a" / f"step={2 * EPOCH}.ckpt", **options
    )
    assert_same_bits(weights(resumed), weights(straight))
    state = straight_trainer.optimizers[0].state_dict()["state"]
    assert [value.dtype for value in state[0].values()] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
        torch.int16,
    ]
    assert_same_bits(resumed_trainer.optimizers[0].state_dict()["state"], state)


def test_mixed_precision_clips_for_a_step_that_does_not_unscale(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(tmp_path / "a", CLIP, precision="bf16-mixed", fused_amp=True)
    _, module = fit(tmp_path / "b", CLIP, precision="bf16-mixed")
    _, alone = fit(tmp_path / "c", precision="bf16-mixed", fused_amp=True, max_grad_norm=CLIP)
    torch.testing.assert_close(weights(alone.body), weights(module.body), rtol=1e-4, atol=1e-5)
