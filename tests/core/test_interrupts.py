"""A step is whole or not at all, wherever a KeyboardInterrupt comes, and the counters say which."""

import os
import random
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.helpers import frozen
from tests.interrupts import interrupted, uncollected

# Of several sizes and both dtypes, and rows that are centralized.
SHAPES = {
    "a": ((40, 30), "f4"),
    "b": ((7,), "f8"),
    "c": ((5, 3, 2, 2), "f4"),
    "d": ((), "f8"),
    "e": ((9000,), "f4"),
}


def values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, (shape, dtype) in SHAPES.items()}


def groups(params: Any) -> Any:
    return [
        {"params": [("c", params["c"])], "grad_centralization": True, "weight_decay": 0.1},
        {"params": [(name, params[name]) for name in "abde"], "lr": 0.01},
    ]


def in_fewer_bits(params: Any) -> Any:
    """Have the centralized layer's moments in 8 bits, rounded at random."""
    first, second = groups(params)
    return [{**first, "moments": "int8"}, second]


def start(kind: str) -> dict[str, np.ndarray]:
    """Return the parameters, those of float32 in float16 where there are masters."""
    halves = kind == "fewer bits"
    return {n: v.astype("f2") if halves and v.dtype == "f4" else v for n, v in values(0).items()}


def rates(step: int) -> float:
    return 0.1 / (step + 1)


NUMPY: dict[str, Callable[..., Any]] = {
    "lamb": lambda params, **options: nl.Lamb(groups(params), rates, **options),
    "lans": lambda params, **options: nl.Lans(groups(params), rates, **options),
    "lamb clipped": lambda params, **options: nl.Lamb(groups(params), rates, max_grad_norm=1.0, **options),
    "momentum": lambda params, **options: nl.Momentum(groups(params), rates, 0.9, **options),
    "fewer bits": lambda params, **options: nl.Lamb(in_fewer_bits(params), rates, **options),
    "lars": lambda params, **options: nl.Lars(
        nl.Momentum(groups(params), rates, 0.9, use_nesterov=True, **options), lars_filter=lambda layer: True
    ),
}
GRADIENTS = [values(seed) for seed in range(1, 4)]


class NumpyRun:
    """An optimizer on NumPy arrays, and what can be seen of it."""

    def __init__(self, kind: str) -> None:
        self.params = start(kind)
        self.opt = NUMPY[kind](self.params)
        self.offset = 0

    def step(self, number: int) -> None:
        self.opt.step(GRADIENTS[(number + self.offset) % 3])

    @property
    def taken(self) -> int:
        return int(self.opt.global_step)

    def seen(self) -> Any:
        return frozen([self.params, self.opt.state_dict(), dict(self.opt.stats())])


class TorchRun:
    """An optimizer on tensors, one of them with gaps in its memory, and what can be seen of it."""

    def __init__(self, kind: str) -> None:
        torch = pytest.importorskip("torch", reason="the peers extra is not installed")
        from numba_lamb.torch import Lamb, Lans, Lars, Momentum

        make: dict[str, Any] = {
            "lans": lambda params: Lans(params, lr=0.1, weight_decay=0.1),
            "lamb": lambda params: Lamb(params, lr=0.1, weight_decay=0.1),
            "lamb clipped": lambda params: Lamb(params, lr=0.1, max_grad_norm=1.0, nonfinite="raise"),
            "momentum": lambda params: Momentum(params, lr=0.1),
            "fewer bits": lambda params: Lamb(params, lr=0.1, weight_decay=0.1),
            "lars": lambda params: Lars(params, lr=0.1, weight_decay=0.1, nesterov=True),
        }
        self.params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start(kind).items()}
        first = self.params["a"]
        first.data = torch.zeros(40, 60, dtype=first.dtype)[:, ::2].copy_(first.data)
        self.gradients = [{name: torch.tensor(g) for name, g in given.items()} for given in GRADIENTS]
        self.opt = make[kind]((in_fewer_bits if kind == "fewer bits" else groups)(self.params))
        self.offset = 0

    def step(self, number: int) -> None:
        for name, gradient in self.gradients[(number + self.offset) % 3].items():
            self.params[name].grad = gradient.to(self.params[name].dtype)
        self.opt.step()

    @property
    def taken(self) -> int:
        return int(self.opt.state[self.params["a"]]["step"]) if self.opt.state else 0

    def seen(self) -> Any:
        state = [
            {key: value.numpy() for key, value in self.opt.state[p].items()} for p in self.params.values()
        ]
        return frozen([[p.detach().numpy() for p in self.params.values()], state, dict(self.opt.stats())])


