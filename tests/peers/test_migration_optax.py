"""States of optax in our form: found in nested tuples, matched by path or by order, never transposed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from numba_lamb.torch import Lamb, Lars, Momentum
from numba_lamb.torch.migration import optax_state_dict

SHAPES = {"body.conv": (4, 3, 3, 3), "body.matrix": (20, 30), "bias": (17,), "scalar": ()}
STEPS = 3


class ScaleByAdamState(NamedTuple):
    count: Any
    mu: Any
    nu: Any


class ScaleByBeliefState(NamedTuple):
    count: Any
    mu: Any
    nu: Any


class TraceState(NamedTuple):
    trace: Any


class EmptyState(NamedTuple):
    pass


class MaskedNode(NamedTuple):
    pass


def values(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + step)
    return {name: np.asarray(rng.standard_normal(shape), dtype=np.float32) for name, shape in SHAPES.items()}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split(".")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[leaf] = value
    return tree


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        inner = flat(value) if isinstance(value, dict) else {"": value}
        found |= {f"{key}.{name}".rstrip("."): leaf for name, leaf in inner.items()}
    return found


def tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.nn.Parameter(torch.from_numpy(np.array(arrays[name]))) for name in SHAPES}


def optax_of(name: str) -> Callable[..., Any]:
    optax = pytest.importorskip("optax", reason="the peers extra is not installed")
    make = {
        "lamb": lambda: optax.lamb(0.02, eps=1e-6, weight_decay=0.05),
        "lamb in a chain": lambda: optax.chain(
            optax.clip_by_global_norm(1e9), optax.lamb(0.02, weight_decay=0.05)
        ),
        "lamb, schedule": lambda: optax.lamb(lambda count: 0.02, weight_decay=0.05),
        "lamb, injected": lambda: optax.inject_hyperparams(optax.lamb)(learning_rate=0.02, weight_decay=0.05),
        "lamb, in two": lambda: optax.multi_transform(
            {"x": optax.lamb(0.02, weight_decay=0.05), "y": optax.lamb(0.02, weight_decay=0.05)},
            nested({name: "xyxy"[k] for k, name in enumerate(SHAPES)}),
        ),
        "adamw": lambda: optax.adamw(0.02, eps=1e-6, weight_decay=0.05),
        "sgd": lambda: optax.sgd(0.02, momentum=0.9),
        "sgd, nesterov": lambda: optax.sgd(0.02, momentum=0.9, nesterov=True),
        "lars": lambda: optax.lars(0.02, weight_decay=0.0, momentum=0.9, trust_coefficient=0.1),
        "lars, decayed": lambda: optax.lars(0.02, weight_decay=0.05, momentum=0.9, trust_coefficient=0.1),
        "lars, schedule": lambda: optax.lars(
            lambda count: 0.02, weight_decay=0.0, momentum=0.9, trust_coefficient=0.1, nesterov=True
        ),
    }
    return make[name]


LAMB = {"lr": 0.02, "eps": 1e-6, "weight_decay": 0.05}
LARS = {"lr": 0.02, "variant": "paper", "trust_coefficient": 0.1}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "lamb": (Lamb, LAMB),
    "lamb in a chain": (Lamb, LAMB),
    "lamb, schedule": (Lamb, LAMB),
    "lamb, injected": (Lamb, LAMB),
    "lamb, in two": (Lamb, LAMB),
    "adamw": (Lamb, {**LAMB, "variant": "adamw"}),
    "sgd": (Momentum, {"lr": 0.02, "momentum": 0.9}),
    "sgd, nesterov": (Momentum, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "lars": (Lars, LARS),
    "lars, decayed": (Lars, {**LARS, "variant": "optax", "weight_decay": 0.05}),
    "lars, schedule": (Lars, {**LARS, "nesterov": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_as_in_optax(name: str) -> None:
    opt = optax_of(name)()
    optax = pytest.importorskip("optax", reason="the peers extra is not installed")
    params = nested(values(0))
    state = opt.init(params)

    def train(params: Any, state: Any, first: int) -> tuple[Any, Any]:
        for step in range(first, first + STEPS):
            updates, state = opt.update(nested(values(step)), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = train(params, state, 1)
    ours = tensors(flat(params))
    kind, options = CASES[name]
    made = kind(ours.items(), **options)
    made.load_optax_state(state)
    before = {key: np.array(value) for key, value in flat(params).items()}
    params, state = train(params, state, 1 + STEPS)
    for step in range(1 + STEPS, 1 + 2 * STEPS):
        for key, gradient in values(step).items():
            ours[key].grad = torch.from_numpy(gradient)
        made.step()
    for key, value in flat(params).items():
        scale = max(np.abs(value).max(), np.abs(before[key]).max())
        # optax has 1 - beta in float32, which is off by up to 5e-5.
        assert np.abs(ours[key].detach().numpy() - value).max() <= 1e-5 * scale, key
        assert np.abs(before[key] - value).max() > 1e-4 * scale, key
    if kind is Lamb:
        assert {float(made.state[p]["step"]) for p in ours.values()} == {2 * STEPS}


def adam_state(tree: Callable[[dict[str, Any]], Any] = nested, count: int = 3) -> ScaleByAdamState:
    return ScaleByAdamState(np.int32(count), tree(values(1)), tree({k: v * v for k, v in values(1).items()}))


def lamb(**options: Any) -> Any:
    return Lamb(tensors(values(0)).items(), **options)


def lars(**options: Any) -> Any:
    return Lars(tensors(values(0)).items(), **options)


def momentum() -> Any:
    return Momentum(tensors(values(0)).items())


def test_paths_are_names() -> None:
    opt = lamb(lr=0.5)
    state = adam_state()
    before = [leaf.copy() for leaf in flat(state.mu).values()]
    found = optax_state_dict("Lamb", (EmptyState(), (state, EmptyState())), None, opt)
    assert found["param_groups"][0]["lr"] == 0.5
    assert list(found["state"]) == [0, 1, 2, 3]
    for entry, expected in zip(found["state"].values(), values(1).values(), strict=True):
        assert (entry["step"].shape, entry["step"].dtype, float(entry["step"])) == ((), torch.float32, 3.0)
        assert np.array_equal(entry["exp_avg"], expected)
        assert np.array_equal(entry["exp_avg_sq"], expected * expected)
        entry["exp_avg"].zero_()
    assert all(map(np.array_equal, before, flat(state.mu).values()))
    assert not opt.state


def test_otherwise_names_are_given_in_the_order_of_the_leaves() -> None:
    order = ["scalar", "bias", "body.matrix", "body.conv"]
    state = adam_state(
        lambda arrays: [arrays[order[0]], (arrays[order[1]], {"b": arrays[order[3]], "a": arrays[order[2]]})]
    )
    opt = lamb()
    opt.load_optax_state(state, order)
    for name, p in zip(SHAPES, opt.param_groups[0]["params"], strict=True):
        assert np.array_equal(opt.state[p]["exp_avg"].numpy(), values(1)[name])
    with pytest.raises(
        ValueError, match=r"paths of the leaves, .* lack bias, .* and have 0, 1.0, 1.1.a, 1.1.b too many"
    ):
        optax_state_dict("Lamb", state, None, opt)


def test_masked_leaves_have_no_state() -> None:
    def masked(arrays: dict[str, Any]) -> Any:
        return nested({**arrays, "bias": MaskedNode()})

    found = optax_state_dict("Lamb", adam_state(masked), None, lamb())
    assert list(found["state"]) == [0, 1, 3]


def test_a_float64_parameter_gets_float64() -> None:
    opt = Lamb([("w", torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)))])
    state = ScaleByAdamState(1, {"w": np.array([0.1, 0.2])}, {"w": np.array([0.3, 0.4])})
    (entry,) = optax_state_dict("Lamb", state, None, opt)["state"].values()
    assert entry["exp_avg"].dtype is torch.float64
    assert entry["exp_avg"].tolist() == [0.1, 0.2]


def test_the_state_inside_of_an_accumulation_is_found() -> None:
    optax = pytest.importorskip("optax", reason="the peers extra is not installed")
    state = optax.MultiSteps(optax.lamb(0.02), 4).init(nested(values(0)))
    found = optax_state_dict("Lamb", state, None, lamb())
    assert [float(entry["step"]) for entry in found["state"].values()] == [0.0] * 4


def transposed(arrays: dict[str, Any]) -> Any:
    return nested({**arrays, "body.matrix": arrays["body.matrix"].T})


TRACE = TraceState(nested(values(1)))
REFUSED: dict[str, tuple[str, Callable[[], Any], Any, Any, str]] = {
    "no state": (
        "Lamb",
        lamb,
        (EmptyState(), TRACE),
        None,
        "has no ScaleByAdamState, which Lamb needs; it has Em",
    ),
    "not optax": ("Lamb", lamb, {"a": 1}, None, "it has no states"),
    "belief": ("Lamb", lamb, ScaleByBeliefState(*adam_state()), None, "it has ScaleByBeliefState"),
    "two": ("Lamb", lamb, (adam_state(), adam_state()), None, "two leaves 'bias' of mu"),
    "transposed": (
        "Lamb",
        lamb,
        adam_state(transposed),
        None,
        r"'body.matrix' has the shape \(30, 20\).*transposed",
    ),
    "missing": (
        "Lamb",
        lamb,
        adam_state(lambda a: nested({"bias": a["bias"]})),
        None,
        "lack body.conv, body.matrix",
    ),
    "too few names": ("Lamb", lamb, adam_state(), ["a"], "one name for each of the 4 leaves, none twice"),
    "name twice": ("Lamb", lamb, adam_state(), ["a", "a", "b", "c"], "none twice"),
    "a string": ("Lamb", lamb, adam_state(), "abcd", "none twice"),
    "unknown name": ("Lamb", lamb, adam_state(), ["x", *list(SHAPES)[:3]], "lack scalar and have x too many"),
    "lars in Momentum": (
        "Momentum",
        momentum,
        (EmptyState(), TRACE),
        None,
        "TraceState at the end, as optax.lars",
    ),
    "sgd in Lars": ("Lars", lars, (TRACE, EmptyState()), None, "as optax.sgd, which Momentum continues"),
    "rate outside": (
        "Lars",
        lars,
        (EmptyState(), TRACE),
        None,
        "variant 'timm' does not; allowed are 'paper', 'pad",
    ),
    "kind": ("Adam", lamb, adam_state(), None, "kind must be one of Lamb, Lars, Momentum, not 'Adam'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    kind, make, state, names, message = REFUSED[name]
    opt = make()
    with pytest.raises(ValueError, match=message):
        optax_state_dict(kind, state, names, opt)
    assert not opt.state
