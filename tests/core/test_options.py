"""Every option of every method, in both front ends: what is refused, in what words, wherever it is given."""

from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.methods.options import FILTERS, FIXED, Method
from numba_lamb.methods.table import METHODS
from numba_lamb.rates import RATE_KEYS
from tests.helpers import snapshot
from tests.options import FRONTS, STORED, Key, gradients_of

CASES = [
    pytest.param(front, method, key, id=f"{front.name}-{method.name}-{key.name}")
    for front in FRONTS
    for method in METHODS.values()
    for key in front.keys(method)
]
IN_STATES = [
    case
    for case in CASES
    for front, _, key in [case.values]
    if key.name not in FILTERS and not (front.name == "numpy" and key.name in RATE_KEYS)
]
"""No state has filters; those of the NumPy API have rates as numbers alone: see `test_lamb_errors`."""


def arrays(*names: str) -> dict[str, np.ndarray]:
    return {name: np.linspace(-1, 2, 6 + len(name)).reshape(1, -1) for name in names}


class Refusing:
    """An optimizer at work whose every refusal leaves it as it was, and a twin that sees none of them."""

    def __init__(self, front: Any, method: Method) -> None:
        self.front = front
        self.params, others = arrays("a", "bb"), arrays("a", "bb")
        self.opt, self.twin = (
            front.make(method, [({"a": held["a"]}, {}), ({"bb": held["bb"]}, {})], weight_decay=0.05)
            for held in (self.params, others)
        )
        self.count = 0
        self.go_on()

    def go_on(self) -> None:
        gradients = gradients_of(self.params, self.count)
        for opt in (self.opt, self.twin):
            self.front.step(opt, gradients)
        self.count += 1
        assert self.front.result(self.opt) == self.front.result(self.twin)

    def refuses(self, error: type[Exception], text: str, act: Any) -> None:
        before = self.front.snapshot(self.opt)
        assert told(act) == (error, text)
        assert self.front.snapshot(self.opt) == before


def told(act: Any) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (the table says which)
        act()
    return caught.type, str(caught.value)


@pytest.mark.parametrize(("front", "method", "key"), CASES)
def test_what_is_refused_and_that_nothing_has_changed(front: Any, method: Method, key: Key) -> None:
    at_work = Refusing(front, method)
    opt = at_work.opt
    for refusal in key.refusals:
        value, error, name = refusal.value, refusal.error, key.name
        of_constructor = refusal.text(key.argument, "")

        def made(groups: Any, **options: Any) -> Any:
            return lambda: front.make_as_named(method, groups, options)

        def group(name: str = name, value: Any = value) -> dict[str, Any]:
            return front.group(arrays("ccc"), **{name: value})

        assert told(made([(arrays("a"), {})], **{name: value})) == (error, of_constructor)
        if front.has_at_construction(method, key):
            groups = [(arrays("a"), {}), (arrays("bb"), {name: value})]
            assert told(made(groups)) == (error, refusal.text(name, " of group 1"))
        at_work.refuses(
            error, refusal.text(name, " of group 2"), lambda group=group: opt.add_param_group(group())
        )
        if front.name == "numpy":
            at_work.refuses(error, of_constructor, lambda value=value: setattr(opt, key.argument, value))
        before, kept = front.snapshot(opt), opt.param_groups[1][name]
        opt.param_groups[1][name] = value
        for _ in range(2):
            found = told(lambda: front.step(opt, gradients_of(at_work.params, 99)))
            assert found == (error, refusal.text(name, " of group 1"))
        opt.param_groups[1][name] = kept
        assert front.snapshot(opt) == before
    at_work.go_on()


