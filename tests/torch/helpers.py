"""What the tests of `numba_lamb.torch` share: textbook optimizers in plain PyTorch, and scenarios run with both.

`SlowLamb` and `SlowLars` are written from the formulas, one parameter after the other, and know nothing of the
package. A scenario is a function of ``make(params, **options)``; `alike` runs it with our class and with its model
and compares what it returns.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from numba_lamb.torch import Lamb, Lars, Momentum

COMMON = {"maximize": False, "max_grad_norm": None, "decay_filter": None, "adapt_filter": None}
LAMB = {
    **COMMON,
    **{"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "variant": "paper"},
    **{"always_adapt": None, "bias_correction": None, "decoupled_decay": None},
    **{"grad_averaging": True, "trust_clip": False},
}
LARS = {
    **COMMON,
    **{"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False, "trust_coefficient": 1e-3},
    **{"eps": None, "variant": "timm", "always_adapt": None, "trust_clip": False},
}
LAMB_DEFAULTS = {"always_adapt": True, "bias_correction": True, "decoupled_decay": False}
LAMB_VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "apex": {"always_adapt": False},
    "timm": {"always_adapt": False},
    "adamw": {},
    "torch_optimizer": {"bias_correction": False},
    "pytorch_optimizer": {"bias_correction": False, "decoupled_decay": True},
    "deepspeed": {"bias_correction": False},
}
LARS_EPSILONS = {"timm": 1e-8, "mindspore": 1e-5, "paper": 0.0, "paddle": 0.0, "pytorch_optimizer": 0.0}


def norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))


class Slow(torch.optim.Optimizer):
    """Walks over groups and parameters; subclasses say what is done to one of them."""

    state_names: tuple[str, ...] = ()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        limited = [group for group in self.param_groups if group["max_grad_norm"] is not None]
        n = math.hypot(
            *(norm(p.grad) for group in limited for p in group["params"] if p.grad is not None), 0.0
        )
        for group in self.param_groups:
            limit = group["max_grad_norm"]
            factor = limit / n if limit is not None and n > limit else 1.0
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state.update({name: torch.zeros_like(p) for name in self.state_names})
                state["step"] += 1
                decays = group["decay_filter"] is None or group["decay_filter"](p)
                decay = group["weight_decay"] if decays else 0.0
                adapts = group["adapt_filter"] is None or group["adapt_filter"](p)
                g = p.grad.double() * (-factor if group["maximize"] else factor)
                p.copy_(self.update(group, state, p.double(), g, float(group["lr"]), float(decay), adapts))
        return loss

    def update(self, group: Any, state: Any, w: Any, g: Any, lr: float, decay: float, adapts: bool) -> Any:
        raise NotImplementedError


class SlowLamb(Slow):
    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {**LAMB, **options})

    def update(self, group: Any, state: Any, w: Any, g: Any, lr: float, decay: float, adapts: bool) -> Any:
        variant = group["variant"]
        own = {**LAMB_DEFAULTS, **LAMB_VARIANTS[variant]}
        chosen = {name: own[name] if group[name] is None else group[name] for name in own}
        (beta1, beta2), t = map(float, group["betas"]), float(state["step"])
        m = beta1 * state["exp_avg"].double() + ((1 - beta1) if group["grad_averaging"] else 1.0) * g
        v = beta2 * state["exp_avg_sq"].double() + (1 - beta2) * g * g
        state["exp_avg"].copy_(m)
        state["exp_avg_sq"].copy_(v)
        if chosen["bias_correction"]:
            m, v = m / (1 - beta1**t), v / (1 - beta2**t)
        u = m / (v.sqrt() + group["eps"])
        if chosen["decoupled_decay"]:
            w = w * (1 - lr * decay)
        else:
            u = u + decay * w
        if variant == "pytorch_optimizer":
            lr /= 1 - beta1**t
        elif variant == "deepspeed":
            lr *= math.sqrt(1 - beta2**t) / (1 - beta1**t)
        if variant == "adamw" or not adapts or (decay == 0 and not chosen["always_adapt"]):
            return w - lr * u
        r = self.ratio(variant, norm(w), norm(u), group["eps"])
        return w - lr * (min(r, 1.0) if group["trust_clip"] else r) * u

    @staticmethod
    def ratio(variant: str, w_norm: float, u_norm: float, eps: float) -> float:
        if variant in ("torch_optimizer", "pytorch_optimizer"):
            w_norm = min(w_norm, 10.0)
        if w_norm == 0 or u_norm == 0:
            return 1.0
        r = w_norm / (u_norm + (eps if variant == "pytorch_optimizer" else 0.0))
        return min(max(r, 0.01), 10.0) if variant == "deepspeed" else r


class SlowLars(Slow):
    state_names = ("momentum_buffer",)

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {**LARS, **options})

    def update(self, group: Any, state: Any, w: Any, g: Any, lr: float, decay: float, adapts: bool) -> Any:
        variant, mu, v = group["variant"], group["momentum"], state["momentum_buffer"]
        always = group["always_adapt"]
        always = variant != "timm" if always is None else always
        r = 1.0
        if adapts and (always or decay != 0):
            r = self.ratio(group, norm(w), norm(g), decay)
            if group["trust_clip"]:
                r = min(r / lr, 1.0) if lr else float(r > 0)
        d = r * (g + decay * w)
        if variant in ("paper", "paddle"):
            d, lr = lr * d, 1.0
        v.copy_(mu * v.double() + d)
        new = mu * v.double() + d if group["nesterov"] else v.double()
        return w - lr * new

    @staticmethod
    def ratio(group: Any, w_norm: float, g_norm: float, decay: float) -> float:
        variant, eps = group["variant"], group["eps"]
        divisor = g_norm + decay * w_norm + (LARS_EPSILONS[variant] if eps is None else eps)
        guarded = {
            # Of a NaN it says so too.
            "timm": not (w_norm > 0 and g_norm > 0),
            "paddle": decay == 0 or w_norm == 0 or g_norm == 0,
            "pytorch_optimizer": w_norm == 0 or divisor == 0,
        }
        if guarded.get(variant, False):
            return 1.0
        # 0/0 is 0.
        return group["trust_coefficient"] * w_norm / divisor if divisor else 0.0


def _adamw(params: Any, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(params, **{"eps": 1e-6, "weight_decay": 0.05, "foreach": False, **options})


def _sgd(params: Any, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(params, **{"momentum": 0.9, "weight_decay": 0.05, "foreach": False, **options})


def _with(kind: Any, **fixed: Any) -> Callable[..., Any]:
    def make(params: Any, **options: Any) -> Any:
        return kind(params, **{"lr": 0.1, **fixed, **options})

    return make


PAIRS = {
    "adamw": (_with(Lamb, weight_decay=0.05, variant="adamw"), _with(_adamw)),
    "sgd": (_with(Momentum, weight_decay=0.05), _with(_sgd)),
    "lamb": (_with(Lamb, weight_decay=0.05), _with(SlowLamb, weight_decay=0.05)),
    "lars": (
        _with(Lars, weight_decay=0.05, trust_coefficient=0.3),
        _with(SlowLars, weight_decay=0.05, trust_coefficient=0.3),
    ),
}
"""For each name what makes our optimizer, and what makes its model of behaviour."""
OURS = {name: make for name, (make, _) in PAIRS.items() if name != "adamw"}
MOMENTS = {
    "lamb": ("exp_avg", "exp_avg_sq"),
    "lars": ("momentum_buffer",),
    "sgd": ("momentum_buffer",),
    "adamw": ("exp_avg", "exp_avg_sq"),
}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Parameter:
    return torch.nn.Parameter(randn(*shape, seed=seed, dtype=dtype))


def network(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A small model whose biases start at zero, which is a case of its own for trust ratios."""
    layers = [
        torch.nn.Linear(4, 7),
        torch.nn.Tanh(),
        torch.nn.Linear(7, 5, bias=False),
        torch.nn.Linear(5, 3),
    ]
    made = torch.nn.Sequential(*layers).to(dtype)
    with torch.no_grad():
        for k, p in enumerate(made.parameters()):
            p.copy_(randn(*p.shape, seed=k)) if p.ndim > 1 else p.zero_()
    return made


