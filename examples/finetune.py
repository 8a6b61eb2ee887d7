"""Train a small character-level language model with LAMB at a large batch, on the CPU, in about a minute."""

import argparse
import time

import corpus
import torch
from model import CharTransformer
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader

from numba_lamb.torch import Lamb

LENGTH = 64
SHOWN = ("tokens.weight", "blocks.0.query.weight", "blocks.1.down.weight", "blocks.1.norm2.weight")
LEARNING_RATES = {"lamb": 0.03, "adamw": 0.01}


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """Return LAMB or AdamW with weight decay on matrices only, not on biases and norms."""
    lr = LEARNING_RATES[name]
    if name == "lamb":
        # Named parameters are what filters and opt.stats() have names from.
        named = model.named_parameters()
        return Lamb(named, lr=lr, weight_decay=0.01, decay_filter=lambda layer: layer.ndim > 1)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=lr)


def make_scheduler(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return a tenth of the steps of linear warm-up, then a cosine down to 0."""
    warmup = max(1, steps // 10)
    rise = LinearLR(optimizer, 1 / warmup, total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, max(1, steps - warmup))
    return SequentialLR(optimizer, [rise, fall], milestones=[warmup])


@torch.no_grad()
def evaluate(model: nn.Module, windows: corpus.Windows) -> float:
    """Return the mean loss over all windows, in nats for each character."""
    losses = [len(b["labels"]) * model(**b)["loss"] for b in DataLoader(windows, batch_size=512)]
    return float(sum(losses)) / len(windows)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, windows: corpus.Windows, steps: int, batch: int
) -> None:
    """Take `steps` steps on random batches, and print the loss and the rate of about ten of them."""
    scheduler = make_scheduler(optimizer, steps)
    sampler = torch.utils.data.RandomSampler(windows, replacement=True, num_samples=steps * batch)
    for step, inputs in enumerate(DataLoader(windows, batch, sampler=sampler), start=1):
        loss = model(**inputs)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % max(1, steps // 10) == 0:
            rate = scheduler.get_last_lr()[0]
            print(f"step {step:4d}   lr {rate:.5f}   loss {loss.item():.3f}", flush=True)
        scheduler.step()


def print_trust_ratios(optimizer: Lamb) -> None:
    """Print what the last step made of some layers: it moved each by lr times trust ratio times |update|."""
    stats = optimizer.stats()
    print(f"\n{'layer':22} {'|w|':>8} {'|update|':>9} {'trust ratio':>12}")
    for name in SHOWN:
        weight, update = stats[f"weight_norm/{name}"], stats[f"update_norm/{name}"]
        ratio = stats[f"trust_ratio/{name}"]
        print(f"{name:22} {weight:8.3f} {update:9.3f} {ratio:12.4f}")


def main() -> None:
    """Parse the options, train, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=512, help=f"windows of {LENGTH} characters in a step")
    parser.add_argument("--optimizer", choices=LEARNING_RATES, default="lamb")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    alphabet, train_set, held_out = corpus.load(LENGTH)
    model = CharTransformer(len(alphabet), LENGTH)
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{len(train_set.text)} characters to train on, {len(held_out.text)} held out, {size} parameters, "
        f"{args.steps} steps of {args.batch} x {LENGTH} characters, {args.optimizer}, seed {args.seed}"
    )
    optimizer = make_optimizer(args.optimizer, model)
    before = evaluate(model, held_out)
    start = time.perf_counter()
    train(model, optimizer, train_set, args.steps, args.batch)
    seconds = time.perf_counter() - start
    after = evaluate(model, held_out)
    print(f"\nheld-out loss {before:.3f} before, {after:.3f} after {seconds:.0f} s of training")
    if args.optimizer == "lamb":
        print_trust_ratios(optimizer)


if __name__ == "__main__":
    main()
