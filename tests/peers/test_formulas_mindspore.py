"""MindSpore's LAMB on a GPU and of its release 1.x, by name: recorded trajectories, replayed."""

from typing import Any

import numpy as np
import pytest
import torch

from numba_lamb.torch import Lamb
from tests.helpers import float32, golden_arrays, golden_json, relative_to_largest

RECORDS = {record["name"]: record for record in golden_json("optimizers.json")}
CASES = ["plain_wd0", "plain_wd", "hyper", "magnitudes", "magnitudes_wd", "zeros_wd0", "zeros_wd"]
VARIANTS = {"mindspore-gpu": "gpu", "mindspore-1x": "r1", "mindspore": "ascend"}


def is_exempt(name: str) -> bool:
    return "beta" in name or "gamma" in name


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("case", CASES)
def test_lamb_is_that_of_mindspore(case: str, variant: str) -> None:
    record, data, key = RECORDS[f"lamb_{case}"], golden_arrays(f"lamb_{case}.npz"), VARIANTS[variant]
    hyper = record["hyper"]
    params = {
        name: torch.nn.Parameter(torch.from_numpy(data[f"init/{name}"].copy())) for name in record["order"]
    }
    betas = tuple(float32(hyper.get(name, value)) for name, value in (("beta1", 0.9), ("beta2", 0.999)))
    opt = Lamb(
        params.items(),
        lr=float32(hyper["lr"]),
        betas=betas,
        eps=float32(hyper.get("eps", 1e-6)),
        weight_decay=float32(hyper["wd"]),
        variant=variant,
        decay_filter=lambda layer: not is_exempt(layer.name),
    )
    compared = [(k, name) for k, name in enumerate(record["order"]) if not departs(key, name, data, hyper)]
    assert len(compared) >= 2
    # Float32's 1 - b2^t cancels from r*u, but not where r is bounded, nor where eps in the root is large beside v.
    limit = 1e-5 if case.startswith("magnitudes") and variant != "mindspore" else 1e-6
    for step in range(hyper["steps"]):
        for name, param in params.items():
            param.grad = torch.from_numpy(data[f"grad/{name}"][step].copy())
        opt.step()
        stats = opt.stats()
        for k, name in compared:
            found = params[name].detach().numpy()
            assert relative_to_largest(found, data[f"{key}/w/{name}"][step]) <= limit, (step, name)
            ratio = float(data[f"{key}/ratio"][step, k])
            assert stats[f"trust_ratio/{name}"] == pytest.approx(ratio, rel=3e-5), (step, name)


def departs(key: str, name: str, data: Any, hyper: Any) -> bool:
    """What these releases do by mistake: a signed element for a norm, decay in the norm of what is not decayed."""
    return (key == "gpu" and data[f"init/{name}"].size == 1) or (
        key == "r1" and is_exempt(name) and hyper["wd"] > 0
    )


def test_of_one_layer_the_ratios_are_those_of_the_eps_in_the_root() -> None:
    """Small gradients: eps 1e-6 in the root is a floor of 1e-3, so that the ratio grows up to its bound."""
    w = torch.nn.Parameter(torch.full((4, 4), 0.1))
    ratios = {}
    for variant in ("mindspore", "mindspore-gpu"):
        opt = Lamb([w], lr=0.0, variant=variant)
        w.grad = torch.full((4, 4), 1e-4)
        opt.step()
        ratios[variant] = opt.stats()["trust_ratio/param_0"]
    assert ratios["mindspore"] == pytest.approx(0.1 * (1 + 1e-6 / 1e-4), rel=1e-4)
    assert ratios["mindspore-gpu"] == pytest.approx(0.1 * np.sqrt(1e-8 + 1e-6) / 1e-4, rel=1e-4)
