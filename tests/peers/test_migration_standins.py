"""Optimizers of other packages: stand-ins for those that need a GPU to be built, and what is refused of each.

A stand-in has the class name, the module, the groups, the attributes and the formula of the original, as its
source says, in plain PyTorch.
"""

import importlib
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from numba_lamb.torch import Lamb
from numba_lamb.torch.migration import adopt_state_dict, options_of
from tests.helpers import run_python


def timm(name: str) -> Any:
    """Import an optimizer of timm without timm: the package needs a torchvision whose binary fits this torch."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the peers extra is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for package, folder in (("timm", ""), ("timm.optim", "optim")):
            bare = ModuleType(package)
            bare.__path__ = [str(Path(root) / folder) for root in spec.submodule_search_locations]
            patch.setitem(sys.modules, package, bare)
        return getattr(importlib.import_module(f"timm.optim.{name.lower()}"), name)


def installed(package: str, name: str) -> Any:
    return getattr(pytest.importorskip(package, reason=f"{package} is not installed"), name)


def norm(tensor: torch.Tensor) -> float:
    return float(tensor.norm())


class FusedLAMB(torch.optim.Optimizer):
    """Apex: ``apex/optimizers/fused_lamb.py`` and ``csrc/multi_tensor_lamb.cu``."""

    __module__ = "apex.optimizers.fused_lamb"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        adam_w_mode: bool = True,
        grad_averaging: bool = True,
        max_grad_norm: float = 1.0,
        use_nvlamb: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "grad_averaging": grad_averaging,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(params, defaults)
        self.adam_w_mode = 1 if adam_w_mode else 0
        self.use_nvlamb = use_nvlamb

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        total = math.sqrt(sum(norm(g) ** 2 for g in gradients))
        limit = self.defaults["max_grad_norm"]
        clip = total / limit if total > limit else 1.0
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = group["betas"]
            decay, t = group["weight_decay"], group["step"]
            corrections = (1 - first**t, 1 - second**t) if group["bias_correction"] else (1.0, 1.0)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                g = p.grad / clip
                state["exp_avg"].mul_(first).add_(g, alpha=1 - first if group["grad_averaging"] else 1.0)
                state["exp_avg_sq"].mul_(second).addcmul_(g, g, value=1 - second)
                denominator = (state["exp_avg_sq"] / corrections[1]).sqrt() + group["eps"]
                u = state["exp_avg"] / corrections[0] / denominator + decay * p
                ratio = 1.0
                if (self.use_nvlamb or decay != 0) and norm(p) != 0 and norm(u) != 0:
                    ratio = norm(p) / norm(u)
                p.sub_(u, alpha=group["lr"] * ratio)


class FusedLamb(torch.optim.Optimizer):
    """DeepSpeed: ``deepspeed/ops/lamb/fused_lamb.py`` and ``csrc/lamb/fused_lamb_cuda_kernel.cu``."""

    __module__ = "deepspeed.ops.lamb.fused_lamb"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_inside_sqrt: bool = False,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        max_coeff: float = 10.0,
        min_coeff: float = 0.01,
    ) -> None:
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "max_coeff": max_coeff,
            "min_coeff": min_coeff,
        }
        super().__init__(params, defaults)
        self.eps_mode = 0 if eps_inside_sqrt else 1

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                t = state["step"]
                state["exp_avg"].mul_(first).add_(p.grad, alpha=1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                u = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"]) + group["weight_decay"] * p
                ratio = 1.0
                if norm(p) != 0 and norm(u) != 0:
                    ratio = max(min(norm(p) / norm(u), group["max_coeff"]), group["min_coeff"])
                rate = group["lr"] * math.sqrt(1 - second**t) / (1 - first**t)
                p.sub_(u, alpha=rate * ratio)


class LAMB(torch.optim.Optimizer):
    """bitsandbytes: what ``bitsandbytes/optim/optimizer.py`` keeps; its step is its own and never taken here."""

    __module__ = "bitsandbytes.optim.lamb"

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0, bits: int = 32) -> None:
        extra = {"alpha": 0.0, "t_alpha": None, "t_beta3": None}
        defaults = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay, **extra}
        super().__init__(params, defaults)
        kind = torch.uint8 if bits == 8 else torch.float32
        for number, p in enumerate(p for group in self.param_groups for p in group["params"]):
            values = torch.linspace(0.0, 1.0, p.numel()).reshape(p.shape) + number
            self.state[p] = {
                "step": 7,
                "state1": values.to(kind),
                "state2": (values * values).to(kind),
                "unorm_vec": torch.zeros(1),
            }
            if bits == 8:
                self.state[p]["absmax1"] = torch.ones(1)


class cybertronai(torch.optim.Optimizer):
    """cybertronai's ``pytorch_lamb/lamb.py``: a cap of 10 that is fixed, no correction, ``adam``."""

    __module__ = "pytorch_lamb.lamb"

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0, adam: bool = False) -> None:
        defaults = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.adam = adam


