"""Both front ends give the same bytes for every option of every variant, and every option matters."""

import math
from collections.abc import Callable
from dataclasses import asdict
from inspect import Parameter, signature
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.methods.checks import Check
from numba_lamb.methods.options import Method, Option
from numba_lamb.methods.table import METHODS
from tests.helpers import installed
from tests.options import FRONTS, STORED, Group, good_values, gradients_of

torch = installed("torch")
needs_torch = pytest.mark.skipif(not torch, reason="the peers extra is not installed")
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
FEW = (("Lamb", "paper"), ("Lamb", "pytorch_optimizer"), ("Lars", "mindspore"), ("Lars", "timm"))
"""What the short run of the tests compares."""


def distinct(method: Method) -> list[str | None]:
    """Return one name of each formula: packages that share one share its columns too."""
    first: dict[str, str | None] = {}
    for name, formula in method.variants.items():
        first.setdefault(repr(asdict(formula)), name)
    return [*first.values()] or [None]


VARIANTS = [
    pytest.param(name, variant, marks=[] if variant is None or (name, variant) in FEW else [pytest.mark.slow])
    for name, method in METHODS.items()
    for variant in distinct(method)
]
OTHERS = {
    "lr": 0.03,
    "weight_decay": 0.25,
    "betas": (0.8, 0.95),
    "momentum": 0.75,
    "nesterov": True,
    "max_grad_norm": 2.0,
    "nonfinite": "skip",
}
"""What the second group has of its own."""


def takes(check: Check, value: Any) -> bool:
    try:
        check("", "", value)
    except (TypeError, ValueError):
        return False
    return True


def shared_values(option: Option) -> list[Any]:
    """Return the good values of an option that the NumPy API takes too."""
    check = option.source_check or option.check
    return [
        value
        for value in good_values(option.check)
        if all(takes(check, one) for one in (value if option.name == "betas" else [value]))
    ]


class Run:
    """A front end's steps, and what they left."""

    def __init__(self, front: Any, method: Method, groups: list[Group], **options: Any) -> None:
        self.front = front
        copies = [({name: w.copy() for name, w in arrays.items()}, own) for arrays, own in groups]
        self.arrays = {name: w for arrays, _ in copies for name, w in arrays.items()}
        self.opt = front.make(method, copies, **options)

    def step(self, step: int, missing: str = "", zero: str = "", spoilt: str = "") -> str:
        """Take a step and return what it raised; gradients depend on the weights, so that errors do not vanish."""
        gradients: dict[str, Any] = gradients_of(self.arrays, step)
        if zero:
            gradients[zero][...] = 0
        if spoilt:
            gradients[spoilt].reshape(-1)[0] = np.nan
        if missing:
            gradients[missing] = None
        try:
            self.front.step(self.opt, gradients)
        except FloatingPointError as error:
            return str(error)
        return ""

    def result(self) -> Any:
        return self.front.result(self.opt)


