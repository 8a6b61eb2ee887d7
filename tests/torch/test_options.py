"""Every option's check: what is refused, in what words, wherever the option is given, before anything changes."""

from typing import Any

import numpy as np
import pytest
import torch

from numba_lamb.numerics.variants import LAMB_VARIANTS
from numba_lamb.torch import Lamb, Lars, Momentum
from tests.torch.helpers import assert_same, fill, parameter, snapshot, steps

NAN, INF = float("nan"), float("inf")
LAMB_NAMES = ", ".join(map(repr, LAMB_VARIANTS))

RATES = [
    (-0.1, ValueError, ">= 0 and < 3.4e+38, not -0.1"),
    (NAN, ValueError, ">= 0 and < 3.4e+38, not nan"),
    (INF, ValueError, ">= 0 and < 3.4e+38, not inf"),
    (1e39, ValueError, "not 1e+39"),
    ("0.1", TypeError, "must be a number, not str"),
    (None, TypeError, "must be a number, not NoneType"),
    (True, TypeError, "must be a number, not bool"),
    (1j, TypeError, "must be a number, not complex"),
    ([0.1], TypeError, "must be a number, not list"),
    (torch.tensor([0.1, 0.2]), ValueError, "as a tensor must be 1-element, not of shape (2,)"),
    (torch.tensor(-1.0), ValueError, ">= 0 and < 3.4e+38, not -1.0"),
    (torch.tensor(NAN), ValueError, "not nan"),
    (torch.tensor(1j), TypeError, "must be a number, not complex"),
]
FLAGS = [
    (2, TypeError, "must be a bool, not int"),
    (None, TypeError, "must be a bool, not NoneType"),
    ("True", TypeError, "must be a bool, not str"),
]
MAYBE = [
    (0, TypeError, "must be a bool or None, not int"),
    ("auto", TypeError, "must be a bool or None, not str"),
]
POSITIVE = [
    (0.0, ValueError, "must be > 0 and finite, not 0.0"),
    (-1.0, ValueError, "must be > 0 and finite, not -1.0"),
    (NAN, ValueError, "must be > 0 and finite, not nan"),
    (INF, ValueError, "must be > 0 and finite, not inf"),
    ("1", TypeError, "must be a number, not str"),
    (False, TypeError, "must be a number, not bool"),
]
AT_LEAST_0 = [
    (-1e-3, ValueError, "must be >= 0 and finite, not -0.001"),
    (NAN, ValueError, "must be >= 0 and finite, not nan"),
    (INF, ValueError, "must be >= 0 and finite, not inf"),
    ("1", TypeError, "must be a number, not str"),
    (True, TypeError, "must be a number, not bool"),
]
FILTERS = [
    ("bias", TypeError, "must be a callable of a layer or None, not str"),
    (False, TypeError, "must be a callable of a layer or None, not bool"),
]
NONFINITE = [
    (None, ValueError, "must be one of 'propagate', 'skip', 'raise', not None"),
    ("drop", ValueError, "must be one of 'propagate', 'skip', 'raise', not 'drop'"),
    (["skip"], ValueError, "must be one of 'propagate', 'skip', 'raise', not ['skip']"),
]
COMMON = {
    "lr": RATES,
    "weight_decay": RATES,
    "maximize": FLAGS,
    "max_grad_norm": POSITIVE,
    "decay_filter": FILTERS,
    "nonfinite": NONFINITE,
}
BETAS = [
    (0.9, TypeError, "must be a pair of numbers, not 0.9"),
    ((0.9,), TypeError, "must be a pair of numbers, not (0.9,)"),
    ((0.9, 0.99, 0.999), TypeError, "must be a pair of numbers"),
    (None, TypeError, "must be a pair of numbers, not None"),
    ("09", TypeError, "must be a pair of numbers, not '09'"),
    ((1.0, 0.9), ValueError, "betas[0]| must be >= 0 and < 1, not 1.0"),
    ((0.9, 1.5), ValueError, "betas[1]| must be >= 0 and < 1, not 1.5"),
    ((-0.1, 0.9), ValueError, "betas[0]| must be >= 0 and < 1, not -0.1"),
    ((0.9, NAN), ValueError, "betas[1]| must be >= 0 and < 1, not nan"),
    ((0.9, "x"), TypeError, "betas[1]| must be a number, not str"),
    ((0.9, None), TypeError, "betas[1]| must be a number, not NoneType"),
]
TABLE: dict[Any, dict[str, list[Any]]] = {
    Lamb: {
        **COMMON,
        "betas": BETAS,
        "eps": AT_LEAST_0,
        "variant": [
            ("lamb", ValueError, f"must be one of {LAMB_NAMES}, not 'lamb'"),
            (None, ValueError, f"must be one of {LAMB_NAMES}, not None"),
            (["paper"], ValueError, "not ['paper']"),
        ],
        "always_adapt": MAYBE,
        "bias_correction": MAYBE,
        "decoupled_decay": MAYBE,
        "grad_averaging": FLAGS,
        "trust_clip": FLAGS,
        "adapt_filter": FILTERS,
    },
    Lars: {
        **COMMON,
        "momentum": AT_LEAST_0,
        "nesterov": FLAGS,
        "trust_coefficient": AT_LEAST_0,
        "eps": AT_LEAST_0,
        "variant": [
            (
                "lars",
                ValueError,
                "must be one of 'mindspore', 'paper', 'paddle', 'timm', 'pytorch_optimizer', ",
            ),
            (None, ValueError, "not None"),
        ],
        "always_adapt": MAYBE,
        "trust_clip": FLAGS,
        "adapt_filter": FILTERS,
    },
    Momentum: {**COMMON, "momentum": AT_LEAST_0, "nesterov": FLAGS},
}
CASES = [
    pytest.param(kind, name, value, error, message, id=f"{kind.__name__}-{name}-{value!r}")
    for kind, options in TABLE.items()
    for name, refusals in options.items()
    for value, error, message in refusals
]
cases = pytest.mark.parametrize(("kind", "name", "value", "error", "message"), CASES)