cybertronai.__name__ = "Lamb"


def weights() -> list[Any]:
    return [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))]


def adam(**options: Any) -> Any:
    return torch.optim.Adam(weights(), **options)


def adamw(**options: Any) -> Any:
    return torch.optim.AdamW(weights(), **options)


def sgd(**options: Any) -> Any:
    return torch.optim.SGD(weights(), lr=0.1, **options)


def timm_lamb(**options: Any) -> Any:
    return timm("Lamb")(weights(), **options)


def timm_lars(**options: Any) -> Any:
    return timm("Lars")(weights(), **options)


def apex(**options: Any) -> Any:
    return FusedLAMB(weights(), **options)


def deepspeed(**options: Any) -> Any:
    return FusedLamb(weights(), **options)


def torch_optimizer(**options: Any) -> Any:
    return installed("torch_optimizer", "Lamb")(weights(), **options)


def pytorch_optimizer(**options: Any) -> Any:
    return installed("pytorch_optimizer", "Lamb")(weights(), **options)


def pytorch_optimizer_lars(**options: Any) -> Any:
    return installed("pytorch_optimizer", "LARS")(weights(), **options)


REFUSED = {
    "amsgrad": ("Lamb", adamw, {"amsgrad": True}, "defaults of torch.optim.Adam.*amsgrad=True.*False"),
    "differentiable": ("Lamb", adamw, {"differentiable": True}, "differentiable=True"),
    "coupled decay": (
        "Lamb",
        adam,
        {"weight_decay": 0.1},
        "weight_decay=0.1.*only weight_decay=0, or AdamW's, can be continued",
    ),
    "dampening": (
        "Momentum",
        sgd,
        {"momentum": 0.9, "dampening": 0.5},
        "dampening=0.5.*only dampening=0 can be continued",
    ),
    "differentiable SGD": ("Momentum", sgd, {"differentiable": True}, "differentiable=True"),
    "caution": ("Lamb", timm_lamb, {"caution": True}, "timm.*caution=True"),
    "corrected decay": (
        "Lamb",
        timm_lamb,
        {"corrected_weight_decay": True, "decoupled_decay": True},
        "corrected_weight_decay=True",
    ),
    "limit 0": (
        "Lamb",
        timm_lamb,
        {"max_grad_norm": 0.0},
        "max_grad_norm=0.0.*only None and numbers > 0 can be",
    ),
    "timm dampening": ("Lars", timm_lars, {"momentum": 0.9, "dampening": 0.5}, "dampening=0.5"),
    "adam_w_mode": (
        "Lamb",
        apex,
        {"adam_w_mode": False},
        "apex.*adam_w_mode=0.*only adam_w_mode=True, or no decay, can be continued",
    ),
    "eps_inside_sqrt": ("Lamb", deepspeed, {"eps_inside_sqrt": True}, "eps_inside_sqrt=True"),
    "no correction": ("Lamb", deepspeed, {"bias_correction": False}, "bias_correction=False"),
    "DeepSpeed clipping": ("Lamb", deepspeed, {"max_grad_norm": 1.0}, "max_grad_norm=1.0.*engine"),
    "debias": ("Lamb", torch_optimizer, {"debias": True}, "debias=True"),
    "rectify": (
        "Lamb",
        pytorch_optimizer,
        {"rectify": True},
        "rectify=True.*only rectify=False can be continued",
    ),
    "adanorm": ("Lamb", pytorch_optimizer, {"adanorm": True}, "adanorm=True"),
    "adam_debias": ("Lamb", pytorch_optimizer, {"adam_debias": True}, "adam_debias=True"),
    "fixed_decay": (
        "Lamb",
        pytorch_optimizer,
        {"fixed_decay": True, "weight_decay": 0.1},
        "fixed_decay=True",
    ),
    "LARS dampening": ("Lars", pytorch_optimizer_lars, {"dampening": 0.5}, "dampening=0.5"),
}
"""What is seen in the optimizer itself and has no counterpart."""
UNSEEN = {"limit 0", "adam_w_mode", "eps_inside_sqrt", "debias"}
"""What the state dict does not tell; but the limit of 0, which is tested for both."""


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_does_something_else_is_refused(name: str) -> None:
    kind, make, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        options_of(kind, make(**options))