def loss_of(model: Any, step: int = 0) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return model(randn(6, 4, seed=100 + step, dtype=dtype)).square().mean()


def train(model: Any, opt: Any, steps: int = 3, first: int = 0) -> None:
    for step in range(first, first + steps):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()


def fill(params: Any, step: int = 0) -> None:
    """Give each parameter a gradient that depends on its value, so that errors do not vanish."""
    for k, p in enumerate(params):
        p.grad = 0.3 * randn(*p.shape, seed=1000 * (step + 1) + k).to(p.dtype) + 0.1 * p.detach()


def steps(opt: Any, params: Any, count: int = 2, first: int = 0) -> None:
    for step in range(first, first + count):
        fill(params, step)
        opt.step()


def values(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in (model.parameters() if isinstance(model, torch.nn.Module) else model)]


def flattened(found: Any) -> Iterator[Any]:
    if isinstance(found, list | tuple):
        for entry in found:
            yield from flattened(entry)
    elif isinstance(found, dict):
        for key in sorted(found, key=str):
            yield key
            yield from flattened(found[key])
    else:
        yield found.detach().clone() if isinstance(found, torch.Tensor) else found


def assert_close(found: Any, expected: Any, limit: float = 1e-11) -> None:
    for one, other in zip(flattened(found), flattened(expected), strict=True):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=limit, atol=limit)
        else:
            assert one == other


def assert_same(found: Any, expected: Any) -> None:
    """Every bit is the same: tensors, numbers, keys."""
    for one, other in zip(flattened(found), flattened(expected), strict=True):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
        else:
            assert one == other


def snapshot(opt: Any) -> Any:
    """All that a step can change, copied: parameters and state."""
    params = [p for group in opt.param_groups for p in group["params"]]
    state = [{key: value.clone() for key, value in opt.state.get(p, {}).items()} for p in params]
    return [values(params), state]


def alike(pair: str, scenario: Callable[..., Any], limit: float = 1e-11) -> Any:
    """Run a scenario with our optimizer and with its model, compare, and return what ours gave."""
    ours, model = PAIRS[pair]
    found = list(flattened(scenario(ours)))
    expected = list(flattened(scenario(model)))
    assert any(isinstance(entry, torch.Tensor) for entry in found)
    assert_close(found, expected, limit)
    return found


pair = pytest.mark.parametrize("pair", list(PAIRS))
ours = pytest.mark.parametrize("make", list(OURS.values()), ids=list(OURS))


def moments(pair: str, opt: Any, params: Any) -> Any:
    """The moments of each parameter, of those without any none."""
    return [[opt.state[p][name] for name in MOMENTS[pair] if p in opt.state] for p in params]