RUNS = {"numpy": NumpyRun, "torch": TorchRun}
STEPS = 60


def trajectory(make: Any, kind: str) -> list[Any]:
    run = make(kind)
    found = [None]
    for number in range(STEPS):
        run.step(number)
        found.append(run.seen())
    return found


@pytest.mark.parametrize("kind", NUMPY)
@pytest.mark.parametrize("api", RUNS)
def test_a_step_is_whole_wherever_it_is_interrupted(api: str, kind: str) -> None:
    """At every so-manieth place where the interpreter looks for signals; the environment sets how close."""
    every = int(os.environ.get("NUMBA_LAMB_INTERRUPT_EVERY", "9"))
    expected = trajectory(RUNS[api], kind)
    run = RUNS[api](kind)
    run.step(0)
    place, count, torn = 0, 0, []
    while True:
        number = run.taken
        came = interrupted(lambda: run.step(number), place)  # noqa: B023
        count += came
        if run.seen() != expected[run.taken] or run.taken - number not in (0, 1):
            torn.append(place)
        if not came:
            break
        place += every
        if run.taken > STEPS - 3:
            run = RUNS[api](kind)
            run.step(0)
    assert count > 100 // every
    assert not torn


def other_gradients(run: Any) -> Callable[[], None]:
    run.offset = 1
    return lambda: setattr(run, "offset", 0)


def option(key: str, value: Any) -> Callable[[Any], Callable[[], None]]:
    def change(run: Any) -> Callable[[], None]:
        group = run.opt.param_groups[0]
        before = group[key]
        group[key] = value
        return lambda: group.__setitem__(key, before)

    return change


# What is changed before a step, how close the places are at which that is interrupted, and whether it stays so.
CHANGES = {
    "gradients": (other_gradients, 1, False),
    "rate": (option("lr", 0.3), 3, False),
    "centralization": (option("grad_centralization", False), 11, True),
    "formula": (option("variant", "timm"), 5, True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("api", RUNS)
def test_an_interrupted_step_leaves_nothing_to_later_ones(api: str, change: str) -> None:
    """After something is changed and the step interrupted, steps are those of an optimizer without interrupts."""
    changed, every, stays = CHANGES[change]
    every = int(os.environ.get("NUMBA_LAMB_INTERRUPT_EVERY", every))
    run, twin, first = (RUNS[api]("lamb") for _ in range(3))
    changed(first)
    first.step(0)  # kernels are compiled and loaded
    place, came = 0, True
    while came:
        for one in (run, twin):
            one.step(place)
        back, number = (changed(run), changed(twin)), run.taken
        came = interrupted(lambda: run.step(place), place, "numba_lamb")  # noqa: B023
        if run.taken > number:
            twin.step(place)
        for one, undo in zip((run, twin), back, strict=True):
            if stays:
                one.step(place)
            undo()
            one.step(place)
        assert run.seen() == twin.seen(), place
        place += every
    assert place > 50


@pytest.mark.parametrize("kind", NUMPY)
@pytest.mark.parametrize("api", RUNS)
def test_a_step_is_whole_under_signals(api: str, kind: str) -> None:
    """Real signals, at random times."""
    count = int(os.environ.get("NUMBA_LAMB_SIGNALS", "40"))
    expected = trajectory(RUNS[api], kind)
    run = RUNS[api](kind)
    run.step(0)
    chance = random.Random(5)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with uncollected():
            came = 0
            for _ in range(50 * count):
                number = run.taken
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 1e-3))
                    try:
                        for following in range(number, STEPS):
                            run.step(following)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    came += 1
                assert run.seen() == expected[run.taken]
                if run.taken > STEPS // 2:
                    run = RUNS[api](kind)
                    run.step(0)
                if came >= count:
                    break
            assert came >= count
    finally:
        signal.signal(signal.SIGALRM, before)