SHAPES = [(), (7,), (40, 30), (5, 3, 2, 2), (9000,)]
layouts = st.fixed_dictionaries(
    {
        "layers": st.lists(
            st.tuples(
                st.sampled_from(SHAPES),
                st.sampled_from([np.float32, np.float64]),
                st.sampled_from([1.0, 1.0, 0.0, 30.0]),
            ),
            min_size=2,
            max_size=4,
        ),
        "decay": st.sampled_from([0.0, 0.1]),
        "mixed": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)


def groups_of(method: Method, layout: dict[str, Any], stored: Any = None) -> list[Group]:
    """Two groups with different options, all `stored` in one dtype; the second one's can be centralized."""
    rng = np.random.default_rng(layout["seed"])
    first = {
        f"layer{k}": np.asarray(rng.standard_normal(shape) * scale, dtype)
        for k, (shape, dtype, scale) in enumerate(layout["layers"])
    }
    second = {
        "conv": rng.standard_normal((5, 3, 2, 2)).astype(np.float32),
        "other": rng.standard_normal((2, 1, 3)),
    }
    if stored is not None:
        first, second = ({name: w.astype(stored) for name, w in held.items()} for held in (first, second))
    own = {name: value for name, value in OTHERS.items() if name in method.names} if layout["mixed"] else {}
    return [(first, {}), (second, own)]


@needs_torch
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
@settings(max_examples=3, derandomize=True, database=None, phases=[Phase.generate])
@given(layout=layouts)
def test_both_front_ends_give_the_same_bytes(name: str, variant: str | None, layout: dict[str, Any]) -> None:
    method = METHODS[name]
    chosen = {} if variant is None else {"variant": variant}
    for option in method.options:
        for value in shared_values(option):
            if option.name == "variant":
                continue
            if (
                option.name == "trust_clip"
                and value
                and getattr(method.variants[variant], "rate_inside", False)
            ):
                continue
            groups = groups_of(method, layout, STORED.get(option.name))
            # A layer that has no rows cannot be centralized.
            target = groups[1 if option.name == "grad_centralization" else layout["seed"] % 2][1]
            target[option.name] = value
            shared = {"weight_decay": layout["decay"], "nonfinite": "propagate", **chosen}
            runs = [Run(front, method, groups, **shared) for front in FRONTS]
            for step in range(5):
                for run in runs:
                    run.step(
                        step,
                        missing="layer0" if step == 1 else "",
                        zero="layer1" if step % 2 else "",
                    )
            one, other = (run.result() for run in runs)
            assert one == other, (option.name, value)


@needs_torch
@pytest.mark.parametrize(("name", "variant"), [("Lamb", "apex"), ("Lamb", "timm"), ("Lars", "timm")])
def test_layers_adapt_in_the_steps_in_which_they_are_decayed(name: str, variant: str) -> None:
    """The decay is a schedule of NumPy's front end, and is set by hand at each step in PyTorch's."""

    def decay(step: int) -> float:
        return 0.25 * (step % 2)

    layout = {"layers": [((40, 30), np.float32, 1.0)], "mixed": False, "seed": 3}
    numpy_front, torch_front = (
        Run(front, METHODS[name], groups_of(METHODS[name], layout), variant=variant) for front in FRONTS
    )
    numpy_front.opt.weight_decay = decay
    for step in range(4):
        for group in torch_front.opt.param_groups:
            group["weight_decay"] = decay(step)
        for run in (numpy_front, torch_front):
            run.step(step)
        assert numpy_front.result() == torch_front.result()
        for stats in (numpy_front.opt.stats(), torch_front.opt.stats()):
            adapted = [stats[f"trust_ratio/{layer}"] != 1 for layer in ("layer0", "conv", "other")]
            assert adapted == [step % 2 == 1] * 3


# -- every option matters --------------------------------------------------------------------------------------


def rich(method: Method) -> list[Group]:
    """Layers of every kind: convolutions, a long one with a large norm, zeros, a vector; decayed and not."""
    rng = np.random.default_rng(7)
    first = {
        "conv": rng.standard_normal((5, 3, 2)),
        "kernel": np.linspace(-1, 1, 24).reshape(2, 3, 4) * 30,
        "zeros": np.zeros((2, 2, 2)),
    }
    second = {
        "norm": rng.standard_normal((3, 2, 4)),
        "tiny": np.full((1, 2, 2), 1e-4),
        "large": np.full((1, 2, 2), 100.0),
    }
    return [(first, {"weight_decay": 0.3}), (second, {"weight_decay": 0.0})]


def outcome(front: Any, method: Method, option: Option, value: Any) -> Any:
    """What a training run comes to with one value of an option."""
    groups = rich(method)
    if option.name in STORED:
        groups = [
            ({name: w.astype(STORED[option.name]) for name, w in arrays.items()}, own)
            for arrays, own in groups
        ]
    # A filter has layers to tell apart, and a value that is not finite a step to show what is done about it.
    if option.name in ("decay_filter", "adapt_filter"):
        groups[0][0]["vector"] = np.linspace(1, 2, 5)
    base = {"lr": 0.1, "nonfinite": "propagate", **({"moments": "int8"} if option.name == "seed" else {})}
    if option.name in ("lr", "weight_decay"):
        groups = [(arrays, {}) for arrays, _ in groups]
    run = Run(front, method, groups, **{**base, option.name: value})
    raised = [run.step(step, zero="conv" if step == 1 else "") for step in range(3)]
    if option.name == "nonfinite":
        raised.append(run.step(3, spoilt="norm"))
    return run.result(), raised


def meaning(method: Method, option: Option, value: Any, front: Any) -> Any:
    """What a value stands for, equal for values that are to do the same."""
    variant = None
    if method.variants:
        default = next(other.default for other in method.options if other.name == "variant")
        variant = method.variants["mindspore" if front.name == "numpy" and method.name == "Lars" else default]
    if option.name == "variant":
        return repr(asdict(method.variants[value]))
    if option.in_variant and value is None:
        return repr(getattr(variant, option.name))
    return repr(value)


@methods
@pytest.mark.parametrize("front", FRONTS, ids=lambda front: front.name)
def test_every_value_of_every_option_has_an_effect(front: Any, method: Method) -> None:
    for option in method.options:
        found: dict[Any, Any] = {}
        for value in shared_values(option):
            told = outcome(front, method, option, value)
            stands_for = meaning(method, option, value, front)
            assert found.setdefault(stands_for, told) == told, (option.name, value)
        assert len(found) > 1, option.name
        results = [repr(told) for told in found.values()]
        assert len({*results}) == len(results), (option.name, [*found])


# -- defaults --------------------------------------------------------------------------------------------------


def defaults_of(kind: Callable[..., Any]) -> dict[str, Any]:
    return {
        name: parameter.default
        for name, parameter in signature(kind).parameters.items()
        if name not in ("params", "optimizer")
    }


@needs_torch
@methods
def test_pytorchs_signatures_have_the_declared_defaults(method: Method) -> None:
    from numba_lamb import torch as nt

    found = defaults_of(getattr(nt, method.name))
    assert found.pop("fused_amp") is False
    assert found == {option.name: option.default for option in method.options}
    assert [*found] == [*method.names]
    made = getattr(nt, method.name)([torch.nn.Parameter(torch.ones(2))])
    assert made.defaults == found


NUMPYS_OWN = {
    ("Lamb", "learning_rate"): Parameter.empty,
    ("Lans", "learning_rate"): Parameter.empty,
    ("Momentum", "learning_rate"): Parameter.empty,
    ("Momentum", "momentum"): Parameter.empty,
    ("Lars", "variant"): "mindspore",
    **{(name, "nonfinite"): None for name in ("Lamb", "Lans", "Momentum")},
}
"""Defaults of the NumPy API that are not the declared ones: those of its sources."""
BESIDE_OPTIONS = {
    "Lamb": {"num_threads": None, "capture_steps": None, "comm": None},
    "Lans": {"num_threads": None, "capture_steps": None, "comm": None},
    "Momentum": {"loss_scale": 1.0, "num_threads": None, "capture_steps": None, "comm": None},
    "Lars": {"lars_filter": None},
}


@methods
def test_numpys_signatures_have_the_declared_defaults(method: Method) -> None:
    found = defaults_of(getattr(nl, method.name))
    expected: dict[str, Any] = {}
    for option in method.options:
        values = option.default if len(option.numpy_names) > 1 else [option.default]
        expected.update(zip(option.numpy_names, values, strict=True))
    if method.name == "Lars":
        shared = {name for option in METHODS["Momentum"].options for name in option.numpy_names}
        expected = {name: value for name, value in expected.items() if name not in shared}
    expected |= {name: value for (kind, name), value in NUMPYS_OWN.items() if kind == method.name}
    assert found == expected | BESIDE_OPTIONS[method.name]


def test_the_declared_ranges_are_the_documented_ones() -> None:
    """The table of refusals follows the declarations, so that these are written down once more."""
    edges = {
        ("Lamb", "betas"): ([(0, 0.999999)], [(1.0, 0.5), (0.5, -1e-9)]),
        ("Lamb", "eps"): ([0, 1e300], [-1e-300, math.inf]),
        ("Lamb", "max_grad_norm"): ([None, 1e-300], [0.0]),
        ("Lans", "betas"): ([(0, 0.999999)], [(1.0, 0.5), (0.5, -1e-9)]),
        ("Lans", "eps"): ([0, 1e300], [-1e-300, math.inf]),
        ("Lars", "eps"): ([None, 0], [-1e-300]),
        ("Lars", "momentum"): ([0, 1.5], [-0.1]),
        ("Lars", "trust_coefficient"): ([0, 2], [-0.1]),
        ("Momentum", "momentum"): ([0, 1.5], [-0.1]),
        ("Momentum", "lr"): ([0, 3.3e38, -1e-12], [3.5e38, -1e-11]),
        ("Momentum", "weight_decay"): ([0, 3.3e38], [3.5e38, -1.0]),
    }
    sources = {
        ("Lamb", "betas"): ([1e-9, 0.999999], [0.0, 1.0, 0]),
        ("Lamb", "eps"): ([1e-300], [0.0, 1]),
        ("Lans", "betas"): ([0, 0.999999], [1.0, -1e-9]),
        ("Lars", "eps"): ([None, 0.0], [0, -1.0]),
        ("Lars", "momentum"): ([0.0, 1.5], [1, -0.1]),
        ("Lars", "trust_coefficient"): ([0.0], [1, -0.1]),
        ("Momentum", "momentum"): ([0.0, 1.5], [1, -0.1]),
    }
    of = {(method.name, option.name): option for method in METHODS.values() for option in method.options}
    for name, (good, bad) in edges.items():
        assert [takes(of[name].check, value) for value in good + bad] == [True] * len(good) + [False] * len(
            bad
        )
    for name, (good, bad) in sources.items():
        check = of[name].source_check
        assert check is not None
        assert [takes(check, value) for value in good + bad] == [True] * len(good) + [False] * len(bad)
    own = {name for name, option in of.items() if option.source_check and name[1] != "nonfinite"}
    assert own == {*sources}
