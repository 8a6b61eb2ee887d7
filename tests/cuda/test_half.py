"""Arrays in fewer bits on a GPU: the CPU's bytes, however parameters, moments and gradients are stored."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import Gpu, Pair

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
pytestmark = pytest.mark.slow
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
F16, F32, F64 = (np.dtype(kind) for kind in ("f2", "f4", "f8"))
SHAPES = {"long": (4096 + 1100,), "conv": (3, 4, 50), "one": (1,), "row": (128,), "odd": (129,)}
"""Layers of more than a chunk, that end in a row, with one, and one past it."""
MAKERS: dict[str, Callable[..., Any]] = {
    "lamb": lambda params, **stored: nl.Lamb(
        params, 0.05, weight_decay=0.1, max_grad_norm=3.0, nonfinite="skip", **stored
    ),
    "decoupled": lambda params, **stored: nl.Lamb(
        params,
        0.05,
        weight_decay=0.1,
        decoupled_decay=True,
        maximize=True,
        adapt_filter=lambda layer: layer.size != 129,
        **stored,
    ),
    "lans": lambda params, **stored: nl.Lans(params, 0.05, **stored),
    "lars": lambda params, **stored: nl.Lars(nl.Momentum(params, 0.5, 0.9, weight_decay=0.01, **stored)),
    "nesterov": lambda params, **stored: nl.Momentum(
        params, 0.5, 0.9, weight_decay=0.01, use_nesterov=True, loss_scale=8.0, **stored
    ),
}
STORED: list[dict[str, Any]] = [
    {"moments": None},
    {"moments": "bfloat16"},
    {"moments": "int8"},
    {"moments": "int8", "master": None, "seed": 2**40 + 3},
]


def grouped(params: dict[str, Any]) -> list[dict[str, Any]]:
    conv = {"params": {"conv": params["conv"]}, "grad_centralization": True}
    return [conv, {"params": {name: array for name, array in params.items() if name != "conv"}}]


def random_arrays(random: np.random.Generator, dtypes: Any) -> dict[str, Any]:
    return {
        name: random.standard_normal(shape).astype(dtypes[k % len(dtypes)])
        for k, (name, shape) in enumerate(SHAPES.items())
    }


@pytest.mark.parametrize("dtype", [BFLOAT16, F16], ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("maker", MAKERS)
def test_steps_give_the_cpus_bytes(gpu: Gpu, maker: str, stored: dict[str, Any], dtype: Any) -> None:
    random = np.random.default_rng(1)
    pair = Pair(
        gpu, random_arrays(random, [dtype]), lambda params: MAKERS[maker](grouped(params), **stored)
    )
    for step in range(3):
        pair.step(random_arrays(random, [[dtype], [F32], [BFLOAT16, F64, F16]][step]))
    pair.check()