def check_message(raised: Any, name: str, message: str, where: str) -> None:
    said, (first, bar, rest) = str(raised.value), message.partition("|")
    subject = first if bar else name
    assert said.startswith(f"{subject}{where} "), said
    assert (rest if bar else message) in said, said


@cases
def test_refused_at_construction(kind: Any, name: str, value: Any, error: Any, message: str) -> None:
    p = parameter(3)
    with pytest.raises(error) as raised:
        kind([p], **{name: value})
    check_message(raised, name, message, "")
    with pytest.raises(error) as raised:
        kind([{"params": [p]}, {"params": [parameter(2)], name: value}])
    check_message(raised, name, message, " of group 1")


@cases
def test_refused_in_add_param_group(kind: Any, name: str, value: Any, error: Any, message: str) -> None:
    p = parameter(3)
    opt = kind([p], lr=0.1)
    steps(opt, [p])
    before, held = snapshot(opt), opt.param_groups[0]
    options = dict(held)
    with pytest.raises(error) as raised:
        opt.add_param_group({"params": [parameter(2)], name: value})
    check_message(raised, name, message, " of group 1")
    assert opt.param_groups == [held]
    assert held == options
    assert_same(snapshot(opt), before)
    steps(opt, [p])


@pytest.mark.parametrize("kind", list(TABLE))
@pytest.mark.parametrize("name", ["lr", "weight_decay", "nonfinite"])
def test_a_refusal_calls_a_group_the_same_everywhere(kind: Any, name: str) -> None:
    """The first group has no number where it is the only one yet, so it has none later."""

    def refusal(refused: Any, *given: Any, **options: Any) -> str:
        with pytest.raises(ValueError, match=f"^{name}") as raised:
            refused(*given, **options)
        return str(raised.value)

    for index, groups in ((0, [{}]), (0, [{}, {}]), (1, [{}, {}]), (2, [{}, {}, {}])):
        made = [{"params": [parameter(3)], **group} for group in groups]
        bad = [dict(group) for group in made]
        bad[index][name] = -1.0
        opt = kind(made, lr=0.1)
        fill([group["params"][0] for group in opt.param_groups])
        opt.param_groups[index][name] = -1.0
        said = refusal(opt.step)
        assert said == refusal(kind, bad, lr=0.1)
        assert said.startswith(f"{name} of group {index} must" if index else f"{name} must")


