"""Write ``gallery.md`` and its pictures from the schedules themselves: ``python docs/make_gallery.py``.

Summaries and formulas are those of the docstrings, so each is written once. What is decided here is which
example of a schedule is drawn.
"""

import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from numba_lamb import schedules
from numba_lamb.cli.plot import Curve, curve, draw, read

FAMILIES = (
    "decay",
    "piecewise",
    "tables",
    "warmup",
    "phases",
    "cosine",
    "layerwise",
    "samples",
    "paddle",
    "warmbooting",
    "compose",
)
"""Modules of `numba_lamb.schedules`, in the order of the page; others come after them."""

EXAMPLES = {
    "ExponentialDecayLR": [
        "ExponentialDecayLR(0.1, 0.5, 250)",
        "ExponentialDecayLR(0.1, 0.5, 250, is_stair=True)",
    ],
    "NaturalExpDecayLR": [
        "NaturalExpDecayLR(0.1, 0.003, 250)",
        "NaturalExpDecayLR(0.1, 0.003, 250, is_stair=True)",
    ],
    "InverseDecayLR": ["InverseDecayLR(0.1, 1.0, 250)", "InverseDecayLR(0.1, 1.0, 250, is_stair=True)"],
    "CosineDecayLR": ["CosineDecayLR(min_lr=0.01, max_lr=0.1, decay_steps=1000)"],
    "PolynomialDecayLR": [
        "PolynomialDecayLR(0.1, 0.01, 400, power=2.0)",
        "PolynomialDecayLR(0.1, 0.01, 400, power=2.0, update_decay_steps=True)",
    ],
    "WarmUpLR": ["WarmUpLR(0.1, warmup_steps=500)"],
    "piecewise_constant_lr": ["piecewise_constant_lr([300, 600, 1000], [0.1, 0.05, 0.01])"],
    "exponential_decay_lr": [
        "exponential_decay_lr(0.1, 0.5, total_step=1000, step_per_epoch=50, decay_epoch=5)",
    ],
    "natural_exp_decay_lr": [
        "natural_exp_decay_lr(0.1, 0.15, total_step=1000, step_per_epoch=50, decay_epoch=5)",
    ],
    "inverse_decay_lr": [
        "inverse_decay_lr(0.1, 1.0, total_step=1000, step_per_epoch=50, decay_epoch=5)",
    ],
    "cosine_decay_lr": [
        "cosine_decay_lr(0.0, 1e-3, total_step=1000, step_per_epoch=100, decay_epoch=10)",
    ],
    "polynomial_decay_lr": [
        "polynomial_decay_lr(0.1, 0.01, total_step=1000, step_per_epoch=50, decay_epoch=16, power=2.0)",
    ],
    "warmup_lr": ["warmup_lr(0.1, total_step=1000, step_per_epoch=50, warmup_epoch=10)"],
    "ConstantWarmUpLR": ["ConstantWarmUpLR(1e-3, warmup_steps=200, total_steps=1000)"],
    "LinearWithWarmUpLR": ["LinearWithWarmUpLR(1e-3, total_steps=1000, warmup_steps=100)"],
    "PolynomialWithWarmUpLR": [
        "PolynomialWithWarmUpLR(1e-3, total_steps=1000, warmup_steps=100, power=2.0)",
    ],
    "ConstantWithCoolDownLR": [
        "ConstantWithCoolDownLR(1e-3, warmup_steps=100, keep_steps=300, decay_steps=400, lr_end1=2e-4, "
        "final_steps=100, lr_end2=5e-5)",
    ],
    "WarmUpStableDecayLR": [
        "WarmUpStableDecayLR(1e-3, warmup_steps=100, total_steps=1000, decay_start_steps=700)",
    ],
    "CosineAnnealingLR": ["CosineAnnealingLR(0.1, t_max=500)"],
    "CosineAnnealingWarmRestarts": ["CosineAnnealingWarmRestarts(0.1, t_0=150, t_mult=2)"],
    "CosineWithRestartsAndWarmUpLR": [
        "CosineWithRestartsAndWarmUpLR(1e-3, warmup_steps=100, total_steps=1000, num_cycles=3)",
    ],
    "CosineWithWarmUpLR": ["CosineWithWarmUpLR(1e-3, warmup_steps=100, total_steps=1000)"],
    "LayerWiseCosineAnnealingLR": [
        "LayerWiseCosineAnnealingLR(0.1, lr_scale=1.0, t_max=400, eta_end=0.01)",
        "LayerWiseCosineAnnealingLR(0.1, lr_scale=0.5, t_max=400, eta_end=0.01)",
    ],
    "LearningRateWiseLayer": [
        "LearningRateWiseLayer(LinearWithWarmUpLR(1e-3, 1000, 100), 1.0)",
        "LearningRateWiseLayer(LinearWithWarmUpLR(1e-3, 1000, 100), 0.5)",
    ],
    "CaffePolyAnnealingLR": ["CaffePolyAnnealingLR(0.1, 32000, 2.0, batch_size=32)"],
    "ConstantAnnealingLR": ["ConstantAnnealingLR(0.1, batch_size=32)"],
    "DiscExpAnnealingLR": ["DiscExpAnnealingLR(0.1, 0.5, 7000, batch_size=32)"],
    "ExpAnnealingLR": ["ExpAnnealingLR(0.1, 0.5, 8000, batch_size=32)"],
    "LinearAnnealingLR": ["LinearAnnealingLR(0.1, 4e-6, 0.01, batch_size=32)"],
    "PolyAnnealingLR": ["PolyAnnealingLR(0.1, 2e-4, 0.75, batch_size=32)"],
    "ManualAnnealingLR": ['ManualAnnealingLR(0.1, "8000:1.0,16000:0.5,32000:0.1", batch_size=32)'],
    "PassManualAnnealingLR": [
        'PassManualAnnealingLR(0.1, "3:1.0,6:0.5,9:0.1", batch_size=32, samples_per_pass=3200)',
    ],
    "annealing": [
        'annealing(0.1, 32, "exp", 0.5, 8000)',
        'annealing(0.1, 32, "linear", 4e-6, 0.01)',
        'annealing(0.1, 32, "poly", 2e-4, 0.75)',
    ],
    "WarmbootingCosineLR": ["WarmbootingCosineLR(0.1, epochs=120, steps=[40, 80])"],
    "clamp": ["clamp(CosineAnnealingLR(0.1, 500), 0.02, 0.08)"],
    "hold_last": ["hold_last(warmup_lr(0.1, 550, 50, 10))"],
    "scale": ["WarmUpLR(0.1, 500)", "scale(WarmUpLR(0.1, 500), 0.5)"],
    "sequence": ["sequence([WarmUpLR(0.1, 200), 0.1, CosineDecayLR(0.01, 0.1, 400)], [200, 600])"],
}
"""What is drawn of each schedule."""

