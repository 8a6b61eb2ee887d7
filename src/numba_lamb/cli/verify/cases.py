"""The optimizers of ``numba-lamb verify``: every method of the table, in every formula, with many options."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import numba_lamb
from numba_lamb.cli.verify.inputs import DTYPES, SHAPES
from numba_lamb.methods.options import Method

STEPS = 1000
RATE, DECAY = 2.0**-7, 2.0**-6
POISONED_STEP, POISONED = 12, "float32 above a row"
"""Where the gradient with an infinity is."""


@dataclass(frozen=True)
class Case:
    """One optimizer over all layers.

    Attributes
    ----------
    name : str
        For messages.
    options : mapping
        Arguments of the constructors; those that a class does not have are left out.
    others : mapping
        Options of the second group, which has every second layer.
    kernels : mapping
        Options of the third group, which has the layers of at least 3 dimensions.
    has_gaps : bool
        Whether each layer is without a gradient in one step of five.
    is_poisoned : bool
        Whether a gradient of `POISONED_STEP` has an infinity.
    stored : str or None
        The dtype of parameters that are made of float32 layers, which alone take part then; None for all layers.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    kernels: Mapping[str, Any] = field(default_factory=dict)
    has_gaps: bool = False
    is_poisoned: bool = False
    stored: str | None = None

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of inputs whose layers take part."""
        return DTYPES if self.stored is None else ("float32",)


# Rates are quotients and products, which are the same everywhere; cosines and powers are not.
_COMMON = (
    Case("groups", others={"lr": RATE / 4, "weight_decay": DECAY}, kernels={"grad_centralization": True}),
    Case(
        "clip and schedule",
        {
            "learning_rate": lambda step: RATE * (STEPS - step) / STEPS,
            "weight_decay": DECAY,
            "max_grad_norm": 16.0,
            "loss_scale": 0.75,
            "use_nesterov": True,
        },
    ),
    Case(
        "gradients missing",
        {"learning_rate": RATE / (1.0 + np.arange(STEPS) / 64.0), "weight_decay": DECAY, "beta1": 0.8125},
        kernels={"maximize": True},
        has_gaps=True,
    ),
    Case(
        "a step skipped",
        {
            "weight_decay": DECAY,
            "nonfinite": "skip",
            "coefficient": 0.0625,
            "trust_clip": True,
            "use_clip": True,
        },
        others={"weight_decay": 0.0},
        is_poisoned=True,
    ),
)


def cases_of(method: Method) -> tuple[Case, ...]:
    """Return the cases of an optimizer: what all have, and each formula once, with weight decay and without."""
    formulas: dict[Any, str] = {}
    for name, formula in method.variants.items():
        formulas.setdefault(formula, name)
    return (
        *_COMMON,
        *(
            Case(f"variant {name}", {"variant": name, "weight_decay": DECAY}, others={"weight_decay": 0.0})
            for name in formulas.values()
        ),
    )


_DECAYED: dict[str, Any] = {"weight_decay": DECAY, "nonfinite": "skip"}
STORED = (
    Case("bfloat16 moments", {**_DECAYED, "moments": "bfloat16"}, stored="float32", has_gaps=True),
    Case("8-bit moments", {**_DECAYED, "moments": "int8", "seed": 1}, stored="float32", is_poisoned=True),
    Case("float16 with a master", {"weight_decay": DECAY}, stored="float16"),
    Case(
        "float16 without",
        {"master": None, "moments": "int8", "seed": 2},
        others={"moments": "bfloat16"},
        stored="float16",
    ),
    # Split masters are bfloat16 alone, which NumPy has not: `tests/core/test_half.py` compares them with float32.
)
"""What is stored in fewer bits, which every optimizer has alike."""


def make(method: Method, case: Case, params: Mapping[str, Any], num_threads: int | None) -> Any:
    """Return the optimizer of a case over parameters by layer name."""
    kind = getattr(numba_lamb, method.name)
    base = numba_lamb.Momentum if kind is numba_lamb.Lars else kind
    options = {"learning_rate": RATE, "momentum": 0.9, **case.options, "num_threads": num_threads}
    groups: list[dict[str, Any]] = [{"params": {}, **own} for own in ({}, case.others, case.kernels)]
    for dtype in case.dtypes:
        for index, (name, shape) in enumerate(SHAPES.items()):
            group = groups[2 if len(shape) > 2 else index % 2]
            group["params"][f"{dtype} {name}"] = params[f"{dtype} {name}"]
    found = base(groups, **_fitting(base, options))
    return found if kind is base else kind(found, **_fitting(kind, options))


def _fitting(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(kind).parameters
    return {name: value for name, value in options.items() if name in known}