@cases
@pytest.mark.parametrize("stepped", [False, True])
def test_refused_in_a_live_group(
    kind: Any, name: str, value: Any, error: Any, message: str, stepped: bool
) -> None:
    params = [parameter(3), parameter(2, seed=1)]
    opt = kind([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    if stepped:
        steps(opt, params)
    before, good = snapshot(opt), opt.param_groups[1][name]
    fill(params, 9)
    opt.param_groups[1][name] = value
    with pytest.raises(error) as raised:
        opt.step()
    check_message(raised, name, message, " of group 1")
    assert_same(snapshot(opt), before)
    assert len(opt.state) == (2 if stepped else 0)
    opt.param_groups[1][name] = good
    opt.step()
    assert opt.state[params[0]]["step"].item() == (3 if stepped else 1)


@pytest.mark.parametrize("variant", ["paper", "paddle"])
def test_a_clip_is_refused_where_the_rate_is_inside(variant: str) -> None:
    p = parameter(3)
    message = f"trust_clip must be False in variant '{variant}', which has no clip"
    with pytest.raises(ValueError, match=message):
        Lars([p], variant=variant, trust_clip=True)
    opt = Lars([p], variant=variant)
    steps(opt, [p])
    before = snapshot(opt)
    opt.param_groups[0]["trust_clip"] = True
    fill([p])
    with pytest.raises(ValueError, match=r"trust_clip.* must be False"):
        opt.step()
    assert_same(snapshot(opt), before)


@pytest.mark.parametrize("kind", list(TABLE))
def test_unknown_arguments_are_refused(kind: Any) -> None:
    for name in ("foo", "foreach", "fused", "capturable", "differentiable", "momentun"):
        with pytest.raises(TypeError, match=name):
            kind([parameter(3)], **{name: True})
    with pytest.raises(TypeError):
        kind([parameter(3)], 0.1, 0.9, 0.0, False, False, False)


@pytest.mark.parametrize("kind", list(TABLE))
def test_parameters_are_checked_as_torch_does(kind: Any) -> None:
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        kind(parameter(3))
    with pytest.raises(TypeError, match="can only optimize Tensors"):
        kind([3.0])
    with pytest.raises(ValueError, match="non-leaf"):
        kind([parameter(3) * 2])
    p = parameter(3)
    with pytest.raises(ValueError, match="more than one parameter group"):
        kind([{"params": [p]}, {"params": [p]}])


def test_defaults_are_documented_ones() -> None:
    p = parameter(3)
    assert Lamb([p]).defaults == {
        **{"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "variant": "paper"},
        **{"always_adapt": None, "bias_correction": None, "grad_averaging": True, "trust_clip": False},
        **{"decoupled_decay": None, "maximize": False, "max_grad_norm": None, "decay_filter": None},
        **{"adapt_filter": None, "nonfinite": "propagate"},
    }
    assert Lars([p]).defaults == {
        **{"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False, "trust_coefficient": 1e-3},
        **{"eps": None, "variant": "timm", "always_adapt": None, "trust_clip": False, "maximize": False},
        **{"max_grad_norm": None, "decay_filter": None, "adapt_filter": None, "nonfinite": "propagate"},
    }
    assert Momentum([p]).defaults == {
        **{"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False, "maximize": False},
        **{"max_grad_norm": None, "decay_filter": None, "nonfinite": "propagate"},
    }


@pytest.mark.parametrize("kind", list(TABLE))
def test_every_option_stands_in_every_group(kind: Any) -> None:
    opt = kind([{"params": [parameter(3)]}, {"params": [parameter(2)], "lr": 0.5}])
    for group in opt.param_groups:
        assert set(group) == {*opt.defaults, "params"}


ACCEPTED = {
    "lr": [0, 0.0, 1, 3.3e38, np.float32(0.1), np.float64(0.1), np.int64(1), torch.tensor(0.1)],
    "weight_decay": [0, 0.1, np.float32(0.1), torch.tensor(0.1), torch.tensor([0.1])],
    "max_grad_norm": [None, 1, 1e-300, np.float32(1.0)],
    "betas": [(0, 0), (0.0, 0.5), [0.9, 0.99], (np.float32(0.9), np.float64(0.9))],
    "eps": [1e-30, 1, np.float32(1e-6)],
    "nonfinite": ["propagate", "skip", "raise"],
}


@pytest.mark.parametrize("name", list(ACCEPTED))
@pytest.mark.parametrize("live", [False, True])
def test_values_at_the_edge_are_accepted(name: str, live: bool) -> None:
    for value in ACCEPTED[name]:
        p = parameter(3)
        opt = Lamb([p]) if live else Lamb([p], **{name: value})
        opt.param_groups[0][name] = value
        fill([p])
        opt.step()
        assert opt.state[p]["step"].item() == 1


@pytest.mark.parametrize("kind", [Lars, Momentum])
def test_momenta_at_the_edge_are_accepted(kind: Any) -> None:
    for momentum in (0, 0.0, 1.0, 1.5, np.float32(0.9)):
        p = parameter(3)
        steps(kind([p], momentum=momentum), [p])
        assert torch.isfinite(p).all()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in TABLE
        for name in ("eps", "momentum", "max_grad_norm", "trust_coefficient")
        if name in TABLE[kind]
    ],
)
def test_tensors_as_other_options_are_read_anew(kind: Any, name: str) -> None:
    value = torch.tensor(0.5, dtype=torch.float64)
    params, twins = [parameter(3)], [parameter(3)]
    opt = kind(params, lr=0.1, **{name: value})
    plain = kind(twins, lr=0.1, **{name: 0.5})
    for number in (0.5, 0.25, 0.75):
        value.fill_(number)
        plain.param_groups[0][name] = number
        for each, held in ((opt, params), (plain, twins)):
            steps(each, held, 1)
    assert_same(snapshot(opt), snapshot(plain))


def test_eps_must_fit_the_parameters_dtype() -> None:
    single, double = parameter(3, dtype=torch.float32), parameter(3)
    opt = Lamb([double], eps=1e-60)
    steps(opt, [double])
    small = Lamb([("w", single)], eps=1e-60)
    fill([single])
    before = single.detach().clone()
    with pytest.raises(
        ValueError, match="eps must be a normal number in float32, the dtype of parameter 'w'"
    ):
        small.step()
    assert_same(single, before)


def test_a_filter_that_fails_changes_nothing() -> None:
    def failing(layer: Any) -> bool:
        raise KeyError(layer.name)

    params = [parameter(3)]
    opt = Lamb([("w", params[0])], lr=0.1)
    steps(opt, params)
    before = snapshot(opt)
    opt.param_groups[0]["decay_filter"] = failing
    fill(params)
    for _ in range(2):
        with pytest.raises(KeyError, match="w"):
            opt.step()
        assert_same(snapshot(opt), before)
    opt.param_groups[0]["decay_filter"] = None
    opt.step()
    assert opt.state[params[0]]["step"].item() == 3
