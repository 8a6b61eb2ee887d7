"""The docstrings that are made from declarations: whole, in the signature's order, and as wide as `help` is."""

import inspect
import re
from collections.abc import Callable

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.methods.docs import CODE, WIDTH, allowed
from numba_lamb.methods.lamb import LAMB
from numba_lamb.methods.table import METHODS

torch = pytest.importorskip("torch", reason="the peers extra is not installed")
from numba_lamb.torch import Lamb, Lans, Lars, Momentum  # noqa: E402

CLASSES = [nl.Lamb, nl.Lans, nl.Momentum, nl.Lars, Lamb, Lans, Momentum, Lars]


def documentation(cls: type) -> str:
    assert cls.__doc__ is not None
    return cls.__doc__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_parameter_is_documented_in_order(cls: type) -> None:
    section = documentation(cls).partition("Parameters\n----------\n")[2].partition("\n\nRaises\n")[0]
    entries = re.findall(r"^(\S.*) : (.*)\n    \S", section, re.MULTILINE)
    assert [name for names, _ in entries for name in names.split(", ")] == [
        *inspect.signature(cls).parameters
    ]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_no_line_is_wider_than_a_terminal(cls: type) -> None:
    assert max(map(len, documentation(cls).splitlines())) <= WIDTH
    assert re.findall(r"^\{\w+\}$", documentation(cls), re.MULTILINE) == []


def test_defaults_are_those_of_the_signature() -> None:
    found = dict(re.findall(r"^(\w+) : .*default (.*)$", documentation(Lars), re.MULTILINE))
    defaults = {
        name: one.default
        for name, one in inspect.signature(Lars).parameters.items()
        if one.default not in (None, inspect.Parameter.empty)
    }
    assert {name: text.strip('"') for name, text in found.items()} == {
        name: str(value) for name, value in defaults.items()
    }


def test_ranges_of_the_source_are_told_in_both_front_ends() -> None:
    for cls in (nl.Lamb, Lamb):
        told = " ".join(documentation(cls).split())
        assert "``eps``: a float > 0 and finite; for PyTorch, ``eps``: a number >= 0 and finite" in told
    with pytest.raises(ValueError, match="eps must be a float > 0 and finite"):
        nl.Lamb({"w": np.ones(3)}, 0.1, eps=0.0)
    Lamb([torch.nn.Parameter(torch.ones(3))], eps=0.0)


def test_what_a_check_allows_is_what_its_errors_say() -> None:
    assert allowed(next(option.check for option in LAMB.options if option.name == "betas")) == (
        "a pair of numbers >= 0 and < 1"
    )
    checks: list[Callable[..., object]] = [
        option.check for method in METHODS.values() for option in method.options
    ]
    assert all(map(allowed, checks))


@pytest.mark.parametrize("cls", [nl.Lamb, nl.Lans, nl.Momentum, nl.Lars], ids=lambda cls: cls.__name__)
def test_options_that_are_attributes_say_what_they_are_in_their_own_method(cls: type) -> None:
    method = METHODS[cls.__name__]
    told = {
        name: getattr(cls, name).__doc__.startswith(option.meaning)
        for option in method.options
        for name in option.numpy_names
        if hasattr(cls, name)
    }
    assert len(told) > 5
    assert all(told.values()), told


@pytest.mark.parametrize("name", CODE)
def test_the_code_that_help_shows_is_the_step(name: str) -> None:
    w, gradients = np.array([3.0, -4.0, 1.0]), [np.array([0.5, 2.0, -1.0]), np.array([0.1, 0.3, 0.7])]
    names = {
        "sqrt": np.sqrt,
        "norm": np.linalg.norm,
        "w": w.copy(),
        "m": 0.0,
        "v": 0.0,
        "lr": 0.1,
        "beta1": 0.9,
    }
    names |= {"beta2": 0.99, "eps": 1e-6, "weight_decay": 0.01, "momentum": 0.9, "trust_coefficient": 0.02}
    momentum = nl.Momentum([w], 0.1, 0.9, 0.01)
    opt: nl.Momentum | nl.Lamb | nl.Lans = momentum
    if name == "Lars":
        opt = nl.Lars(momentum, epsilon=1e-6, coefficient=0.02)
    elif name != "Momentum":
        opt = getattr(nl, name)([w], 0.1, 0.9, 0.99, 1e-6, 0.01)
    for t, g in enumerate(gradients, 1):
        names |= {"g": g, "t": t}
        exec(CODE[name], names)
        opt.step([g])
    np.testing.assert_allclose(w, names["w"], rtol=1e-12)
    for line in CODE[name].splitlines():
        assert f"    {line}\n" in documentation(getattr(nl, name))
