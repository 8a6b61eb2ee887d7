"""Measure what storage in fewer bits does to training, and write it into ``half-precision.md``.

``python docs/measure_half.py`` trains (about ten minutes on two cores) and keeps what it finds in
``docs/results/half.json``; with ``--write`` alone it draws ``half.png`` and writes the page's tables from that.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS, PAGE, PICTURE = DOCS / "results" / "half.json", DOCS / "half-precision.md", DOCS / "half.png"
SEEDS = {"digits": 5, "long": 5, "text": 3}
TASKS = {
    "digits": "digits, full batch, 40 steps",
    "long": "digits, 3,000 small steps",
    "text": "characters, batch 64, 120 steps",
}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "bfloat16, split master": ("bfloat16", {}),
    "bfloat16, split master, bfloat16 moments": ("bfloat16", {"moments": "bfloat16"}),
    "bfloat16, split master, 8-bit moments": ("bfloat16", {"moments": "int8"}),
    "bfloat16, no master, bfloat16 moments": ("bfloat16", {"master": None, "moments": "bfloat16"}),
    "bfloat16, no master, to nearest": ("nearest", {}),
}
"""How parameters are stored, and options. The last is no option of the package: it is what goes wrong."""


def measure() -> dict[str, Any]:
    """Train every way, and return losses and accuracies by task, way and seed."""
    import platform

    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {"torch": torch.__version__, "processor": processor(), "tasks": {}}
    found["python"] = platform.python_version()
    for task, run in (("digits", _digits), ("long", _long), ("text", _text)):
        found["tasks"][task] = {way: [run(way, seed) for seed in range(SEEDS[task])] for way in WAYS}
        print(task, {way: runs[0] for way, runs in found["tasks"][task].items()}, flush=True)
    found["errors"] = _errors()
    return found


def processor() -> str:
    """Return the processor's name as ``numba-lamb info`` has it."""
    from numba_lamb.cli.bench.machine import cpu_model

    return str(cpu_model())


def _optimizer(way: str, model: Any, lr: float, seed: int) -> tuple[Any, Callable[[], None]]:
    """Return the optimizer of a way, and what is done after each of its steps."""
    import torch

    from numba_lamb.torch import Lamb

    stored, options = WAYS[way]
    if stored == "bfloat16":
        model.bfloat16()
    if stored == "nearest":
        # Weights of bfloat16 that are float32 tensors: what is lost is lost in every step.
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.bfloat16())
    opt = Lamb(model.named_parameters(), lr=lr, weight_decay=0.01, seed=seed, **options)

    def after() -> None:
        if stored == "nearest":
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(p.bfloat16())

    return opt, after


def _digits(way: str, seed: int, steps: int = 40, batch: int = 1437, lr: float = 0.04) -> dict[str, float]:
    import torch
    from torch import nn

    from numba_lamb.cli.train.data import load

    data = load().test
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    opt, after = _optimizer(way, model, lr, seed)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    dtype = next(model.parameters()).dtype
    x, y = torch.from_numpy(data.inputs).to(dtype), torch.from_numpy(data.targets.argmax(axis=1))
    for _ in range(steps):
        own = torch.randperm(len(x))[:batch]
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[own]).float(), y[own]).backward()
        opt.step()
        after()
        rates.step()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(x).float(), y))
        guessed = model(torch.from_numpy(data.held_out_inputs).to(dtype)).argmax(dim=1).numpy()
    return {"loss": loss, "accuracy": 100 * float((guessed == data.held_out_labels).mean())}


def _long(way: str, seed: int) -> dict[str, float]:
    return _digits(way, seed, steps=3000, batch=128, lr=0.001)


def _text(way: str, seed: int) -> dict[str, float]:
    import torch

    sys.path.insert(0, str(DOCS.parent / "examples"))
    import corpus
    from model import CharTransformer

    torch.manual_seed(seed)
    alphabet, train_set, held_out = corpus.load(64)
    model = CharTransformer(len(alphabet), 64)
    opt, after = _optimizer(way, model, 0.03, seed)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 120)
    loader = torch.utils.data.DataLoader
    sampler = torch.utils.data.RandomSampler(train_set, replacement=True, num_samples=120 * 64)
    for inputs in loader(train_set, 64, sampler=sampler):
        opt.zero_grad()
        model(**inputs)["loss"].backward()
        opt.step()
        after()
        rates.step()
    with torch.no_grad():
        losses = [float(model(**b)["loss"]) * len(b["labels"]) for b in loader(held_out, batch_size=512)]
    return {"loss": sum(losses) / len(held_out)}