def test_a_limit_that_is_an_attribute_is_taken() -> None:
    other = pytorch_optimizer()
    other.clamp = 0.7
    defaults, groups = options_of("Lamb", other)
    assert [found["weight_norm_bounds"] for found in (defaults, *groups)] == [(0.0, 0.7)] * 2


@pytest.mark.parametrize("name", REFUSED.keys() - UNSEEN)
def test_so_is_its_state_dict(name: str) -> None:
    kind, make, options, message = REFUSED[name]
    other = make(**options)
    with pytest.raises(ValueError, match=message.replace("defaults of", "group 0 of")):
        adopt_state_dict(kind, other.state_dict(), {})


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name][0] != "Momentum"])
def test_a_variant_that_is_given_is_the_formula(name: str) -> None:
    kind, make, options, _ = REFUSED[name]
    defaults, groups = options_of(kind, make(**options), {"variant": "paper", "trust_clip": True})
    for group in [defaults, *groups]:
        assert group["variant"] == "paper"
        assert group["trust_clip"] is True
        assert group["always_adapt"] is None
        assert group["bias_correction" if kind == "Lamb" else "eps"] is None


HARMLESS = {
    "adam without decay": ("Lamb", adam, {}),
    "dampening without momentum": ("Momentum", sgd, {"dampening": 0.5}),
    "correction of no decay": (
        "Lamb",
        timm_lamb,
        {"corrected_weight_decay": True, "decoupled_decay": True, "weight_decay": 0.0},
    ),
    "correction of coupled decay": ("Lamb", timm_lamb, {"corrected_weight_decay": True}),
    "adam_w_mode without decay": ("Lamb", apex, {"adam_w_mode": False, "weight_decay": 0.0}),
    "fixed decay of nothing": ("Lamb", pytorch_optimizer, {"fixed_decay": True}),
    "foreach": ("Lamb", adamw, {"foreach": True}),
    "fused": ("Lamb", adamw, {"fused": True}),
    "no limit": ("Lamb", pytorch_optimizer, {"pre_norm": True, "max_grad_norm": 0.0}),
}
"""What looks like it, but changes nothing."""
MECHANICS = {"foreach", "fused", "capturable", "differentiable", "step", "amsgrad", "dampening", "caution"}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_has_no_effect_is_taken(name: str) -> None:
    kind, make, options = HARMLESS[name]
    defaults, groups = options_of(kind, make(**options))
    assert len(groups) == 1
    assert len(groups[0]["params"]) == 2
    assert not MECHANICS & (defaults.keys() | groups[0].keys())


def test_without_a_limit_pre_norm_does_nothing() -> None:
    defaults, groups = options_of("Lamb", pytorch_optimizer(pre_norm=True, max_grad_norm=0.0))
    assert defaults["max_grad_norm"] is None
    assert groups[0]["max_grad_norm"] is None


def test_overriding_the_option_itself_will_do() -> None:
    other = timm_lamb(max_grad_norm=0.0)
    defaults, groups = options_of("Lamb", other, {"max_grad_norm": None})
    assert defaults["max_grad_norm"] is None
    assert groups[0]["max_grad_norm"] is None
    assert groups[0]["variant"] == "timm"


def test_overrides_are_in_every_group_but_for_what_groups_do_not_have() -> None:
    other = torch.optim.AdamW(
        [{"params": [weight], "lr": rate} for weight, rate in zip(weights(), (0.1, 0.2), strict=True)]
    )
    defaults, groups = options_of("Lamb", other, {"lr": 0.5, "fused_amp": True})
    assert defaults["lr"] == 0.5
    assert defaults["fused_amp"] is True
    assert [group["lr"] for group in groups] == [0.5, 0.5]
    assert not any("fused_amp" in group for group in groups)
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.2]


def test_cybertronais_lamb_is_torch_optimizers() -> None:
    options = {"variant": "torch_optimizer", "bias_correction": None, "weight_decay": 0.25}
    defaults, _ = options_of("Lamb", cybertronai(weights(), weight_decay=0.25))
    assert options.items() <= defaults.items()
    defaults, _ = options_of("Lamb", cybertronai(weights(), adam=True))
    assert (defaults["variant"], defaults["bias_correction"]) == ("adamw", False)


def test_apexs_attributes_are_seen() -> None:
    defaults, groups = options_of("Lamb", apex(use_nvlamb=True, max_grad_norm=2.0))
    expected = {
        "variant": "apex",
        "always_adapt": True,
        "max_grad_norm": 2.0,
        "eps": 1e-6,
        "weight_decay": 0.01,
    }
    assert expected.items() <= defaults.items()
    assert expected.items() <= groups[0].items()


