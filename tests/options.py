"""What each option may be and what not, made from the declarations, and the two front ends that it is given to."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import numba_lamb as nl
from numba_lamb._text import shorten
from numba_lamb.methods.checks import Check, bounds, flag, flag_or_bounds, layer_filter, rate, whole
from numba_lamb.methods.options import Method
from numba_lamb.methods.table import METHODS
from numba_lamb.rates import RATE_KEYS
from tests.helpers import frozen, installed, snapshot

NAN, INF = float("nan"), float("inf")


class Refusal(NamedTuple):
    """A value, the error it raises, and what the message says; `part` is put behind the option's name."""

    value: Any
    error: type[Exception]
    allowed: str
    shown: str
    part: str = ""

    def text(self, name: str, where: str) -> str:
        return f"{name}{self.part}{where} must be {self.allowed}, got {self.shown}"


# -- values by the kind of check -------------------------------------------------------------------------------


def kind_of_check(check: Check) -> tuple[str, Mapping[str, Any]]:
    """Return which function made a check, and what of."""
    return check.__qualname__.partition(".")[0], inspect.getclosurevars(check).nonlocals


def _numbers(allowed: str, zero: bool, below: float) -> Iterator[Refusal]:
    for value in (-0.001, NAN, INF, *([] if zero else [0.0]), *([] if below == INF else [below])):
        yield Refusal(value, ValueError, allowed, repr(value))
    for value, kind in (("1", "str"), (True, "bool"), (1j, "complex"), ({}, "dict")):
        yield Refusal(value, TypeError, allowed, f"{value!r}, a {kind}")
    yield Refusal(None, TypeError, allowed, "None")
    yield Refusal(np.ones(2), TypeError, allowed, f"{np.ones(2)!r}, a numpy.ndarray")


def _reals(zero: bool, below: float, **_: Any) -> Iterator[Refusal]:
    allowed = f"a number {'>=' if zero else '>'} 0 and {'finite' if below == INF else f'< {below:g}'}"
    yield from _numbers(allowed, zero, below)
    yield Refusal(10**400, ValueError, allowed, shorten(str(10**400)))
    yield Refusal(10**5000, ValueError, allowed, "an int")


def _floats(zero: bool, below: float, **_: Any) -> Iterator[Refusal]:
    allowed = f"a float {'>=' if zero else '>'} 0 and finite"
    if below < INF:
        allowed = f"a float between 0 and {below:g}, both excluded"
    yield from _numbers(allowed, zero, below)
    yield Refusal(1, TypeError, allowed, "1, an int")
    yield Refusal(10**5000, TypeError, allowed, "an int")
    yield Refusal(np.float32(0.5), TypeError, allowed, f"{np.float32(0.5)!r}, a numpy.float32")


def _rates() -> Iterator[Refusal]:
    for refusal in _reals(zero=True, below=3.4e38):
        if not isinstance(refusal.value, dict | np.ndarray):
            yield refusal
    yield Refusal(1e39, ValueError, "a number >= 0 and < 3.4e+38", "1e+39")
    for value, kind in (([0.1], "list"), (np.sin, "numpy.ufunc")):
        yield Refusal(value, TypeError, "a number", f"{value!r}, a {kind}")
    yield Refusal(np.ones(2), ValueError, "a number, or a tensor of one", "shape (2,)")


def _schedules() -> Iterator[Refusal]:
    """Rates of the NumPy API, which takes tables and callables too."""
    forms = "a number, an array, an iterable with one value per step, or a callable of the step"
    for value in (-0.1, NAN, INF):
        yield Refusal(value, ValueError, "a number >= 0 and finite", repr(value))
    yield Refusal(True, TypeError, "a number >= 0 and finite", "a bool")
    for value, kind in ((1j, "complex"), ({}, "dict"), (None, "NoneType")):
        yield Refusal(value, TypeError, forms, f"a {kind}")
    yield Refusal("0.1", ValueError, forms, "'0.1'")


def _flags() -> Iterator[Refusal]:
    for value, shown in ((0, "0, an int"), (1, "1, an int"), (None, "None"), ("True", "'True', a str")):
        yield Refusal(value, TypeError, "a bool", shown)


def _choices(allowed: Sequence[str]) -> Iterator[Refusal]:
    names = ", ".join(map(repr, allowed))
    for value in (None, "drop", 1, [*allowed][:1]):
        yield Refusal(value, ValueError, f"one of {names}", repr(value))


def _maybe(check: Check) -> Iterator[Refusal]:
    for refusal in refusals(check):
        if refusal.value is not None:
            yield refusal._replace(allowed=f"{refusal.allowed}, or None")


def _pairs(check: Check, allowed: str) -> Iterator[Refusal]:
    for value, kind in ((0.9, "float"), ((0.9,), "tuple"), ([0.9] * 3, "list"), ("09", "str")):
        yield Refusal(value, TypeError, allowed, f"{value!r}, a {kind}")
    yield Refusal(None, TypeError, allowed, "None")
    for refusal in refusals(check):
        for place in range(2):
            pair = [0.5, 0.5]
            pair[place] = refusal.value
            yield refusal._replace(value=tuple(pair), part=f"[{place}]")