@pytest.mark.parametrize(("front", "method", "key"), IN_STATES)
def test_what_is_refused_in_a_state(front: Any, method: Method, key: Key) -> None:
    """The NumPy API refuses the state, PyTorch's takes it as it is and refuses the next step."""
    at_work, source = Refusing(front, method), Refusing(front, method)
    source.go_on()
    state = source.opt.state_dict()
    group = state["groups" if front.name == "numpy" else "param_groups"][1]
    good = group[key.name]
    for refusal in key.refusals:
        text = refusal.text(key.name, " of group 1")
        group[key.name] = refusal.value
        if front.name == "torch" and key.name in FIXED:
            # How things are stored is the loading optimizer's.
            at_work.opt.load_state_dict(state)
            assert at_work.opt.param_groups[1][key.name] == good
        elif front.name == "torch":
            at_work.opt.load_state_dict(state)
            before = front.result(at_work.opt)
            found = told(lambda: front.step(at_work.opt, gradients_of(at_work.params, 99)))
            assert found == (refusal.error, text)
            assert front.result(at_work.opt) == before
        else:
            at_work.refuses(refusal.error, text, lambda: at_work.opt.load_state_dict(state))
    group[key.name] = good
    at_work.twin.load_state_dict(state)
    at_work.opt.load_state_dict(state)
    at_work.go_on()


@pytest.mark.parametrize(("front", "method", "key"), CASES)
def test_what_is_taken(front: Any, method: Method, key: Key) -> None:
    """In the constructor, in a group and in a live group a value gives the same bytes."""
    for value in key.good:
        results = []
        # How things are stored stays as it was when the optimizer was made.
        for place in ("constructor", "group", *(() if key.name in FIXED else ("live",))):
            shape = (2, 3, 2) if key.name == "grad_centralization" else (1, 8)
            held = {"a": np.linspace(-1, 2, int(np.prod(shape)), dtype=STORED.get(key.name)).reshape(shape)}
            options = {key.name: value}
            own = options if place == "group" else {}
            opt = front.make_as_named(method, [(held, own)], options if place == "constructor" else {})
            if place == "live":
                opt.param_groups[0][key.name] = value
            for step in range(2):
                front.step(opt, gradients_of(held, step))
            assert opt.param_groups[0][key.name] is value
            results.append(front.result(opt))
        assert all(result == results[0] for result in results)


@pytest.mark.parametrize("front", FRONTS, ids=lambda front: front.name)
@pytest.mark.parametrize("variant", ["paper", "paddle"])
def test_a_clip_is_refused_where_the_rate_is_inside(front: Any, variant: str) -> None:
    lars = METHODS["Lars"]
    name = "use_clip" if front.name == "numpy" else "trust_clip"
    text = f"must be False in variant {variant!r}, which has no clip, got True"
    options = {"variant": variant, name: True}
    made = told(lambda: front.make_as_named(lars, [(arrays("a"), {})], options))
    assert made == (ValueError, f"{name} {text}")
    at_work = Refusing(front, lars)
    for group in at_work.opt.param_groups:
        before = front.snapshot(at_work.opt)
        kept = dict(group)
        group |= options
        for _ in range(2):
            found = told(lambda: front.step(at_work.opt, gradients_of(at_work.params, 99)))
            assert found[0] is ValueError
            assert found[1].startswith(name)
            assert found[1].endswith(text)
        group.update(kept)
        assert front.snapshot(at_work.opt) == before
    at_work.go_on()


def test_a_wrapper_that_is_refused_leaves_the_momentum_as_it_was() -> None:
    momentum, twin = (
        nl.Momentum([{"params": arrays("a")}, {"params": arrays("bb")}], 0.1, 0.9) for _ in "ab"
    )
    calls = (
        {"coefficient": -1.0},
        {"variant": "paper", "use_clip": True},
        {"epsilon": 1},
        {"adapt_filter": 3},
    )
    for wrapped in (False, True):
        before = snapshot(momentum)
        for options in calls:
            with pytest.raises((TypeError, ValueError), match=" must be "):
                nl.Lars(momentum, **options)
            assert snapshot(momentum) == before
            assert {*momentum.param_groups[0]} == {*twin.param_groups[0]}
        for opt in (momentum, twin):
            opt.step(gradients_of(opt.params, wrapped))
        assert snapshot(momentum)["state"] == snapshot(twin)["state"]
        if not wrapped:
            for opt in (momentum, twin):
                nl.Lars(opt, coefficient=0.5)
                opt.param_groups[1]["coefficient"] = 0.25
                opt.step(gradients_of(opt.params, 7))
    assert momentum.param_groups[1]["coefficient"] == 0.25
