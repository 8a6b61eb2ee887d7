"""The same model, text and optimizer through the Hugging Face `Trainer`: train, evaluate, stop, resume."""

import argparse
import tempfile

import corpus
import torch
from model import CharTransformer
from transformers import Trainer, TrainingArguments

from numba_lamb.torch import Lamb

LENGTH = 64


def make_trainer(folder: str, steps: int, batch: int, seed: int) -> Trainer:
    """Return a new model, with weights from `seed`, in a trainer that writes a checkpoint at half the steps."""
    torch.manual_seed(seed)
    alphabet, train_set, held_out = corpus.load(LENGTH)
    settings = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=512,
        prediction_loss_only=True,
        # The trainer gives it to matrices and embeddings, and none to biases and norms.
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        save_steps=max(1, steps // 2),
        logging_steps=max(1, steps // 10),
        seed=seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
    return Trainer(
        model=CharTransformer(len(alphabet), LENGTH),
        args=settings,
        train_dataset=train_set,
        eval_dataset=held_out,
        # The trainer has no name for LAMB; the rate goes here, since it hands on none of its own.
        optimizer_cls_and_kwargs=(Lamb, {"lr": 0.03}),
    )


def main() -> None:
    """Parse the options, train, and train again from the checkpoint at half the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=512, help=f"windows of {LENGTH} characters in a step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, args.steps, args.batch, args.seed)
        print(f"held-out loss {trainer.evaluate()['eval_loss']:.3f} before")
        trainer.train()
        print(f"held-out loss {trainer.evaluate()['eval_loss']:.3f} after {trainer.state.global_step} steps")

        half = max(1, args.steps // 2)
        resumed = make_trainer(folder, args.steps, args.batch, args.seed)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{half}")
        loss = resumed.evaluate()["eval_loss"]
        print(f"held-out loss {loss:.3f} after {resumed.state.global_step} steps, resumed at {half}")

    pairs = zip(trainer.model.parameters(), resumed.model.parameters(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    print("weights are the same, bit for bit" if same else "weights differ")


if __name__ == "__main__":
    main()
