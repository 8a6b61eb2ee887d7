"""Refusals that lead on: the whole text of each, which says what to write, and that what it says works."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.helpers import frozen, installed

jax, torch = installed("jax"), installed("torch")


def array(*shape: int) -> np.ndarray:
    return np.ones(shape or (2,), np.float32)


def momentum() -> nl.Momentum:
    return nl.Momentum([array()], 0.1, 0.9)


def told(make: Callable[[], Any]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (the table says which)
        make()
    return caught.type, str(caught.value).strip('"')


CALLS: dict[str, tuple[Callable[[], Any], type, str]] = {}
"""What is called, what is raised, and the text."""

# Options under other names, or of others.
OPTIONS = {
    ("Lamb", "lr"): "did you mean 'learning_rate'?",
    ("Lamb", "betas"): "betas=(a, b) is beta1=a, beta2=b here",
    ("Lamb", "epsilon"): "did you mean 'eps'?",
    ("Lamb", "weigth_decay"): "did you mean 'weight_decay'?",
    ("Lamb", "momentum"): "its decay rates are beta1 and beta2",
    ("Lamb", "nesterov"): "Momentum and Lars have it",
    ("Lamb", "amsgrad"): "no maximum of second moments is kept",
    ("Lamb", "fused"): "every step is one kernel over all parameters",
    ("Lamb", "foreach"): "every step is one kernel over all parameters",
    ("Lamb", "differentiable"): "a step cannot be differentiated",
    ("Lamb", "capturable"): "capture_steps=N lets a CUDA graph capture steps",
    ("Lamb", "loss_scale"): "give gradients divided by it",
    ("Momentum", "nesterov"): "did you mean 'use_nesterov'?",
    ("Momentum", "betas"): "its one decay rate is momentum",
    ("Momentum", "coefficient"): "Lars has it",
    ("Momentum", "dampening"): "gradients enter the momentum buffer whole",
    (
        "Momentum",
        "closure",
    ): "its options are learning_rate, momentum, weight_decay, loss_scale, use_nesterov, "
    "maximize, max_grad_norm, grad_centralization, decay_filter, master, moments, seed, nonfinite, num_threads, "
    "capture_steps, comm",
    ("Lars", "trust_coefficient"): "did you mean 'coefficient'?",
    ("Lars", "eps"): "did you mean 'epsilon'?",
    ("Lars", "lr"): "give it to the Momentum: Lars(Momentum(params, learning_rate, momentum))",
    ("Lars", "weight_decay"): "give it to the Momentum: Lars(Momentum(params, learning_rate, momentum))",
}


def refused_option(kind: str, name: str) -> Any:
    given = (momentum(),) if kind == "Lars" else ([array()], 0.1, *([0.9] if kind == "Momentum" else []))
    return getattr(nl, kind)(*given, **{name: 0.5})


for (kind, name), way in OPTIONS.items():
    CALLS[f"{name} of {kind}"] = (
        lambda kind=kind, name=name: refused_option(kind, name),
        TypeError,
        f"'{name}' is no option of numba_lamb.{kind}; {way}",
    )

NESTED = {"dense": {"kernel": array(2, 2), "bias": array()}, "out": {"kernel": array()}}
FLATTEN = "{f'{outer}.{inner}': %s for outer, layer in params.items() for inner, array in layer.items()}"
ARRAY = "must be a NumPy array or an array on a GPU"
FILTER = (
    "_filter must be a callable of one Layer, which has name, shape, ndim, dtype and group, got an error for "
    "'fc.bias': "
)
USE = "; use layer.name, as in lambda layer: 'bias' not in layer.name"
FILTERS: dict[str, tuple[Callable[..., Any], type, str]] = {
    "in": (lambda name: "bias" not in name, TypeError, r"argument of type 'Layer' is not .*"),
    "method": (
        lambda name: name.endswith("bias"),
        AttributeError,
        "'Layer' object has no attribute 'endswith'",
    ),
    "two": (lambda name, p: p.ndim > 1, TypeError, r".* missing 1 required positional argument: 'p'"),
    "regex": (
        lambda name: re.search("bias", name),
        TypeError,
        "expected string or bytes-like object, got 'Layer'",
    ),
}
LARS = "optimizer must be a numba_lamb.Momentum, with which Lars is one fused kernel, got a "
WRAP = (
    "write Lars(Momentum(params, learning_rate, momentum)), or for PyTorch "
    "numba_lamb.torch.Lars(params, lr, momentum)"
)

CALLS |= {
    "no rate": (lambda: nl.Lamb([array()]), TypeError, "learning_rate must be given to numba_lamb.Lamb"),
    "no rate but groups'": (
        lambda: nl.Lamb([{"params": [array()], "lr": 0.1}]),
        TypeError,
        "learning_rate must be given to numba_lamb.Lamb",
    ),
    "nothing": (
        lambda: nl.Momentum(),
        TypeError,
        "params and learning_rate and momentum must be given to numba_lamb.Momentum",
    ),
    "loss_scale": (
        lambda: nl.Momentum([array()], 0.1, 0.9, loss_scale=-1),
        ValueError,
        "loss_scale must be a number > 0 and finite, got -1",
    ),
    "Lars of params": (lambda: nl.Lars([array()]), TypeError, f"{LARS}list; {WRAP}"),
    "Lars of params, lr": (lambda: nl.Lars([array()], lr=0.1), TypeError, f"{LARS}list; {WRAP}"),  # type: ignore[call-arg]
    "Lars of Lamb": (
        lambda: nl.Lars(nl.Lamb([array()], 0.1)),
        TypeError,
        f"{LARS}numba_lamb.optimizers.lamb.Lamb; {WRAP}",
    ),
    "nested": (
        lambda: nl.Lamb(NESTED, 0.1),
        TypeError,
        f"parameter 'dense' {ARRAY}, got a dict of arrays; flatten: {FLATTEN % 'array'}",
    ),
    "deeper": (
        lambda: nl.Lamb({"a": NESTED}, 0.1),
        TypeError,
        f"parameter 'a' {ARRAY}, got a dict of arrays; give every array a name of its own, joined from the keys "
        "on its way",
    ),
    "group key": (
        lambda: nl.Lamb([{"params": [array()], "learning_rate": 0.1}], 0.1),
        KeyError,
        "group 0 has the unknown key 'learning_rate'; did you mean 'lr'?",
    ),
    "dtype": (
        lambda: nl.Lamb([array().astype(np.int64)], 0.1),
        TypeError,
        "parameter 'param_0' must be bfloat16, float16, float32 or float64 in native byte order, "
        "got dtype('int64'); array.astype(np.float32) is a copy that can be trained",
    ),
    "gradient of integers": (
        lambda: nl.Lamb([array()], 0.1).step([np.ones(2, np.int64)]),
        TypeError,
        "gradient of 'param_0' must be bfloat16, float16, float32 or float64 in native byte order, "
        "got dtype('int64'); gradient.astype(np.float32) can be used",
    ),
    "nested gradients": (
        lambda: nl.Lamb({"a.b": array()}, 0.1).step({"a": {"b": array()}}),
        KeyError,
        "no parameter is named 'a'; there are 'a.b'; flatten gradients as the parameters",
    ),
    "centralization": (
        lambda: nl.Lamb([{"params": {"w": array()}, "grad_centralization": True}], 0.1),
        ValueError,
        "grad_centralization of group 0 must be False for 'w', which has 1 dimensions of at least 3, got True; "
        "put convolution kernels into a group of their own",
    ),
    "class as rate": (
        lambda: nl.Lamb([array()], nl.schedules.WarmUpLR),
        TypeError,
        "learning_rate must be a rate or an instance of a schedule, got the class WarmUpLR; give it its arguments",
    ),
}

if torch:
    from numba_lamb import torch as nt

    NO_GRAD = "; numba_lamb.torch.Lamb, Lars and Momentum are for PyTorch models"
    REQUIRES = f"{ARRAY}, got a torch.nn.parameter.Parameter that requires gradients{NO_GRAD}"
    MANY = REQUIRES.replace("a NumPy array or an array", "NumPy arrays or arrays")
    MODULE = (
        "params must be NumPy arrays or arrays on a GPU, got a torch.nn.modules.linear.Linear"
        f"{NO_GRAD}: Lamb(model.named_parameters(), lr)"
    )
    TAKE = "numba_lamb.Lamb, Lars and Momentum take NumPy arrays"
    MODEL = torch.nn.Linear(2, 3)
    FIRST = f"parameter 'param_0' {REQUIRES}"
    CALLS |= {
        f"PyTorch, {name}": (make, TypeError, text)
        for name, (make, text) in {
            "parameters": (lambda: nl.Lamb(MODEL.parameters()), FIRST),
            "parameters, rate": (lambda: nl.Lamb(MODEL.parameters(), 1e-3), FIRST),
            "parameters, lr": (lambda: nl.Lamb(MODEL.parameters(), lr=1e-3, betas=(0.9, 0.99)), FIRST),
            "Momentum": (lambda: nl.Momentum([*MODEL.parameters()], lr=1e-3, momentum=0.9), FIRST),
            "named": (lambda: nl.Lamb(MODEL.named_parameters(), 1e-3), f"parameter 'weight' {REQUIRES}"),
            "dict": (lambda: nl.Lamb(dict(MODEL.named_parameters()), 0.1), f"parameter 'weight' {REQUIRES}"),
            "groups": (lambda: nl.Lamb([{"params": MODEL.parameters()}], 1e-3), FIRST),
            "groups with keys": (
                lambda: nl.Lamb(torch.optim.AdamW(MODEL.parameters()).param_groups, 1e-3),
                f"'params' of group 0 {MANY}",
            ),
            "one parameter": (lambda: nl.Lamb(MODEL.weight, 1e-3), f"params {MANY}"),
            "module": (lambda: nl.Lamb(MODEL, 1e-3), MODULE),
            "module of modules": (
                lambda: nl.Lamb(torch.nn.Sequential(MODEL), 1e-3),
                MODULE.replace("linear.Linear", "container.Sequential"),
            ),
            "list of modules": (
                lambda: nl.Lamb([MODEL], 1e-3),
                MODULE.replace(
                    "params must be NumPy arrays or arrays",
                    "parameter 'param_0' must be a NumPy array or an array",
                ),
            ),
            "other device": (
                lambda: nl.Lamb([torch.empty(2, device="meta", requires_grad=True)], 1e-3),
                FIRST.replace("torch.nn.parameter.Parameter", "torch.Tensor"),
            ),
            "state_dict": (
                lambda: nl.Lamb(MODEL.state_dict(), 1e-3),
                "parameter 'weight' must be a NumPy array or an array on a GPU, got a torch.Tensor on the CPU"
                f"{NO_GRAD}; tensor.numpy() shares its memory",
            ),
            "Lars of SGD": (
                lambda: nl.Lars(torch.optim.SGD(MODEL.parameters())),
                f"{LARS}torch.optim.sgd.SGD; numba_lamb.torch.Lars(params, lr, momentum) takes its place",
            ),
            "Lars of parameters": (lambda: nl.Lars(MODEL.parameters()), f"{LARS}generator; {WRAP}"),
            "gradient": (
                lambda: nl.Lamb([array()], 0.1).step([torch.ones(2)]),
                "gradient of 'param_0' must be a numpy.ndarray, like its parameter, got torch.Tensor; "
                "gradient.numpy() shares its memory",
            ),
            "module for torch": (
                lambda: nt.Lamb(MODEL),
                "params must be an iterable of tensors, (name, tensor) pairs or group dicts, got a "
                "torch.nn.modules.linear.Linear; give model.named_parameters()",
            ),
            "dict for torch": (
                lambda: nt.Lamb(MODEL.state_dict()),
                "params must be an iterable of tensors, (name, tensor) pairs or group dicts, got a "
                "collections.OrderedDict; give params.items()",
            ),
            "group for torch": (
                lambda: nt.Lamb({"params": MODEL.parameters()}),
                "params must be an iterable of tensors, (name, tensor) pairs or group dicts, got a dict; "
                "give it in a list, [group]",
            ),
            "arrays for torch": (
                lambda: nt.Lars([array()]),
                f"params must be tensors, got a numpy.ndarray; {TAKE}",
            ),
            "pairs for torch": (
                lambda: nt.Momentum([("w", array())]),
                f"params must be tensors, got a numpy.ndarray; {TAKE}",
            ),
        }.items()
    }
    TORCH_OPTIONS = {
        ("Lamb", "learning_rate"): "did you mean 'lr'?",
        ("Lamb", "beta1"): "beta1=a, beta2=b is betas=(a, b) here",
        ("Lamb", "epsilon"): "did you mean 'eps'?",
        ("Lamb", "momentum"): "its decay rates are betas",
        ("Lamb", "fused"): "every step is one kernel over all parameters",
        ("Lamb", "foreach"): "every step is one kernel over all parameters",
        ("Lamb", "capturable"): "the NumPy API has capture_steps",
        ("Lamb", "amsgrad"): "no maximum of second moments is kept",
        ("Lamb", "differentiable"): "a step cannot be differentiated",
        ("Lamb", "num_threads"): "torch.set_num_threads sets the number",
        ("Lamb", "loss_scale"): "torch.amp.GradScaler divides gradients by one",
        ("Lamb", "decoupled_weight_decay"): "decoupled_decay=True or variant='adamw' decays as AdamW does",
        ("Lars", "coefficient"): "did you mean 'trust_coefficient'?",
        ("Lars", "lars_filter"): "did you mean 'adapt_filter'?",
        ("Lars", "betas"): "its one decay rate is momentum",
        ("Momentum", "use_nesterov"): "did you mean 'nesterov'?",
        ("Momentum", "dampening"): "gradients enter the momentum buffer whole",
        ("Momentum", "eps"): "its options are lr, momentum, weight_decay, nesterov, maximize, max_grad_norm, "
        "grad_centralization, decay_filter, master, moments, seed, nonfinite, fused_amp",
    }
    for (kind, name), way in TORCH_OPTIONS.items():
        CALLS[f"{name} of PyTorch's {kind}"] = (
            lambda kind=kind, name=name: getattr(nt, kind)(MODEL.parameters(), **{name: 0.5}),
            TypeError,
            f"'{name}' is no option of numba_lamb.torch.{kind}; {way}",
        )

if jax:
    ONE = jax.numpy.ones(2)
    IMMUTABLE = "got a JAX array, which cannot be updated in place; train copies: "
    COPY = "{name: np.array(array) for name, array in params.items()}"
    CALLS |= {
        "JAX array": (
            lambda: nl.Lamb({"w": ONE}, 0.1),
            TypeError,
            f"parameter 'w' must be a NumPy array or an array on a GPU, {IMMUTABLE}{COPY}",
        ),
        "JAX tree": (
            lambda: nl.Lamb({"dense": {"w": ONE}}, 0.1),
            TypeError,
            "parameter 'dense' must be a NumPy array or an array on a GPU, got a dict of arrays; flatten: "
            f"{FLATTEN % 'np.array(array)'}",
        ),
        "JAX gradient": (
            lambda: nl.Lamb({"w": array()}, 0.1).step([ONE]),
            TypeError,
            f"gradient of 'w' must be a numpy.ndarray, like its parameter, got "
            f"{type(ONE).__module__}.{type(ONE).__name__}; np.asarray(gradient) is one",
        ),
    }


@pytest.mark.parametrize(("make", "error", "text"), CALLS.values(), ids=CALLS)
def test_the_text_says_what_to_write(make: Callable[[], Any], error: type, text: str) -> None:
    assert told(make) == (error, text)


def test_the_recipes_work() -> None:
    recipes = [(FLATTEN % "array", NESTED)]
    if jax:
        recipes += [(COPY, {"w": ONE}), (FLATTEN % "np.array(array)", {"dense": {"w": ONE}})]
    for recipe, params in recipes:
        flat = eval(recipe, {"np": np, "params": params})
        opt = nl.Lamb(flat, 0.1)
        opt.step({name: np.array(one, np.float32) for name, one in flat.items()})
        assert all((one < 1).all() for one in opt.params.values())
    assert nl.Lamb([array()], 0.1).step([np.ones(2).astype(np.float32)]) is None


def test_an_option_of_a_subclass_is_python_s_own_affair() -> None:
    class Mine(nl.Lamb):
        def __init__(self, params: Any, lr: float, **options: Any) -> None:
            super().__init__(params, lr, **options)

    assert Mine([array()], lr=0.5).learning_rate == 0.5
    assert told(lambda: Mine([array()], lr=0.5, betas=3))[1].startswith(
        "'betas' is no option of numba_lamb.Lamb; "
    )


@pytest.mark.parametrize(("given", "error", "text"), FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("name", ["decay", "adapt", "lars"])
def test_a_filter_that_took_a_name_is_told_of_the_layer(
    name: str, given: Callable[..., Any], error: type, text: str
) -> None:
    params = {"fc.bias": array()}
    wrapped = nl.Momentum(params, 0.1, 0.9)
    before = frozen(wrapped.state_dict())

    def make() -> Any:
        if name == "lars":
            return nl.Lars(wrapped, lars_filter=given)
        return nl.Lamb(params, 0.1, **{f"{name}_filter": given})

    with pytest.raises(error, match=f"^{name}{FILTER}{text}{re.escape(USE)}$") as caught:
        make()
    assert type(caught.value.__cause__) is error
    assert frozen(wrapped.state_dict()) == before
    if torch and name != "lars":
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        opt = nt.Lamb([("fc.bias", p)], **{f"{name}_filter": given})
        with pytest.raises(error, match=f"^{name}{FILTER}{text}{re.escape(USE)}$"):
            opt.step()
        assert p.tolist() == [1.0, 1.0]


def test_other_errors_of_a_filter_are_its_own() -> None:
    for given, error, text in (
        (lambda layer: {}[layer.name], KeyError, "'w'"),
        (lambda layer: layer.name + 1, TypeError, 'can only concatenate str (not "int") to str'),
    ):
        assert told(lambda given=given: nl.Lamb({"w": array()}, 0.1, decay_filter=given)) == (error, text)


@pytest.mark.skipif(not torch, reason="the peers extra is not installed")
def test_a_gradient_of_another_dtype_names_to() -> None:
    w = torch.nn.Parameter(torch.ones(2))
    opt = nt.Lamb([("w", w)])
    with torch.no_grad():
        w.grad = torch.ones(2)
        w.grad.data = torch.ones(2).to(torch.float8_e4m3fn)
    assert told(opt.step) == (
        TypeError,
        "gradient of 'w' must be bfloat16, float16, float32 or float64, got torch.float8_e4m3fn; "
        "p.grad = p.grad.to(p.dtype) is so",
    )


@pytest.mark.parametrize("key", ["x", "layers"])
def test_a_state_with_more_than_its_own(key: str) -> None:
    opt = nl.Lamb({"w": array()}, 0.1)
    state = opt.state_dict()
    (state if key == "x" else state[key])["v"] = 1
    place = "state" if key == "x" else f"state[{key!r}]"
    assert told(lambda: opt.load_state_dict(state)) == (ValueError, f"{place} has an unexpected key 'v'")