def _bounds(allowed: str = "") -> Iterator[Refusal]:
    allowed += "a pair (low, high) of numbers with 0 <= low <= high"
    for value, kind in (
        (0.5, "float"),
        ((0.5,), "tuple"),
        ("01", "str"),
        ((True, 1.0), "tuple"),
        ((None, 1), "tuple"),
    ):
        yield Refusal(value, TypeError, allowed, f"{value!r}, a {kind}")
    for pair in ((1.0, 0.5), (-1.0, 1.0), (NAN, 1.0), (0.0, NAN)):
        yield Refusal(pair, ValueError, allowed, repr(pair))


def _flags_or_bounds() -> Iterator[Refusal]:
    yield from _bounds("a bool or ")
    yield Refusal(None, TypeError, "a bool or a pair (low, high) of numbers with 0 <= low <= high", "None")


def _filters() -> Iterator[Refusal]:
    for value, kind in (("bias", "str"), (False, "bool")):
        yield Refusal(value, TypeError, "a callable of a Layer, or None", f"{value!r}, a {kind}")


def _wholes() -> Iterator[Refusal]:
    allowed = "an int from 0 to 2**63-1"
    for value in (-1, 2**63):
        yield Refusal(value, ValueError, allowed, repr(value))
    for value, kind in (("1", "str"), (True, "bool"), (1.0, "float")):
        yield Refusal(value, TypeError, allowed, f"{value!r}, a {kind}")
    yield Refusal(None, TypeError, allowed, "None")


_REFUSALS: dict[str, Callable[..., Iterator[Refusal]]] = {
    "real": lambda zero, below, **_: _reals(zero, below),
    "floating": lambda zero, below, **_: _floats(zero, below),
    "rate": _rates,
    "flag": _flags,
    "choice": _choices,
    "maybe": _maybe,
    "pair": _pairs,
    "layer_filter": _filters,
    "bounds": _bounds,
    "flag_or_bounds": _flags_or_bounds,
    "whole": _wholes,
}


PLAIN = (rate, flag, layer_filter, bounds, flag_or_bounds, whole)


def refusals(check: Check) -> list[Refusal]:
    """Return what a check refuses."""
    kind, made_of = kind_of_check(check)
    return [*_REFUSALS[kind](**(made_of if check not in PLAIN else {}))]


def wide(layer: Any) -> bool:
    return bool(layer.ndim != 1)


def good_values(check: Check) -> list[Any]:
    """Return values that a check takes, the edges of its range among them."""
    kind, made_of = kind_of_check(check)
    if kind == "maybe":
        return [None, *good_values(made_of["check"])]
    if kind == "bounds":
        return [(0.5, 2.0), (0.0, 0.25), (3.0, INF)]
    if kind == "flag_or_bounds":
        return [False, True, (0.5, 2.0), (0.25, INF)]
    if kind == "pair":
        return [(0.5, 0.75), (0.25, 0.75), (0.5, 0.875), (0.0, 0.0)]
    if kind == "choice":
        return [*made_of["allowed"]]
    if kind == "whole":
        return [0, 2**63 - 1]
    if kind in ("real", "floating"):
        return [*([0.0] if made_of["zero"] else []), 0.25, 0.5]
    return {"rate": [0.0, 0.05], "flag": [False, True], "layer_filter": [None, wide]}[kind]


# -- what is given where ---------------------------------------------------------------------------------------


class Key(NamedTuple):
    """An option as one front end has it: its keys in groups and in the constructor, what it refuses and takes."""

    name: str
    argument: str
    refusals: list[Refusal]
    good: list[Any]


Arrays = dict[str, np.ndarray]
Group = tuple[Arrays, dict[str, Any]]
"""Arrays by name, and options by PyTorch's names."""


def gradients_of(arrays: Mapping[str, np.ndarray], step: int) -> Arrays:
    rng = np.random.default_rng(step)
    return {
        name: np.asarray(rng.standard_normal(w.shape) * 0.3 + w * 0.1, w.dtype) for name, w in arrays.items()
    }


