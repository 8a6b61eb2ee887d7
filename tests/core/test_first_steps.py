"""The table of first steps is that of the optimizers themselves."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from numba_lamb.numerics.first_steps import LAYERS, first_step_lengths, layer_and_gradient
from numba_lamb.numerics.variants import LAMB_VARIANTS, LARS_VARIANTS

OPTIONS: dict[str, dict[str, Any]] = {
    "lamb": {"lr": 0.01, "weight_decay": 0.01, "eps": 1e-6},
    "lars": {"lr": 1.0, "weight_decay": 1e-4, "trust_coefficient": 1e-3},
}


def moved(method: str, variant: str) -> dict[str, float]:
    torch = pytest.importorskip("torch", reason="the peers extra is not installed")
    from numba_lamb.torch import Lamb, Lars

    found = {name: torch.nn.Parameter(torch.from_numpy(layer_and_gradient(name)[0])) for name in LAYERS}
    before = {name: p.detach().numpy().copy() for name, p in found.items()}
    kind: Any = Lamb if method == "lamb" else Lars
    opt = kind(
        found.items(),
        variant=variant,
        decay_filter=lambda layer: LAYERS[layer.name].decayed,
        **OPTIONS[method],
    )
    for name, p in found.items():
        p.grad = torch.from_numpy(layer_and_gradient(name)[1])
    opt.step()
    return {name: float(np.linalg.norm(p.detach().numpy() - before[name])) for name, p in found.items()}


@pytest.mark.parametrize("method", ["lamb", "lars"])
def test_lengths_are_the_optimizers(method: Literal["lamb", "lars"]) -> None:
    table = first_step_lengths(method)
    assert list(table) == list(LAMB_VARIANTS if method == "lamb" else LARS_VARIANTS)
    papers = moved(method, "paper")
    for variant, row in table.items():
        own = moved(method, variant)
        for layer, length in row.items():
            if math.isinf(length):
                assert papers[layer] == 0 < own[layer]
            else:
                assert own[layer] == pytest.approx(length * papers[layer], rel=1e-9, abs=1e-15), (
                    variant,
                    layer,
                )


def test_what_is_known_of_some() -> None:
    lamb, lars = first_step_lengths("lamb"), first_step_lengths("lars")
    assert set(lamb["paper"].values()) == set(lars["paper"].values()) == {1.0}
    assert lamb["deepspeed"]["weight"] == pytest.approx(math.sqrt(0.001) / 0.1, rel=1e-3)
    assert lamb["pytorch_optimizer"]["weight"] == pytest.approx(10, rel=0.02)
    assert lamb["torch_optimizer"]["heavy weight"] == pytest.approx(10 / 1280, rel=0.03)
    assert lamb["lambc"]["heavy weight"] == pytest.approx(1 / 20, rel=0.03)
    assert lamb["apex"]["bias"] == pytest.approx(10, rel=1e-3)
    assert [name for name, row in lars.items() if row["bias from 0"] == 1] == ["mindspore", "paper"]


SHOWN = ["weight", "heavy weight", "bias", "bias from 0"]
VARIANTS: dict[str, Any] = {"lamb": LAMB_VARIANTS, "lars": LARS_VARIANTS}


def shown(method: Literal["lamb", "lars"]) -> str:
    """One row for each formula whose lengths are not all the paper's."""
    table = first_step_lengths(method)
    seen: list[Any] = []
    lines = [f"| {method.upper()} | {' | '.join(SHOWN)} |", "| --- |" + " ---: |" * len(SHOWN)]
    for name, formula in VARIANTS[method].items():
        cells = [f"{table[name][layer]:.3g}" for layer in SHOWN]
        if formula not in seen and set(cells) != {"1"}:
            lines.append(f'| `"{name}"` | {" | ".join(cells)} |')
        seen.append(formula)
    return "\n".join(lines)


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "moving-in.md").read_text()
    tables = page.partition("<!-- first steps -->\n")[2].partition("\n<!-- end of first steps -->")[0]
    assert tables == f"{shown('lamb')}\n\n{shown('lars')}"