def _errors() -> dict[str, float]:
    """Return how far weights are from the float64 formula after 20 steps in bfloat16, as a share of their way."""
    import numpy as np
    import torch

    from numba_lamb.numerics import reference
    from numba_lamb.torch import Lamb

    draws = torch.Generator().manual_seed(0)
    start = torch.randn(200, 100, generator=draws).bfloat16()
    gradients = [torch.randn(200, 100, generator=draws).bfloat16() for _ in range(20)]
    w, m, v = start.double().numpy(), np.zeros((200, 100)), np.zeros((200, 100))
    for t, g in enumerate(gradients, start=1):
        w, m, v = reference.lamb(w, g.double().numpy(), m, v, t, learning_rate=0.002, weight_decay=0.01)[:3]
    moved = float(np.linalg.norm(w - start.double().numpy()))

    def distance(make: Callable[[Any], Any], master: Callable[[Any, Any], Any]) -> float:
        p = torch.nn.Parameter(start.clone())
        opt = make(p)
        for g in gradients:
            p.grad = g.clone()
            opt.step()
        return float(np.linalg.norm(master(p, opt).detach().double().numpy() - w)) / moved

    def joined(p: Any, opt: Any) -> Any:
        high = (p.detach().view(torch.int16).to(torch.int64) & 0xFFFF) << 16
        return (high + opt.state[p]["remainder"]).to(torch.int32).view(torch.float32)

    def itself(p: Any, opt: Any) -> Any:
        return p

    given = {"lr": 0.002, "weight_decay": 0.01}
    found = {
        "ours, split master": distance(lambda p: Lamb([p], **given), joined),
        "ours, split master, the parameter itself": distance(lambda p: Lamb([p], **given), itself),
        "ours, split master, 8-bit moments": distance(lambda p: Lamb([p], **given, moments="int8"), joined),
        "ours, no master": distance(lambda p: Lamb([p], **given, master=None), itself),
    }
    sys.path.insert(0, str(DOCS.parent))
    from importlib.metadata import version

    from pytorch_optimizer import Lamb as other

    from tests.peers.test_migration_standins import timm

    theirs = {**given, "max_grad_norm": None, "always_adapt": True}
    found[f"timm {version('timm')}"] = distance(lambda p: timm("Lamb")([p], **theirs), itself)
    theirs = {**given, "weight_decouple": False, "max_grad_norm": 0.0}
    found[f"pytorch_optimizer {version('pytorch_optimizer')}"] = distance(
        lambda p: other([p], **theirs), itself
    )
    return found


# -- the page --------------------------------------------------------------------------------------------------


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Return the page's tables by name."""
    head = [
        "stored",
        "digits: loss, test accuracy",
        "small steps: loss, test accuracy",
        "characters: held-out loss",
    ]
    rows = [head, ["---", "---:", "---:", "---:"]]
    for way in WAYS:
        cells = [
            f"{_mean(found, 'digits', way, 'loss', '.4f')}, {_mean(found, 'digits', way, 'accuracy', '.1f')} %",
            f"{_mean(found, 'long', way, 'loss', '.5f')}, {_mean(found, 'long', way, 'accuracy', '.1f')} %",
            _mean(found, "text", way, "loss", ".3f"),
        ]
        rows.append([way, *cells])
    errors = [["LAMB in bfloat16, 20 steps", "distance from the float64 formula"], ["---", "---:"]]
    errors += [[name, f"{100 * error:.2g} %"] for name, error in found["errors"].items()]
    return {"convergence": _table(rows), "errors": _table(errors)}


def _mean(found: dict[str, Any], task: str, way: str, key: str, form: str) -> str:
    values = [run[key] for run in found["tasks"][task][way]]
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_tables(page: str, found: dict[str, Any]) -> str:
    """Return the page with its tables from these results."""
    for name, table in tables(found).items():
        pattern = rf"(<!-- {name}: made by docs/measure_half.py -->\n\n).*?(<!-- end of {name} -->)"
        page, count = re.subn(
            pattern, lambda m, table=table: f"{m[1]}{table}\n\n{m[2]}", page, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"{PAGE} must have one place for {name}, got {count}")
    return page


def draw(found: dict[str, Any]) -> None:
    """Draw the losses of every way and seed."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.2), sharey=True, layout="constrained")
    for axis, (task, title) in zip(axes, TASKS.items(), strict=True):
        for height, way in enumerate(reversed(WAYS)):
            losses = [run["loss"] for run in found["tasks"][task][way]]
            wrong = WAYS[way][0] == "nearest"
            axis.plot(losses, [height] * len(losses), "o", color="#c44e00" if wrong else "#0072b2", alpha=0.6)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("held-out loss" if task == "text" else "training loss")
        if task == "long":
            axis.set_xscale("log")
        else:
            axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", color="#dddddd")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(WAYS)), list(reversed(WAYS)))
    figure.savefig(PICTURE, dpi=130)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="measure nothing")
    if not parser.parse_args().write:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
    found = json.loads(RESULTS.read_text())
    PAGE.write_text(with_tables(PAGE.read_text(), found))
    draw(found)


if __name__ == "__main__":
    main()
