"""Training that began with an optimizer of another package goes on with ours as it would have without us."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import tests.peers.test_migration_standins as foreign
from numba_lamb.torch import Lamb, Lars, Momentum
from numba_lamb.torch.migration.filters import no_layer, two_or_more_dimensions

SHAPES = {
    "conv": (4, 3, 3, 3),
    "still": (3, 2),
    "matrix": (50, 30),
    "bias": (17,),
    "one": (1,),
    "scalar": (),
    "zeros": (5, 2),
}
"""``still`` has gradients of zeros, ``one`` has none, ``zeros`` has no weight norm at first."""
FIRST_GROUP = 3
STEPS = 5
LIMIT = {torch.float64: 1e-13, torch.float32: 1e-6}


def parameters(dtype: torch.dtype) -> list[Any]:
    generator = torch.Generator().manual_seed(7)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES.values()]
    # A norm above the 10 at which some cap it.
    made[2] *= 2
    made[-1].zero_()
    return [torch.nn.Parameter(tensor.to(dtype)) for tensor in made]


def gradients(params: list[Any], step: int) -> None:
    """Give each parameter a gradient that depends on it, so that errors grow, but for `still` and `one`."""
    generator = torch.Generator().manual_seed(100 + step)
    for name, p in zip(SHAPES, params, strict=True):
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = None if name == "one" else (noise * 0.3 + 0.1 * p.detach()) * (name != "still")


def train(opt: Any, params: list[Any], first: int) -> None:
    for step in range(first, first + STEPS):
        gradients(params, step)
        opt.step()


def grouped(params: list[Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"params": params[:FIRST_GROUP]},
        {"params": params[FIRST_GROUP:], "lr_scale": 0.5, **second},
    ]


@dataclass(frozen=True)
class Case:
    kind: Any
    get: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    second: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    loads: bool = True
    """Whether its state dict tells all there is to know."""
    ours: dict[str, Any] = field(default_factory=dict)
    """What our optimizer must be made with to load its state dict."""
    limit: float = 0.0


def timm_lamb() -> Any:
    return foreign.timm("Lamb")


def timm_lars() -> Any:
    return foreign.timm("Lars")


def torch_optimizer() -> Any:
    return foreign.installed("torch_optimizer", "Lamb")


def pytorch_optimizer() -> Any:
    return foreign.installed("pytorch_optimizer", "Lamb")


def pytorch_optimizer_lars() -> Any:
    return foreign.installed("pytorch_optimizer", "LARS")


RATE = {"lr": 0.02}
DECAYED = {"lr": 0.02, "weight_decay": 0.05}
BARE = {"weight_decay": 0.0, "lr": 0.03}
"""A second group that is not decayed, as biases are not."""
NESTEROV = {**DECAYED, "momentum": 0.9, "nesterov": True}
MOMENTUM = {**DECAYED, "momentum": 0.8}
DIMENSIONS = {"decay_filter": two_or_more_dimensions, "adapt_filter": two_or_more_dimensions}
UNCAPPED = {"variant": "paper", "bias_correction": False}

CASES = {
    "adamw": Case(Lamb, lambda: torch.optim.AdamW, RATE),
    "adamw, groups": Case(Lamb, lambda: torch.optim.AdamW, {**DECAYED, "eps": 1e-4}, BARE),
    "adamw, maximize": Case(Lamb, lambda: torch.optim.AdamW, {**DECAYED, "maximize": True}),
    "adamw, tensor rate": Case(
        Lamb, lambda: torch.optim.AdamW, {"lr": torch.tensor(0.02, dtype=torch.float64), "foreach": False}
    ),
    "adamw, float32": Case(Lamb, lambda: torch.optim.AdamW, DECAYED, BARE, torch.float32),
    "adamw, fused": Case(Lamb, lambda: torch.optim.AdamW, {**DECAYED, "fused": True}, dtype=torch.float32),
    "adam": Case(Lamb, lambda: torch.optim.Adam, {**RATE, "betas": (0.8, 0.99)}),
    "adam, decoupled": Case(Lamb, lambda: torch.optim.Adam, {**DECAYED, "decoupled_weight_decay": True}),
    "sgd": Case(Momentum, lambda: torch.optim.SGD, MOMENTUM, BARE),
    "sgd, nesterov": Case(Momentum, lambda: torch.optim.SGD, NESTEROV, BARE),
    "sgd, maximize": Case(Momentum, lambda: torch.optim.SGD, {**NESTEROV, "maximize": True}),
    "sgd, plain": Case(Momentum, lambda: torch.optim.SGD, {**RATE, "dampening": 0.5}),
    "sgd, float32": Case(Momentum, lambda: torch.optim.SGD, MOMENTUM, BARE, torch.float32),
    "timm lamb": Case(Lamb, timm_lamb, RATE, BARE),
    "timm lamb, clipping": Case(Lamb, timm_lamb, {**DECAYED, "max_grad_norm": 0.25}, BARE),
    "timm lamb, unclipped": Case(Lamb, timm_lamb, {**DECAYED, "max_grad_norm": None}, BARE),
    "timm lamb, always_adapt": Case(Lamb, timm_lamb, {**DECAYED, "always_adapt": True}, BARE),
    "timm lamb, trust_clip": Case(Lamb, timm_lamb, {**DECAYED, "trust_clip": True}),
    "timm lamb, averaging": Case(Lamb, timm_lamb, {**DECAYED, "grad_averaging": False}, BARE),
    "timm lamb, uncorrected": Case(Lamb, timm_lamb, {**DECAYED, "bias_correction": False}, BARE),
    "timm lamb, decoupled": Case(Lamb, timm_lamb, {**DECAYED, "decoupled_decay": True}, BARE),
    "timm lamb, foreach": Case(Lamb, timm_lamb, {**DECAYED, "foreach": True}, BARE),
    "timm lamb, float32": Case(Lamb, timm_lamb, DECAYED, BARE, torch.float32),
    "timm lars": Case(Lars, timm_lars, MOMENTUM, BARE),
    "timm lars, nesterov": Case(Lars, timm_lars, {**NESTEROV, "trust_coeff": 0.02, "eps": 1e-3}, BARE),
    "timm lars, always_adapt": Case(Lars, timm_lars, {**MOMENTUM, "always_adapt": True}, BARE),
    "timm lars, trust_clip": Case(Lars, timm_lars, {**MOMENTUM, "trust_clip": True, "trust_coeff": 0.1}),
    "timm lars, large rate": Case(Lars, timm_lars, {**MOMENTUM, "trust_clip": True, "lr": 2.0}),
    "timm lars, no momentum": Case(Lars, timm_lars, {**DECAYED, "dampening": 0.5}),
    "timm lars, float32": Case(Lars, timm_lars, MOMENTUM, BARE, torch.float32),
    "apex": Case(Lamb, lambda: foreign.FusedLAMB, RATE, BARE),
    "apex, clipping": Case(Lamb, lambda: foreign.FusedLAMB, {**DECAYED, "max_grad_norm": 0.25}, BARE),
    "apex, averaging": Case(Lamb, lambda: foreign.FusedLAMB, {**DECAYED, "grad_averaging": False}),
    "apex, uncorrected": Case(Lamb, lambda: foreign.FusedLAMB, {**DECAYED, "bias_correction": False}),
    "apex, nvlamb": Case(
        Lamb, lambda: foreign.FusedLAMB, {**DECAYED, "use_nvlamb": True}, BARE, ours={"always_adapt": True}
    ),
    "apex, not decayed": Case(
        Lamb, lambda: foreign.FusedLAMB, {**RATE, "weight_decay": 0.0, "adam_w_mode": False}
    ),
    "deepspeed": Case(Lamb, lambda: foreign.FusedLamb, DECAYED, BARE),
    "deepspeed, coefficients": Case(
        Lamb, lambda: foreign.FusedLamb, {**DECAYED, "max_coeff": 0.5, "min_coeff": 0.2}
    ),
    "torch_optimizer": Case(Lamb, torch_optimizer, DECAYED, BARE),
    "torch_optimizer, clamp": Case(
        Lamb, torch_optimizer, {**DECAYED, "clamp_value": 0.7}, ours={"weight_norm_bounds": (0.0, 0.7)}
    ),
    "torch_optimizer, adam": Case(
        Lamb, torch_optimizer, {**DECAYED, "adam": True}, ours={"variant": "adamw", "bias_correction": False}
    ),
    "torch_optimizer, no cap": Case(
        Lamb, torch_optimizer, {**DECAYED, "clamp_value": float("inf")}, ours=UNCAPPED
    ),
    "torch_optimizer, float32": Case(Lamb, torch_optimizer, DECAYED, BARE, torch.float32),
    "pytorch_optimizer": Case(Lamb, pytorch_optimizer, DECAYED, BARE),
    "pytorch_optimizer, loop": Case(Lamb, pytorch_optimizer, {**DECAYED, "foreach": False}, BARE),
    "pytorch_optimizer, coupled": Case(Lamb, pytorch_optimizer, {**DECAYED, "weight_decouple": False}, BARE),
    "pytorch_optimizer, averaging": Case(Lamb, pytorch_optimizer, {**DECAYED, "grad_averaging": False}),
    "pytorch_optimizer, adam": Case(
        Lamb, pytorch_optimizer, {**DECAYED, "adam": True}, ours={"adapt_filter": no_layer}
    ),
    "pytorch_optimizer, maximize": Case(
        Lamb, pytorch_optimizer, {**DECAYED, "maximize": True}, ours={"maximize": True}
    ),
    "pytorch_optimizer, pre_norm": Case(
        Lamb,
        pytorch_optimizer,
        {**DECAYED, "pre_norm": True, "max_grad_norm": 0.25},
        ours={"max_grad_norm": 0.25},
        limit=1e-6,
    ),
    "pytorch_optimizer, no pre_norm": Case(Lamb, pytorch_optimizer, {**DECAYED, "max_grad_norm": 0.25}),
    "pytorch_optimizer lars": Case(Lars, pytorch_optimizer_lars, MOMENTUM, BARE, ours=DIMENSIONS),
    "pytorch_optimizer lars, loop": Case(
        Lars, pytorch_optimizer_lars, {**NESTEROV, "foreach": False}, BARE, ours=DIMENSIONS
    ),
    "pytorch_optimizer lars, maximize": Case(
        Lars, pytorch_optimizer_lars, {**MOMENTUM, "maximize": True}, ours={**DIMENSIONS, "maximize": True}
    ),
    "pytorch_optimizer lars, float32": Case(
        Lars, pytorch_optimizer_lars, MOMENTUM, BARE, torch.float32, ours=DIMENSIONS
    ),
}
BUFFERS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def begun(case: Case) -> tuple[Any, list[Any]]:
    """Return an optimizer of the other package after some steps, and its parameters."""
    params = parameters(case.dtype)
    other = case.get()(grouped(params, case.second), **case.options)
    train(other, params, 0)
    return other, params


def relative(found: Any, expected: Any) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max()) / (float(expected.abs().max()) or 1.0)


def assert_same(case: Case, opt: Any, params: list[Any], other: Any, expected: list[Any]) -> None:
    limit = case.limit or LIMIT[case.dtype]
    start = parameters(case.dtype)
    for name, p, q, w in zip(SHAPES, params, expected, start, strict=True):
        assert relative(p, q) <= limit, name
        # Not vacuous: they have moved, by more than they may differ.
        assert name in ("one", "still") or relative(q, w) > 10 * limit, name
        for key in BUFFERS:
            if other.state[q].get(key) is not None:
                assert relative(opt.state[p][key], other.state[q][key]) <= limit, (name, key)


@pytest.mark.parametrize("name", CASES)
def test_from_optimizer_goes_on(name: str) -> None:
    case = CASES[name]
    other, expected = begun(case)
    twin, params = begun(case)
    opt = case.kind.from_optimizer(twin)
    assert [p for group in opt.param_groups for p in group["params"]] == params
    train(other, expected, STEPS)
    train(opt, params, STEPS)
    assert_same(case, opt, params, other, expected)
    assert opt.param_groups[1]["lr_scale"] == 0.5


@pytest.mark.parametrize("name", CASES)
def test_load_state_dict_goes_on(name: str) -> None:
    case = CASES[name]
    other, expected = begun(case)
    params = [torch.nn.Parameter(p.detach().clone()) for p in expected]
    opt = case.kind(grouped(params, {}), **case.ours)
    opt.load_state_dict(other.state_dict())
    train(other, expected, STEPS)
    train(opt, params, STEPS)
    assert_same(case, opt, params, other, expected)
    assert opt.param_groups[1]["lr_scale"] == 0.5


def snapshot(other: Any) -> tuple[list[Any], list[Any]]:
    groups = [
        {key: value if key == "params" else str(value) for key, value in group.items()}
        for group in other.param_groups
    ]
    values = [
        {key: value.clone() if torch.is_tensor(value) else value for key, value in entry.items()}
        for entry in other.state.values()
    ]
    return groups, values


def assert_untouched(other: Any, before: tuple[list[Any], list[Any]]) -> None:
    groups, values = snapshot(other)
    assert [{**group, "params": len(group["params"])} for group in groups] == [
        {**group, "params": len(group["params"])} for group in before[0]
    ]
    for found, expected in zip(values, before[1], strict=True):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[key])), key


PLAIN = [name for name in CASES if "," not in name]
"""One case of each source."""


@pytest.mark.parametrize("name", PLAIN)
def test_the_other_optimizer_is_left_alone(name: str) -> None:
    case = CASES[name]
    other, params = begun(case)
    before = snapshot(other)
    moved = case.kind.from_optimizer(other)
    loaded = case.kind(grouped([torch.nn.Parameter(p.detach().clone()) for p in params], {}), **case.ours)
    loaded.load_state_dict(other.state_dict())
    train(moved, params, STEPS)
    train(loaded, [p for group in loaded.param_groups for p in group["params"]], STEPS)
    assert_untouched(other, before)
    held = {
        t.untyped_storage().data_ptr()
        for entry in other.state.values()
        for t in entry.values()
        if torch.is_tensor(t)
    }
    assert held
    for opt in (moved, loaded):
        for entry in opt.state.values():
            assert not held & {t.untyped_storage().data_ptr() for t in entry.values()}


@pytest.mark.parametrize("name", PLAIN)
def test_what_was_moved_survives_a_file(name: str, tmp_path: Any) -> None:
    case = CASES[name]
    other, params = begun(case)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    moved = case.kind.from_optimizer(other)
    torch.save(moved.state_dict(), tmp_path / "ours.pt")
    torch.save(other.state_dict(), tmp_path / "theirs.pt")
    filters = DIMENSIONS if case.ours == DIMENSIONS else {}
    for file in ("ours.pt", "theirs.pt"):
        copies = [torch.nn.Parameter(p.detach().clone()) for p in twins]
        opt = case.kind(grouped(copies, {}), **filters)
        opt.load_state_dict(torch.load(tmp_path / file, weights_only=True))
        train(opt, copies, STEPS)
        if file == "ours.pt":
            train(moved, params, STEPS)
        for p, q in zip(params, copies, strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("name", CASES)
def test_from_optimizer_before_the_first_step(name: str) -> None:
    case = CASES[name]
    expected, params = parameters(case.dtype), parameters(case.dtype)
    other, fresh = (case.get()(grouped(those, case.second), **case.options) for those in (expected, params))
    opt = case.kind.from_optimizer(fresh)
    assert not opt.state
    train(other, expected, 0)
    train(opt, params, 0)
    assert_same(case, opt, params, other, expected)


def test_a_state_dict_is_taken_before_the_first_step() -> None:
    expected, params = parameters(torch.float64), parameters(torch.float64)
    other, opt = torch.optim.AdamW(expected, **DECAYED), Lamb(params)
    opt.load_state_dict(other.state_dict())
    train(other, expected, 0)
    train(opt, params, 0)
    assert_same(CASES["adamw"], opt, params, other, expected)


def test_a_parameter_that_had_no_gradient_begins_at_step_1() -> None:
    other, params = begun(CASES["timm lamb"])
    late = params[list(SHAPES).index("one")]
    opt = Lamb.from_optimizer(other)
    train(opt, params, STEPS)
    assert late not in opt.state
    late.grad = torch.ones_like(late)
    opt.step()
    assert float(opt.state[late]["step"]) == 1
    assert float(opt.state[params[0]]["step"]) == 2 * STEPS + 1


def test_names_come_along() -> None:
    params = dict(zip(SHAPES, parameters(torch.float64), strict=True))
    other = torch.optim.AdamW(params.items(), lr=0.02)
    train(other, list(params.values()), 0)
    opt = Lamb.from_optimizer(other, variant="paper")
    assert opt.param_groups[0]["param_names"] == list(SHAPES)
    train(opt, list(params.values()), STEPS)
    assert "trust_ratio/matrix" in opt.stats()


SCHEDULERS = {
    "cosine": lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=10),
    "lambda": lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.8**epoch),
    "one cycle": lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=20),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_after_the_move(name: str) -> None:
    make = SCHEDULERS[name]
    runs = []
    for move in (False, True):
        params = parameters(torch.float64)
        opt = torch.optim.AdamW(params, lr=0.02)
        scheduler = make(opt)
        for step in range(2 * STEPS):
            if move and step == STEPS:
                saved = scheduler.state_dict()
                opt = Lamb.from_optimizer(opt)
                before = [dict(group) for group in opt.param_groups]
                scheduler = make(opt)
                scheduler.load_state_dict(saved)
                for group, options in zip(opt.param_groups, before, strict=True):
                    group.update(options)
            gradients(params, step)
            opt.step()
            scheduler.step()
        runs.append((params, opt.param_groups[0]["lr"]))
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-14)
    for p, q in zip(runs[0][0], runs[1][0], strict=True):
        assert relative(q, p) <= 1e-13


@pytest.mark.parametrize(
    "given", [{"variant": "paper"}, {"variant": "paper", "lr": 0.5, "weight_decay": 0.25}]
)
def test_overrides_name_another_formula(given: dict[str, Any]) -> None:
    other, params = begun(CASES["adamw, groups"])
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    opt = Lamb.from_optimizer(other, **given)
    for group, old in zip(opt.param_groups, other.param_groups, strict=True):
        assert group["variant"] == "paper"
        assert group["lr"] == given.get("lr", old["lr"])
        assert group["weight_decay"] == given.get("weight_decay", old["weight_decay"])
        assert group["eps"] == 1e-4
    expected = Lamb(
        [
            {**{key: old[key] for key in ("lr", "betas", "eps", "weight_decay")}, **given, "params": part}
            for old, part in zip(
                other.param_groups, (copies[:FIRST_GROUP], copies[FIRST_GROUP:]), strict=True
            )
        ]
    )
    state = other.state_dict()["state"]
    saved = expected.state_dict()
    expected.load_state_dict({**saved, "state": state})
    train(opt, params, STEPS)
    train(expected, copies, STEPS)
    for p, q in zip(params, copies, strict=True):
        assert torch.equal(p, q)


def test_bitsandbytes_needs_a_formula() -> None:
    params = parameters(torch.float32)
    other = foreign.LAMB(params, lr=0.02, weight_decay=0.05)
    with pytest.raises(ValueError, match=r"formula=.*variant='paper'"):
        Lamb.from_optimizer(other)
    opt = Lamb.from_optimizer(other, variant="paper")
    for p in params:
        assert float(opt.state[p]["step"]) == 7
        assert torch.equal(opt.state[p]["exp_avg"], other.state[p]["state1"])
        assert torch.equal(opt.state[p]["exp_avg_sq"], other.state[p]["state2"])
    train(opt, params, 0)
    assert float(opt.state[params[0]]["step"]) == 7 + STEPS


def test_a_formula_of_its_own_lets_all_states_in() -> None:
    params = parameters(torch.float64)
    other = torch.optim.AdamW(params, lr=0.02, amsgrad=True)
    train(other, params, 0)
    opt = Lamb.from_optimizer(other, variant="paper")
    assert opt.param_groups[0]["variant"] == "paper"
    assert float(opt.state[params[0]]["step"]) == STEPS
    assert set(opt.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"}


def test_the_limit_is_that_of_the_constructor() -> None:
    # timm never looks at the limit of a group.
    case = Case(Lamb, timm_lamb, {**DECAYED, "max_grad_norm": 0.25}, {"max_grad_norm": 5.0})
    other, expected = begun(case)
    twin, params = begun(case)
    opt = Lamb.from_optimizer(twin)
    train(other, expected, STEPS)
    train(opt, params, STEPS)
    assert_same(case, opt, params, other, expected)


def test_classes_derived_from_ours_can_move_in_too() -> None:
    class Mine(Lamb):
        pass

    other, params = begun(CASES["adamw"])
    opt = Mine.from_optimizer(other)
    assert type(opt) is Mine
    loaded = Mine(grouped(params, {}))
    loaded.load_state_dict(opt.state_dict())
    loaded.load_state_dict(other.state_dict())
    assert type(Lamb.from_optimizer(loaded)) is Lamb


def test_from_optimizer_of_our_own_goes_on() -> None:
    params = parameters(torch.float64)
    first = Lars(grouped(params, {"weight_decay": 0.1}), lr=0.5, nesterov=True, **DIMENSIONS)
    train(first, params, 0)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    second = Lars(grouped(copies, {}), **DIMENSIONS)
    second.load_state_dict(first.state_dict())
    moved = Lars.from_optimizer(first)
    assert moved.param_groups[0]["adapt_filter"] is two_or_more_dimensions
    train(moved, params, STEPS)
    train(second, copies, STEPS)
    for p, q in zip(params, copies, strict=True):
        assert torch.equal(p, q)
