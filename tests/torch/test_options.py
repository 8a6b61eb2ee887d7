"""What PyTorch adds to options: tensors, keys of groups, its own checks."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from numba_lamb.torch import Lamb, Lars, Momentum
from tests.torch.helpers import assert_same, fill, parameter, snapshot, steps

NAN = float("nan")
kinds = pytest.mark.parametrize("kind", [Lamb, Lars, Momentum])
TENSORS = [
    (torch.tensor(-1.0), ValueError, "a number >= 0 and < 3.4e+38, got -1.0"),
    (torch.tensor(NAN), ValueError, "a number >= 0 and < 3.4e+38, got nan"),
    (torch.tensor(1j), TypeError, "a number >= 0 and < 3.4e+38, got tensor(0.+1.j), a torch.Tensor"),
    (torch.tensor(True), TypeError, "a number >= 0 and < 3.4e+38, got tensor(True), a torch.Tensor"),
    (torch.tensor([0.1, 0.2]), ValueError, "a number, or a tensor of one, got shape (2,)"),
]


@pytest.mark.parametrize(("value", "error", "message"), TENSORS)
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@kinds
def test_tensors_that_are_no_rates(kind: Any, name: str, value: Any, error: Any, message: str) -> None:
    p = parameter(3)
    with pytest.raises(error, match=re.escape(f"{name} must be {message}")):
        kind([p], **{name: value})
    opt = kind([{"params": [p]}, {"params": [parameter(2)]}], lr=0.1)
    steps(opt, [p])
    before = snapshot(opt)
    opt.param_groups[1][name] = value
    with pytest.raises(error, match=re.escape(f"{name} of group 1 must be {message}")):
        opt.step()
    assert_same(snapshot(opt), before)


@kinds
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


@kinds
def test_unknown_arguments_are_refused(kind: Any) -> None:
    for name in ("foo", "foreach", "fused", "capturable", "differentiable", "momentun"):
        with pytest.raises(TypeError, match=name):
            kind([parameter(3)], **{name: True})
    with pytest.raises(TypeError):
        kind([parameter(3)], 0.1, 0.9, 0.0, False, False, False)


@kinds
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


@kinds
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
        for kind in (Lamb, Lars, Momentum)
        for name in ("eps", "momentum", "max_grad_norm", "trust_coefficient")
        if name in kind._method.names
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
