"""State dicts of other packages in our form: keys, steps, copies, what a dict does not tell, what is refused."""

import copy
from typing import Any

import pytest
import torch

import tests.peers.test_migration_standins as foreign
from numba_lamb.methods.options import STORAGE
from numba_lamb.torch.migration import adopt_state_dict, options_of, state_dict_of
from numba_lamb.torch.migration.filters import no_layer, two_or_more_dimensions
from numba_lamb.torch.migration.options import GROUP_OPTIONS

MAKE = {
    "AdamW": ("Lamb", foreign.adamw),
    "SGD": ("Momentum", lambda: foreign.sgd(momentum=0.9)),
    "timm Lamb": ("Lamb", foreign.timm_lamb),
    "timm Lars": ("Lars", lambda: foreign.timm_lars(momentum=0.9)),
    "Apex": ("Lamb", foreign.apex),
    "DeepSpeed": ("Lamb", foreign.deepspeed),
    "torch_optimizer": ("Lamb", foreign.torch_optimizer),
    "pytorch_optimizer Lamb": ("Lamb", foreign.pytorch_optimizer),
    "pytorch_optimizer LARS": ("Lars", foreign.pytorch_optimizer_lars),
    "bitsandbytes": ("Lamb", lambda: foreign.LAMB(foreign.weights())),
}
STEPS = 3
STATE = {
    "Lamb": {"step", "exp_avg", "exp_avg_sq"},
    "Lars": {"step", "momentum_buffer"},
    "Momentum": {"step", "momentum_buffer"},
}
FILTERS = {"decay_filter": two_or_more_dimensions, "adapt_filter": two_or_more_dimensions}
MADE = {"variant": "paper", **FILTERS}
UNCOUNTED = {"SGD": 0, "timm Lars": 0, "bitsandbytes": 7}
PAPER = {"variant": "paper", "always_adapt": None, "bias_correction": None}


def stepped(name: str) -> Any:
    other = MAKE[name][1]()
    if name != "bitsandbytes":
        for step in range(STEPS):
            for p in other.param_groups[0]["params"]:
                p.grad = torch.full_like(p, 0.5 + step)
            other.step()
    return other


@pytest.mark.parametrize("name", MAKE)
def test_the_result_has_our_form_and_copies(name: str) -> None:
    kind = MAKE[name][0]
    other = stepped(name)
    other.param_groups[0] |= {"initial_lr": 0.5, "lr_scale": 2.0, "param_names": ["a", "b"], "max_lr": 1.0}
    given = other.state_dict()
    before = copy.deepcopy(given)
    found = adopt_state_dict(kind, given, {"nonfinite": "skip", **MADE})
    assert str(given) == str(before)
    assert found.keys() == {"state", "param_groups"}
    (group,) = found["param_groups"]
    foreign_keys = {"initial_lr", "lr_scale", "param_names", "max_lr"}
    without = {"decay_filter", "adapt_filter", *(one.name for one in STORAGE)}
    assert group.keys() == GROUP_OPTIONS[kind] - without | foreign_keys | {"params"}
    assert group["params"] == [0, 1]
    assert group["param_names"] == ["a", "b"]
    assert group["param_names"] is not given["param_groups"][0]["param_names"]
    assert group["nonfinite"] == "skip"
    assert type(group["lr"]) is float
    assert found["state"].keys() == {0, 1}
    held = {t.data_ptr() for entry in given["state"].values() for t in entry.values() if torch.is_tensor(t)}
    for index, entry in found["state"].items():
        assert entry.keys() == STATE[kind]
        step = entry["step"]
        assert (step.shape, step.dtype, float(step)) == ((), torch.float32, UNCOUNTED.get(name, STEPS))
        for key in entry.keys() - {"step"}:
            theirs = {"exp_avg": "state1", "exp_avg_sq": "state2"}[key] if name == "bitsandbytes" else key
            assert torch.equal(entry[key], given["state"][index][theirs])
            assert entry[key].data_ptr() not in held
            assert not entry[key].requires_grad