STEPS = {"CosineAnnealingWarmRestarts": 1050, "hold_last": 1000, "CosineAnnealingLR": 1500, "clamp": 1000}
STEPS |= {"LayerWiseCosineAnnealingLR": 1200, "ConstantWithCoolDownLR": 1000}
"""How much is drawn where that is not the schedule's own length."""

DRIVEN = "CosineAnnealingWarmbootingLR"
DRIVEN_ARGUMENTS: dict[str, Any] = {"epochs": 60, "steps": [20, 40], "batchs": 20, "warmup_epoch": 5}
"""The one scheduler that is no function of the step: it is drawn from the rates it sets."""

NO_RATES = {"LearningRateSchedule", "Schedule", "parse"}
"""Public names of `numba_lamb.schedules` that make no rates themselves."""

PICTURE_SIZE = (6.4, 2.8)


def main(folder: Path) -> None:
    """Write the page and the pictures into `folder`, and remove pictures of schedules that are no more."""
    pictures = folder / "gallery"
    pictures.mkdir(parents=True, exist_ok=True)
    wanted = set()
    for names in _families().values():
        for name in names:
            path = pictures / f"{name}.svg"
            wanted.add(path)
            draw(curves_of(name), path, legend=False, size=PICTURE_SIZE)
    for path in set(pictures.glob("*.svg")) - wanted:
        path.unlink()
    (folder / "gallery.md").write_text(page(), encoding="utf-8", newline="\n")


def curves_of(name: str) -> list[Curve]:
    """Return what is drawn of a schedule."""
    if name == DRIVEN:
        return [_driven_curve()]
    curves = []
    for expression in EXAMPLES[name]:
        schedule, _ = read(expression)
        curves.append(curve(expression, schedule, STEPS.get(name, schedule.horizon)))
    return curves