@pytest.mark.parametrize("kind", ["Lamb", "Lars", "Momentum"])
def test_the_wrong_class_is_named(kind: str) -> None:
    others = {"Lamb": adamw(), "Lars": timm_lars(), "Momentum": sgd()}
    for right, other in others.items():
        if right != kind:
            with pytest.raises(
                ValueError, match=f"^{kind} cannot continue (torch|timm).*, which {right} continues"
            ):
                options_of(kind, other)


def test_unknown_optimizers_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"torch.optim.rmsprop.RMSprop, which is not known.*timm.optim.Lars \(Lars\)"
    ):
        options_of("Lamb", torch.optim.RMSprop(weights()))
    mine = type("AdamW", (torch.optim.AdamW,), {"__module__": "mine"})
    with pytest.raises(TypeError, match=r"mine\.AdamW"):
        options_of("Lamb", mine(weights()))


@pytest.mark.slow
def test_no_package_is_imported() -> None:
    code = """
import sys
from numba_lamb.torch import migration
packages = {"timm", "apex", "torch_optimizer", "pytorch_optimizer", "deepspeed", "bitsandbytes", "optax", "jax"}
print(sorted(packages & {name.partition(".")[0] for name in sys.modules}))
"""
    assert run_python(code) == "[]"


class FusedMixedPrecisionLamb(FusedLAMB):
    """Apex: ``apex/optimizers/fused_mixed_precision_lamb.py``: masters beside the state, from the first step."""

    __module__ = "apex.optimizers.fused_mixed_precision_lamb"

    def __init__(self, params: Any, reduced_precision_dtype: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.reduced_precision_dtype = reduced_precision_dtype
        self.param_groups_full_precision: list[dict[str, Any]] = []
        for group in self.param_groups:
            group["lr"], group["step"] = torch.tensor(group["lr"]), torch.tensor([0], dtype=torch.int32)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        groups = self.param_groups
        if not self.param_groups_full_precision:
            self.param_groups_full_precision = [
                {
                    "params": [
                        p.detach().float() if p.dtype == self.reduced_precision_dtype else None
                        for p in group["params"]
                    ]
                }
                for group in groups
            ]
        masters = [
            [p if full is None else torch.nn.Parameter(full) for p, full in zip(*pair, strict=True)]
            for pair in (
                (group["params"], full["params"])
                for group, full in zip(groups, self.param_groups_full_precision, strict=True)
            )
        ]
        twin = FusedLAMB([{**group, "params": own} for group, own in zip(groups, masters, strict=True)])
        twin.defaults["max_grad_norm"] = self.defaults["max_grad_norm"]
        for group, own in zip(groups, masters, strict=True):
            for p, master in zip(group["params"], own, strict=True):
                master.grad = p.grad.to(master.dtype)
                twin.state[master] = self.state[p]
        twin.step()
        for group, other, own in zip(groups, twin.param_groups, masters, strict=True):
            group["step"] = other["step"]
            for p, master in zip(group["params"], own, strict=True):
                if p is not master:
                    p.copy_(master)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_apexs_masters_come_along(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(300, 5).to(dtype)), torch.nn.Parameter(torch.randn(7))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    old = FusedMixedPrecisionLamb(theirs, dtype, lr=0.01, weight_decay=0.1)

    def step(*optimizers: Any) -> None:
        for number, p in enumerate(theirs):
            gradient = torch.randn(p.shape).to(p.dtype)
            for own in (theirs, mine):
                own[number].grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()

    for _ in range(3):
        step(old)
    for own, their in zip(mine, theirs, strict=True):
        own.data.copy_(their)
    # It goes on with our parameters, which equal theirs.
    new = Lamb.from_optimizer(old)
    twin = Lamb(mine, **{k: v for k, v in new.param_groups[0].items() if k in new.defaults})
    twin.load_state_dict(new.state_dict())
    (master,), weight = old.param_groups_full_precision[0]["params"][:1], mine[0]
    for _ in range(3):
        step(old, twin)
    state = twin.state[weight]
    if dtype == torch.float16:
        found = state["master"]
    else:
        high = (weight.detach().view(torch.int16).long() & 0xFFFF) << 16
        found = (high + state["remainder"]).to(torch.int32).view(torch.float32)
    assert twin.param_groups[0]["variant"] == "apex"
    assert state["step"] == 6
    # Theirs in plain PyTorch, whose rounding is another; without masters this is 1e-3.
    torch.testing.assert_close(found, master, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(mine[1], theirs[1], rtol=2e-6, atol=2e-7)