@dataclass(frozen=True)
class NumpyFront:
    """`numba_lamb`."""

    name: str = "numpy"

    def keys(self, method: Method) -> list[Key]:
        found = []
        for option in method.options:
            if option.name in RATE_KEYS:
                argument = "learning_rate" if option.name == "lr" else option.name
                found.append(Key(option.name, argument, [*_schedules()], good_values(option.check)))
            else:
                check = option.source_check or option.check
                found += [Key(name, name, refusals(check), good_values(check)) for name in option.numpy_names]
        return found

    def named(self, method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options of groups by their names here."""
        found: dict[str, Any] = {}
        for option in method.options:
            if option.name in options:
                value, names = options[option.name], option.numpy_names
                if option.name in RATE_KEYS:
                    found[option.name] = value
                else:
                    found.update(zip(names, value if len(names) > 1 else [value], strict=True))
        return found

    def make(self, method: Method, groups: Sequence[Group], **options: Any) -> Any:
        return self.make_as_named(
            method,
            [(arrays, self.named(method, own)) for arrays, own in groups],
            self.named(method, options),
        )

    def make_as_named(self, method: Method, groups: Sequence[Group], options: Mapping[str, Any]) -> Any:
        """Make an optimizer from options by their names here; Lars has its own only once it is made."""
        given = {"lr": 0.1, **({"momentum": 0.9} if "momentum" in method.names else {}), **options}
        given["learning_rate"] = given.pop("lr")
        own: set[str] = set()
        if method.name == "Lars":
            own = {*method.numpy_names} - {*METHODS["Momentum"].numpy_names}
        inside = {key: value for key, value in given.items() if key not in own}
        dicts = [
            {"params": arrays, **{key: value for key, value in given_here.items() if key not in own}}
            for arrays, given_here in groups
        ]
        kind: Any = nl.Momentum if method.name == "Lars" else getattr(nl, method.name)
        opt = kind(dicts, **inside)
        if method.name == "Lars":
            opt = nl.Lars(opt, **{key: value for key, value in given.items() if key in own})
            for group, (_, given_here) in zip(opt.param_groups, groups, strict=True):
                group.update({key: value for key, value in given_here.items() if key in own})
        return opt

    def has_at_construction(self, method: Method, key: Key) -> bool:
        """Whether a group may have the option when the optimizer is made."""
        return method.name != "Lars" or key.name in (*RATE_KEYS, *METHODS["Momentum"].numpy_names)

    def step(self, opt: Any, gradients: Mapping[str, Any]) -> None:
        opt.step(dict(gradients))

    def group(self, arrays: Arrays, **options: Any) -> dict[str, Any]:
        return {"params": arrays, **options}

    def snapshot(self, opt: Any) -> Any:
        return snapshot(opt)

    def result(self, opt: Any) -> Any:
        """Return weights, moments and statistics, by bits."""
        layers = opt.state_dict()["layers"]
        names = opt._method.numpy_state
        moments = {name: [layers[name][moment] for moment in names] for name in opt.params}
        return frozen([dict(opt.params), moments, dict(opt.stats())])


def _array(tensor: Any) -> np.ndarray:
    """A state tensor as the NumPy API has it: bfloat16 as bit patterns."""
    import torch

    found: np.ndarray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


class TorchFront:
    """`numba_lamb.torch`."""

    name = "torch"

    def keys(self, method: Method) -> list[Key]:
        found = []
        for option in method.options:
            refused = refusals(option.check)
            if option.name == "lr":
                way = "; numba_lamb.torch.ScheduleLR(opt, schedule) sets it at each step"
                refused = [
                    refusal._replace(shown=refusal.shown + way)
                    if refusal.allowed in ("a number", "a number, or a tensor of one")
                    else refusal
                    for refusal in refused
                ]
            found.append(Key(option.name, option.name, refused, good_values(option.check)))
        return found

    def make(self, method: Method, groups: Sequence[Group], **options: Any) -> Any:
        return self.make_as_named(method, groups, options)

    def make_as_named(self, method: Method, groups: Sequence[Group], options: Mapping[str, Any]) -> Any:
        from numba_lamb import torch as nt

        dicts = [self.group(arrays, **own) for arrays, own in groups]
        return getattr(nt, method.name)(dicts, **{"lr": 0.1, **options})

    def has_at_construction(self, method: Method, key: Key) -> bool:
        return True

    def step(self, opt: Any, gradients: Mapping[str, Any]) -> None:
        import torch

        for group in opt.param_groups:
            for name, tensor in zip(group["param_names"], group["params"], strict=True):
                gradient = gradients.get(name)
                tensor.grad = None if gradient is None else torch.from_numpy(gradient)
        opt.step()

    def group(self, arrays: Arrays, **options: Any) -> dict[str, Any]:
        import torch

        pairs = [(name, torch.nn.Parameter(torch.from_numpy(array))) for name, array in arrays.items()]
        return {"params": pairs, **options}

    def snapshot(self, opt: Any) -> Any:
        options = [
            {key: id(value) for key, value in group.items() if not key.startswith("param")}
            for group in opt.param_groups
        ]
        members = [[id(tensor) for tensor in group["params"]] for group in opt.param_groups]
        return options, members, self.result(opt), len(opt.state)

    def result(self, opt: Any) -> Any:
        named = {
            name: tensor
            for group in opt.param_groups
            for name, tensor in zip(group["param_names"], group["params"], strict=True)
        }
        weights = {name: tensor.detach().numpy() for name, tensor in named.items()}
        zeros = {name: np.zeros_like(weights[name]) for name in named}
        moments = {
            name: [
                _array(opt.state[tensor][moment]) if opt.state.get(tensor) else zeros[name]
                for moment in opt._method.state
            ]
            for name, tensor in named.items()
        }
        return frozen([weights, moments, dict(opt.stats())])


STORED = {"moments": np.float32, "master": np.float16, "seed": np.float32}
"""What arrays must be for an option of storage to have an effect."""
FRONTS: list[Any] = [NumpyFront(), *([TorchFront()] if installed("torch") else [])]