@pytest.mark.parametrize("name", MAKE)
def test_ours_is_returned_as_it_is(name: str) -> None:
    kind, _ = MAKE[name]
    ours = adopt_state_dict(kind, stepped(name).state_dict(), MADE)
    del ours["param_groups"][0]["max_grad_norm"]
    assert adopt_state_dict(kind, ours, {"max_grad_norm": 1.0}) is ours
    assert "max_grad_norm" not in ours["param_groups"][0]
    wrong = "Lars" if kind == "Lamb" else "Lamb"
    with pytest.raises(ValueError, match=rf"^{wrong} cannot continue numba_lamb.torch.{kind}, which {kind}"):
        adopt_state_dict(wrong, ours, {})


@pytest.mark.parametrize("name", MAKE)
def test_the_wrong_class_is_named(name: str) -> None:
    right, _ = MAKE[name]
    given = stepped(name).state_dict()
    for kind in STATE.keys() - {right}:
        with pytest.raises(
            ValueError, match=rf"^{kind} cannot continue \S+( or AdamW)?, which {right} continues"
        ):
            adopt_state_dict(kind, given, {})


@pytest.mark.parametrize("name", [name for name in MAKE if name != "bitsandbytes"])
def test_state_dict_of_has_the_groups_of_options_of(name: str) -> None:
    kind, _ = MAKE[name]
    other = stepped(name)
    _, groups = options_of(kind, other)
    found = state_dict_of(kind, other, groups)
    adopted = adopt_state_dict(kind, other.state_dict(), FILTERS)
    assert str(found["state"]) == str(adopted["state"])
    assert found["param_groups"][0]["params"] == [0, 1]
    assert {**groups[0], "params": [0, 1]}.items() >= found["param_groups"][0].items()
    assert not FILTERS.keys() & found["param_groups"][0].keys()


@pytest.mark.parametrize(
    ("kind", "name", "key", "value"),
    [
        ("Lamb", "AdamW", "max_grad_norm", 2.0),
        ("Lamb", "torch_optimizer", "maximize", True),
        ("Lamb", "pytorch_optimizer Lamb", "maximize", True),
        ("Lamb", "pytorch_optimizer Lamb", "max_grad_norm", 0.5),
        ("Lamb", "Apex", "always_adapt", True),
        ("Lamb", "timm Lamb", "maximize", True),
        ("Lamb", "bitsandbytes", "variant", "timm"),
        ("Momentum", "SGD", "max_grad_norm", 2.0),
        ("Lars", "pytorch_optimizer LARS", "maximize", True),
        ("Lars", "timm Lars", "max_grad_norm", 2.0),
    ],
)
def test_what_a_dict_does_not_tell_stays_as_the_optimizer_was_made(
    kind: str, name: str, key: str, value: Any
) -> None:
    given = stepped(name).state_dict()
    plain = adopt_state_dict(kind, given, MADE)
    said = adopt_state_dict(kind, given, {**MADE, key: value})
    assert plain["param_groups"][0][key] != value
    assert said["param_groups"][0][key] == value


@pytest.mark.parametrize(
    ("kind", "name", "key", "value"),
    [
        ("Lamb", "AdamW", "maximize", True),
        ("Lamb", "AdamW", "variant", "paper"),
        ("Lamb", "timm Lamb", "max_grad_norm", 2.0),
        ("Lamb", "timm Lamb", "always_adapt", True),
        ("Lamb", "Apex", "max_grad_norm", 2.0),
        ("Lamb", "torch_optimizer", "variant", "paper"),
        ("Lars", "timm Lars", "trust_coefficient", 0.5),
        ("Momentum", "SGD", "nesterov", True),
    ],
)
def test_what_a_dict_tells_is_taken(kind: str, name: str, key: str, value: Any) -> None:
    given = stepped(name).state_dict()
    assert adopt_state_dict(kind, given, {key: value})["param_groups"][0][key] != value


@pytest.mark.parametrize("variant", ["adamw", "paper"])
def test_a_lamb_made_without_correction_says_that_torch_optimizers_has_no_cap(variant: str) -> None:
    given = stepped("torch_optimizer").state_dict()
    said = {"variant": variant, "bias_correction": False}
    assert said.items() <= adopt_state_dict("Lamb", given, said)["param_groups"][0].items()
    assert (
        adopt_state_dict("Lamb", given, {"variant": variant})["param_groups"][0]["variant"]
        == "torch_optimizer"
    )


