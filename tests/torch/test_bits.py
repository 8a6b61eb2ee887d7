"""The PyTorch optimizers write the same bytes as the NumPy ones, for any model and any options both have."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.torch import Lamb, Lars, Momentum

pytestmark = pytest.mark.slow

STEPS = 3
SHAPES = [(), (1,), (7,), (0,), (3, 5), (4, 0, 2), (2, 3, 4), (65, 64), (5000,), (128, 33)]

shapes = st.sampled_from(SHAPES)
dtypes = st.sampled_from([np.float32, np.float64])
layers = st.lists(st.tuples(shapes, dtypes, st.integers(0, 1)), min_size=1, max_size=5)
rates = st.tuples(st.sampled_from([0.0, 1e-3, 0.1]), st.sampled_from([0.0, 0.01, 0.3]))


@st.composite
def models(draw: Any) -> dict[str, Any]:
    """A model of one or two groups, which steps lack which gradients, and options of all optimizers."""
    found = draw(layers)
    if not any(group == 0 for _, _, group in found):
        found = [(shape, dtype, 0) for shape, dtype, _ in found]
    found.sort(key=lambda layer: layer[2])
    missing = st.lists(st.sets(st.integers(0, len(found) - 1), max_size=2), min_size=STEPS, max_size=STEPS)
    return {
        "layers": found,
        "missing": draw(missing),
        "groups": [draw(rates) for _ in range(1 + found[-1][2])],
        "limit": draw(st.sampled_from([None, None, 0.1, 50.0])),
        "filtered": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "scale": draw(st.sampled_from([1e-6, 1.0, 1e4])),
    }


def vectors_are_exempt(layer: Any) -> bool:
    return layer.ndim > 1


def always(layer: Any) -> bool:
    return True


class Twins:
    """The arrays and tensors of one model, with equal values, and gradients for every step."""

    def __init__(self, model: dict[str, Any]) -> None:
        rng = np.random.default_rng(model["seed"])
        self.model = model
        found = model["layers"]
        self.names = [f"layer{k}" for k in range(len(found))]
        self.arrays = {
            name: np.asarray(rng.standard_normal(shape) * (k % 3), dtype=dtype)
            for k, (name, (shape, dtype, _)) in enumerate(zip(self.names, found, strict=True))
        }
        self.tensors = {
            name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in self.arrays.items()
        }
        self.gradients = [
            {
                name: None
                if k in missing
                else np.asarray(rng.standard_normal(array.shape) * model["scale"], dtype=array.dtype)
                for k, (name, array) in enumerate(self.arrays.items())
            }
            for missing in model["missing"]
        ]

    def groups(self, held: dict[str, Any]) -> list[dict[str, Any]]:
        owners = [(name, layer[2]) for name, layer in zip(self.names, self.model["layers"], strict=True)]
        return [
            {
                "params": [(name, held[name]) for name, owner in owners if owner == k],
                "lr": lr,
                "weight_decay": decay,
            }
            for k, (lr, decay) in enumerate(self.model["groups"])
        ]

    def check(self, make_numpy: Callable[..., Any], make_torch: Callable[..., Any], moments: Any) -> None:
        limit, passing = self.model["limit"], vectors_are_exempt if self.model["filtered"] else always
        one = make_numpy(self.groups(self.arrays), max_grad_norm=limit, decay_filter=passing)
        other = make_torch(self.groups(self.tensors), max_grad_norm=limit, decay_filter=passing)
        for gradients in self.gradients:
            one.step(gradients)
            for name, p in self.tensors.items():
                p.grad = None if gradients[name] is None else torch.from_numpy(gradients[name])
            other.step()
            for name, p in self.tensors.items():
                assert p.detach().numpy().tobytes() == self.arrays[name].tobytes(), name
        written = one.state_dict()["layers"]
        for name, p in self.tensors.items():
            for theirs, ours in moments.items():
                state = other.state.get(p, {})
                if not state:
                    assert all(gradients[name] is None for gradients in self.gradients)
                    continue
                assert state[ours].numpy().tobytes() == written[name][theirs].tobytes(), name
        said = other.stats()
        assert said.items() <= one.stats().items()
        updated = {name for name, gradient in self.gradients[-1].items() if gradient is not None}
        assert {key.partition("/")[2] for key in said} >= updated


@settings(max_examples=40)
@given(
    models(),
    st.sampled_from([(0.9, 0.999), (0.5, 0.9)]),
    st.sampled_from([1e-6, 1e-2]),
    st.sampled_from([None, vectors_are_exempt]),
)
def test_lamb(model: Any, betas: Any, eps: float, adapt_filter: Any) -> None:
    def make_numpy(groups: Any, **options: Any) -> Any:
        return nl.Lamb(groups, 0.1, *betas, eps, adapt_filter=adapt_filter, nonfinite="propagate", **options)

    def make_torch(groups: Any, **options: Any) -> Any:
        return Lamb(groups, betas=betas, eps=eps, adapt_filter=adapt_filter, **options)

    Twins(model).check(make_numpy, make_torch, {"m": "exp_avg", "v": "exp_avg_sq"})


@settings(max_examples=30)
@given(models(), st.sampled_from([0.0, 0.9, 1.0]), st.booleans())
def test_momentum(model: Any, momentum: float, nesterov: bool) -> None:
    def make_numpy(groups: Any, **options: Any) -> Any:
        return nl.Momentum(groups, 0.1, momentum, use_nesterov=nesterov, nonfinite="propagate", **options)

    def make_torch(groups: Any, **options: Any) -> Any:
        return Momentum(groups, momentum=momentum, nesterov=nesterov, **options)

    Twins(model).check(make_numpy, make_torch, {"m": "momentum_buffer"})


@settings(max_examples=40)
@given(
    models(),
    st.sampled_from(["mindspore", "paper", "paddle"]),
    st.sampled_from([1e-3, 0.5]),
    st.booleans(),
    st.booleans(),
)
def test_lars(model: Any, variant: str, coefficient: float, nesterov: bool, clip: bool) -> None:
    clip = clip and variant == "mindspore"

    def make_numpy(groups: Any, **options: Any) -> Any:
        plain = nl.Momentum(groups, 0.1, 0.9, use_nesterov=nesterov, nonfinite="propagate", **options)
        filtered = options["decay_filter"]
        return nl.Lars(plain, None, coefficient, clip, filtered, variant=variant)

    def make_torch(groups: Any, **options: Any) -> Any:
        own = {"adapt_filter": options["decay_filter"], "trust_clip": clip, "variant": variant, **options}
        return Lars(groups, momentum=0.9, nesterov=nesterov, trust_coefficient=coefficient, **own)

    if clip:
        # The clip divides by the rate.
        model = {**model, "groups": [(lr or 0.1, decay) for lr, decay in model["groups"]]}
    Twins(model).check(make_numpy, make_torch, {"m": "momentum_buffer"})


@settings(max_examples=25)
@given(models(), st.sampled_from(["lamb", "lars", "momentum"]), st.data())
def test_bits_do_not_depend_on_how_the_state_came_about(model: Any, kind: str, data: Any) -> None:
    """Saved and loaded, stored elsewhere, or grown group by group: the training is the same."""
    make = {"lamb": Lamb, "lars": Lars, "momentum": Momentum}[kind]
    one, other = Twins(model), Twins(model)
    plain = make(one.groups(one.tensors), max_grad_norm=model["limit"])
    first, *rest = other.groups(other.tensors)
    opt = make([first], max_grad_norm=model["limit"])
    for group in rest:
        opt.add_param_group(group)
    for gradients in one.gradients:
        for twins in (one, other):
            for name, p in twins.tensors.items():
                p.grad = None if gradients[name] is None else torch.from_numpy(gradients[name])
        if data.draw(st.booleans()):
            state = {"state": opt.state_dict()["state"], "param_groups": opt.state_dict()["param_groups"]}
            opt = make(other.groups(other.tensors))
            opt.load_state_dict(state)
        if data.draw(st.booleans()):
            for state in opt.state.values():
                state.update({key: value.clone() for key, value in state.items()})
        plain.step()
        opt.step()
    for name in one.names:
        p, q = one.tensors[name], other.tensors[name]
        assert p.detach().numpy().tobytes() == q.detach().numpy().tobytes()
        assert {key: value.numpy().tobytes() for key, value in plain.state.get(p, {}).items()} == {
            key: value.numpy().tobytes() for key, value in opt.state.get(q, {}).items()
        }