def _driven_curve() -> Curve:
    group: dict[str, Any] = {"lr": 0.1}
    optimizer = SimpleNamespace(param_groups=[group])
    scheduler = schedules.CosineAnnealingWarmbootingLR(optimizer, **DRIVEN_ARGUMENTS)
    rates = []
    for _ in range(DRIVEN_ARGUMENTS["epochs"]):
        scheduler.step()
        for _ in range(DRIVEN_ARGUMENTS["batchs"]):
            scheduler.step_batch()
            rates.append(group["lr"])
    return Curve(_driven_expression(), range(len(rates)), rates)


def _driven_expression() -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in DRIVEN_ARGUMENTS.items())
    return f"{DRIVEN}(optimizer, {arguments})"


def page() -> str:
    """Return the text of the page."""
    parts = [
        "# Gallery of schedules",
        "For those who choose a schedule: all of `numba_lamb.schedules`, with formula and picture. Steps $`t`$ "
        "count from 0. Each formula is that of the docstring, which also says what the arguments mean and "
        "what is refused. `numba-lamb plot` draws any other example.",
        "This page is written by `python docs/make_gallery.py`; change the docstrings or that file, not the page.",
        "\n".join(_contents()),
    ]
    for family, names in _families().items():
        title, notes = _docstring(_module(family))
        parts.append(f"## {title.removesuffix('.')}")
        parts += notes
        for name in names:
            parts += _section(name)
    return "\n\n".join(parts) + "\n"


def _contents() -> list[str]:
    lines = []
    for family, names in _families().items():
        title, _ = _docstring(_module(family))
        links = ", ".join(f"[`{name}`](#{name.lower()})" for name in names)
        lines.append(f"- {title} {links}")
    return lines


def _section(name: str) -> list[str]:
    summary, formula = _docstring(getattr(schedules, name))
    if name == DRIVEN:
        example = f"```python\n{_driven_expression()}\n```"
        caption = "The rate of every batch, with a base rate of 0.1:"
    else:
        words = ["numba-lamb", "plot", *EXAMPLES[name]]
        if name in STEPS:
            words += ["--steps", str(STEPS[name])]
        example = f"```sh\n{shlex.join(words)}\n```"
        caption = _caption(len(EXAMPLES[name]))
    return [f"### {name}", summary, *formula, caption, example, f"![{name}](gallery/{name}.svg)"]


def _caption(curves: int) -> str:
    lines = ("", ", solid and dashed", ", solid, dashed and dotted")
    return f"Drawn below{lines[curves - 1]}:"


def _families() -> dict[str, list[str]]:
    """Return the public names by the module they are written in."""
    families: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for name in schedules.__all__:
        if name not in NO_RATES:
            family = getattr(schedules, name).__module__.rpartition(".")[2]
            families.setdefault(family, []).append(name)
    return {family: names for family, names in families.items() if names}


def _module(family: str) -> ModuleType:
    return importlib.import_module(f"numba_lamb.schedules.{family}")


def _docstring(item: object) -> tuple[str, list[str]]:
    """Return the summary line of a docstring, and what follows up to its first section, as Markdown."""
    paragraphs = re.split(r"\n\s*\n", inspect.getdoc(item) or "")
    for end, paragraph in enumerate(paragraphs):
        if re.match(r"\w+\n-+(\n|$)", paragraph):
            paragraphs = paragraphs[:end]
            break
    summary, *rest = (_markdown(paragraph) for paragraph in paragraphs)
    return summary, rest


def _markdown(paragraph: str) -> str:
    """Return one paragraph of reStructuredText, of the few kinds used in docstrings, as Markdown."""
    if paragraph.startswith(".. math::"):
        formula = inspect.cleandoc(paragraph.removeprefix(".. math::"))
        return f"```math\n{formula}\n```"
    if paragraph.startswith("==="):
        return _table(paragraph.splitlines())
    text = " ".join(paragraph.split())
    text = re.sub(r":math:`([^`]*)`", r"$\\MATH\1\\MATH$", text)
    text = re.sub(r":(?:class|func):`([^`]*)`", r"`\1`", text)
    text = re.sub(r":meth:`([^`]*)`", r"`\1()`", text)
    text = text.replace("``", "`")
    return text.replace("\\MATH", "`")


def _table(lines: list[str]) -> str:
    starts = [match.start() for match in re.finditer("=+", lines[0])]
    ends = [*starts[1:], None]
    rows = [
        [_markdown(line[start:end].strip()) for start, end in zip(starts, ends, strict=True)]
        for line in lines
        if not line.startswith("===")
    ]
    rows.insert(1, ["---"] * len(starts))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