def test_a_weight_norm_above_the_cap_gives_another_cap_away() -> None:
    weight = torch.nn.Parameter(torch.full((10, 10), 2.0))
    other = foreign.installed("torch_optimizer", "Lamb")([weight], clamp_value=1e4)
    weight.grad = torch.ones_like(weight)
    other.step()
    with pytest.raises(ValueError, match=r"clamp_value of .* must be 10 .*got a weight norm of"):
        adopt_state_dict("Lamb", other.state_dict(), {"variant": "paper"})
    said = {"variant": "paper", "bias_correction": False}
    assert adopt_state_dict("Lamb", other.state_dict(), said)["state"].keys() == {0}


def test_filters_that_a_dict_cannot_hold_must_be_there() -> None:
    given = stepped("pytorch_optimizer LARS").state_dict()
    for missing in FILTERS:
        some = {key: value for key, value in FILTERS.items() if key != missing}
        with pytest.raises(
            ValueError, match=rf"{missing} must be numba_lamb\S*two_or_more_dimensions.*from_optimizer"
        ):
            adopt_state_dict("Lars", given, some)
    given = foreign.pytorch_optimizer(adam=True).state_dict()
    with pytest.raises(ValueError, match=r"adapt_filter must be numba_lamb\S*no_layer"):
        adopt_state_dict("Lamb", given, {"adapt_filter": None})
    assert adopt_state_dict("Lamb", given, {"adapt_filter": no_layer})["param_groups"]


def test_decay_of_an_old_adam_may_be_either() -> None:
    given = foreign.adamw(weight_decay=0.1).state_dict()
    (group,) = given["param_groups"]
    del group["decoupled_weight_decay"]
    with pytest.raises(ValueError, match=r"weight_decay=0.1: it may be Adam's.*set 'decoupled_weight_decay'"):
        adopt_state_dict("Lamb", given, {})
    group["weight_decay"] = 0
    assert adopt_state_dict("Lamb", given, {})["param_groups"][0]["weight_decay"] == 0.0


def test_an_old_sgd_has_the_keys_of_others() -> None:
    given = foreign.sgd().state_dict()
    del given["param_groups"][0]["maximize"]
    with pytest.raises(ValueError, match=r"no optimizer that is known here"):
        adopt_state_dict("Momentum", given, {})


def test_without_state_a_lamb_of_torch_optimizer_cannot_be_told() -> None:
    with pytest.raises(ValueError, match=r"betas, eps, lr, weight_decay; its state holds nothing"):
        adopt_state_dict("Lamb", foreign.torch_optimizer().state_dict(), {"variant": "torch_optimizer"})


def test_an_old_lamb_of_timm_is_taken() -> None:
    given = stepped("timm Lamb").state_dict()
    (group,) = given["param_groups"]
    for key in ("caution", "decoupled_decay", "corrected_weight_decay", "max_lr_snapshot", "foreach"):
        del group[key]
    group["step"] = STEPS
    found = adopt_state_dict("Lamb", given, {})
    assert found["param_groups"][0]["variant"] == "timm"
    assert found["param_groups"][0]["decoupled_decay"] is False
    assert float(found["state"][1]["step"]) == STEPS


def test_limits_that_differ_between_groups_leave_the_constructors_unknown() -> None:
    groups = [{"params": [p], "max_grad_norm": 1.0 + k} for k, p in enumerate(foreign.weights())]
    other = foreign.timm("Lamb")(groups, max_grad_norm=0.5)
    with pytest.raises(ValueError, match=r"max_grad_norm of 1.0, 2.0.*from_optimizer"):
        adopt_state_dict("Lamb", other.state_dict(), {})
    _, found = options_of("Lamb", other)
    assert [group["max_grad_norm"] for group in found] == [0.5, 0.5]


def test_eight_bits_are_refused() -> None:
    other = foreign.LAMB(foreign.weights(), bits=8)
    with pytest.raises(ValueError, match=r"parameter 0 of bitsandbytes.*8 bits.*32 bits"):
        adopt_state_dict("Lamb", other.state_dict(), PAPER)
    with pytest.raises(ValueError, match=r"parameter 0 of bitsandbytes.*8 bits.*32 bits"):
        state_dict_of("Lamb", other, options_of("Lamb", other, PAPER)[1])


def test_a_parameter_without_state_gets_none() -> None:
    other = foreign.timm_lamb()
    first = other.param_groups[0]["params"][0]
    first.grad = torch.ones_like(first)
    other.step()
    assert adopt_state_dict("Lamb", other.state_dict(), {})["state"].keys() == {0}
    saved = foreign.sgd().state_dict()
    saved["state"][0] = {"momentum_buffer": None}
    assert adopt_state_dict("Momentum", saved, {})["state"] == {}


def lamb_dict(**entry: Any) -> dict[str, Any]:
    saved = foreign.adamw().state_dict()
    saved["state"][0] = {"step": 1, "exp_avg": torch.ones(3, 2), "exp_avg_sq": torch.ones(3, 2), **entry}
    return saved


def without(saved: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        del saved["state"][0][key]
    return saved


FLAT = {"step": 3, "fp32_p": torch.ones(8), "fp32_m": torch.ones(8), "fp32_v": torch.ones(8)}
BAD = {
    "no mapping": (TypeError, [1, 2], "must be a mapping, not a list"),
    "flat": (ValueError, FLAT, "DistributedFusedLAMB.*one rank's flat piece"),
    "no groups": (ValueError, {"state": {}}, "its keys are 'state', and 'param_groups' is missing"),
    "no state": (ValueError, {"param_groups": []}, "'state' is missing"),
    "wrong state": (ValueError, {"state": [], "param_groups": []}, "'state' is list"),
    "no step": (ValueError, without(lamb_dict(), "step"), "parameter 0 of torch.*has no 'step'"),
    "one moment": (ValueError, without(lamb_dict(), "exp_avg"), "has no 'exp_avg'; it must have"),
    "no tensor": (TypeError, lamb_dict(exp_avg=1.0), "'exp_avg' that is a float"),
    "other state": (ValueError, lamb_dict(exp_avg_diff=1.0), "no optimizer that is known.*exp_avg_diff"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_state_dict_of_a_known_optimizer_is_refused(name: str) -> None:
    error, given, message = BAD[name]
    with pytest.raises(error, match=message):
        adopt_state_dict("Lamb", given, {})


def unlike() -> dict[str, tuple[str, Any]]:
    weights = foreign.weights()
    return {
        "RMSprop": ("Momentum", torch.optim.RMSprop(weights)),
        "NAdam": ("Lamb", torch.optim.NAdam(weights)),
        "RAdam": ("Lamb", torch.optim.RAdam(weights)),
        "Adagrad": ("Lamb", torch.optim.Adagrad(weights)),
    }


@pytest.mark.parametrize("name", unlike())
def test_optimizers_that_look_alike_are_refused(name: str) -> None:
    kind, other = unlike()[name]
    for empty in (True, False):
        if not empty:
            for p in other.param_groups[0]["params"]:
                p.grad = torch.ones_like(p)
            other.step()
        with pytest.raises(ValueError, match=r"no optimizer that is known here.*Known are deepspeed"):
            adopt_state_dict(kind, other.state_dict(), {})


@pytest.mark.parametrize("name", ["SGDW", "AdaBelief", "SGDP", "AdamP", "Lion", "NovoGrad"])
def test_relatives_in_other_packages_are_refused(name: str) -> None:
    found = 0
    for package in ("torch_optimizer", "pytorch_optimizer"):
        made = getattr(pytest.importorskip(package, reason=f"{package} is not installed"), name, None)
        if made is None:
            continue
        found += 1
        other = made(foreign.weights(), lr=0.1)
        for p in other.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        other.step()
        for kind in STATE:
            with pytest.raises(ValueError, match=r"no optimizer that is known here"):
                adopt_state_dict(kind, other.state_dict(), {})
    assert found


def test_an_empty_dict_passes() -> None:
    empty: dict[str, Any] = {"state": {}, "param_groups": []}
    assert adopt_state_dict("Lamb", empty, {}) is empty


def test_kinds_are_ours() -> None:
    with pytest.raises(ValueError, match="kind must be one of Lamb, Lans, Lars, Momentum, not 'Adam'"):
        options_of("Adam", foreign.adamw())
