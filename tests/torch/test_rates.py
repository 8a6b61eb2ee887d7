"""Rates that are tensors or come from schedulers, and the names that layers have."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from numba_lamb.torch import Lamb, Lars, Momentum
from tests.torch.helpers import (
    alike,
    assert_close,
    assert_same,
    fill,
    network,
    ours,
    pair,
    parameter,
    steps,
    values,
)

# -- rates ------------------------------------------------------------------------------------------------------


@pair
@pytest.mark.parametrize("shape", [(), (1,)])
def test_rates_may_be_tensors(pair: str, shape: tuple[int, ...]) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1)]
        rate = torch.full(shape, 0.05, dtype=torch.float64)
        opt = make(params, lr=rate)
        steps(opt, params)
        assert opt.param_groups[0]["lr"] is rate
        rate.fill_(0.3)
        steps(opt, params)
        opt.param_groups[0]["lr"] = 0.01
        steps(opt, params)
        return values(params)

    alike(pair, scenario)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda opt: torch.optim.lr_scheduler.StepLR(opt, 2, 0.5),
    "cosine": lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 5),
    "one_cycle": lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.2, total_steps=10),
    "cyclic": lambda opt: torch.optim.lr_scheduler.CyclicLR(opt, 0.01, 0.2, step_size_up=2),
    "numpy": lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, numpy_factor),
    "swa": lambda opt: torch.optim.swa_utils.SWALR(opt, swa_lr=0.01, anneal_epochs=3),
}


def numpy_factor(epoch: int) -> Any:
    import numpy as np

    return np.float32(0.5) if epoch % 2 else np.float64(0.25)


@pair
@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@pytest.mark.parametrize("tensor", [False, True])
def test_schedulers_of_torch(pair: str, scheduler: str, tensor: bool) -> None:
    def scenario(make: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1)]
        rate = torch.tensor(0.1, dtype=torch.float64) if tensor else 0.1
        opt = make([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}], lr=rate)
        schedule = SCHEDULERS[scheduler](opt)
        seen = []
        for step in range(6):
            steps(opt, params, 1, first=step)
            schedule.step()
            seen.append(values(params))
        return seen

    # torch multiplies a NumPy float32 as such.
    alike(pair, scenario, 1e-7 if scheduler == "numpy" else 1e-11)


L = torch.optim.lr_scheduler
TO_ZERO: dict[str, Callable[[Any, int], Any]] = {
    "linear": lambda opt, n: L.LinearLR(opt, 1 / 3, 0.0, n),
    "polynomial": lambda opt, n: L.PolynomialLR(opt, n, 1.0),
    "square": lambda opt, n: L.PolynomialLR(opt, n, 2.0),
    "cosine": lambda opt, n: L.CosineAnnealingLR(opt, n),
    "warm_restarts": lambda opt, n: L.CosineAnnealingWarmRestarts(opt, n),
    "one_cycle": lambda opt, n: L.OneCycleLR(
        opt, opt.defaults["lr"], total_steps=4 * n, final_div_factor=1e30, anneal_strategy="linear"
    ),
    "lambda": lambda opt, n: L.LambdaLR(opt, lambda step: 1 - min(step, n) * (1 / n) - 1e-16),
    "cyclic": lambda opt, n: L.CyclicLR(opt, 0.0, opt.defaults["lr"], n, cycle_momentum=False),
    "sequential": lambda opt, n: L.SequentialLR(
        opt, [L.LinearLR(opt, 0.1, 1.0, n), L.LinearLR(opt, 1.0, 0.0, n)], [n]
    ),
    "sequential_cosine": lambda opt, n: L.SequentialLR(
        opt, [L.LinearLR(opt, 0.1, 1.0, n), L.CosineAnnealingLR(opt, n)], [n]
    ),
    "chained": lambda opt, n: L.ChainedScheduler([L.LinearLR(opt, 1.0, 0.0, n), L.CosineAnnealingLR(opt, n)]),
}


@pytest.mark.parametrize("schedule", list(TO_ZERO))
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_schedules_that_end_at_0_do_so(schedule: str) -> None:
    """Rounding takes some of them below 0."""
    for base in (1e-5, 3e-4, 1e-3, 0.1, 1.0, 10.0):
        for n in (3, 10, 30, 100):
            p = parameter(3, dtype=torch.float32)
            opt = Lamb([p], lr=base, variant="adamw")
            schedule_of = TO_ZERO[schedule](opt, n)
            p.grad = torch.ones(3)
            for _ in range(min(2 * n, 100) + 3):
                opt.step()
                schedule_of.step()
            assert opt.state[p]["step"].item() == min(2 * n, 100) + 3
            assert torch.isfinite(p).all()


@ours
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("tensor", [False, True])
def test_a_rate_below_0_by_rounding_is_0(make: Any, name: str, tensor: bool) -> None:
    def trained(value: Any) -> Any:
        params = [parameter(4, 3), parameter(5, seed=1)]
        opt = make(params, **{name: value})
        steps(opt, params)
        opt.param_groups[0][name] = 0.25
        steps(opt, params)
        opt.param_groups[0][name] = value
        steps(opt, params)
        return values(params)

    expected = trained(0.0)
    for small in (-5e-324, -2.96e-20, -1e-12):
        assert_same(trained(torch.tensor(small, dtype=torch.float64) if tensor else small), expected)
    with pytest.raises(ValueError, match=f"^{name} must be a number >= 0 and < 3.4e"):
        make([parameter(3)], **{name: -1.1e-12})


# -- names ------------------------------------------------------------------------------------------------------


@ours
def test_names_are_those_of_named_parameters(make: Any) -> None:
    model, seen = network(), []

    def noting(layer: Any) -> bool:
        seen.append((layer.name, tuple(layer.shape), str(layer.dtype), layer.group, layer.ndim, layer.size))
        return layer.ndim > 1

    opt = make(model.named_parameters(), decay_filter=noting)
    opt.add_param_group({"params": [("extra", parameter(2))]})
    params = [p for group in opt.param_groups for p in group["params"]]
    fill(params)
    opt.step()
    names = [name for name, _ in model.named_parameters()]
    described = [
        (name, tuple(p.shape), "float64", 0, p.ndim, p.numel()) for name, p in model.named_parameters()
    ]
    described.append(("extra", (2,), "float64", 1, 1, 2))
    assert sorted(set(seen)) == sorted(described)
    assert {key.partition("/")[2] for key in opt.stats()} == {*names, "extra"}
    assert opt.state_dict()["param_groups"][0]["param_names"] == names


@ours
def test_names_without_names_count_over_all_groups(make: Any) -> None:
    params = [parameter(2), parameter(3, seed=1), parameter(4, seed=2)]
    opt = make([{"params": params[:2]}, {"params": params[2:]}])
    assert opt.stats() == {}
    fill(params[1:])
    opt.step()
    assert {key.partition("/")[2] for key in opt.stats()} == {"param_1", "param_2"}
    fill(params)
    before = values(params)
    opt.step()
    found = opt.stats()
    assert {key.partition("/")[2] for key in found} == {"param_0", "param_1", "param_2"}
    quantity = "update_norm" if isinstance(opt, Lamb) else "gradient_norm"
    quantities = {"trust_ratio", "weight_norm", quantity}
    if isinstance(opt, Momentum):
        quantities = {"trust_ratio"} & quantities
    assert {key.partition("/")[0] for key in found} >= quantities
    if not isinstance(opt, Momentum):
        norms = [found[f"weight_norm/param_{k}"] for k in range(3)]
        assert_close(torch.tensor(norms), torch.stack([w.norm() for w in before]).float(), 1e-6)
    if isinstance(opt, Lars):
        norms = [found[f"gradient_norm/param_{k}"] for k in range(3)]
        assert_close(torch.tensor(norms), torch.stack([p.grad.norm() for p in params]).float(), 1e-6)


@ours
def test_statistics_are_those_of_each_layers_last_update(make: Any) -> None:
    params = [parameter(2), parameter(3, seed=1)]
    opt = make([("a", params[0]), ("b", params[1])])
    fill(params[:1])
    opt.step()
    of_first = dict(opt.stats())
    params[0].grad = None
    fill(params[1:])
    opt.step()
    found = opt.stats()
    assert found.items() >= of_first.items()
    assert {key.partition("/")[2] for key in found} == {"a", "b"}


def test_two_groups_may_use_a_name_twice() -> None:
    one, two = parameter(2), parameter(3, seed=1)
    opt = Lamb([{"params": [("w", one)]}, {"params": [("w", two)]}])
    fill([one, two])
    opt.step()
    assert len([key for key in opt.stats() if key.startswith("trust_ratio/")]) == 2


def test_betas_of_tensors_are_read_at_each_step() -> None:
    from numba_lamb.torch import Lamb

    betas = torch.tensor(0.9), torch.tensor(0.999)
    w, twin = (torch.nn.Parameter(torch.arange(1.0, 6.0)) for _ in range(2))
    given, plain = Lamb([w], betas=betas), Lamb([twin])
    for beta in (0.9, 0.5, 0.5):
        betas[0].fill_(beta)
        plain.param_groups[0]["betas"] = (float(betas[0]), float(betas[1]))
        for p, opt in ((w, given), (twin, plain)):
            p.grad = torch.linspace(-1, 1, 5) * beta
            opt.step()
    assert torch.equal(w, twin)


class ListConfig(Sequence[float]):
    """A sequence that is neither list nor tuple and changes in place, as in Hydra's configurations."""

    def __init__(self, *items: float) -> None:
        self.items = list(items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


def test_betas_may_be_any_sequence_and_change_in_place() -> None:
    betas = ListConfig(0.9, 0.999)
    (w,), (twin,) = [parameter(5)], [parameter(5)]
    given, plain = Lamb([w], betas=betas), Lamb([twin])
    assert given.param_groups[0]["betas"] is betas
    for first in (0.9, 0.9, 0.5, 0.0):
        betas.items[0] = first
        plain.param_groups[0]["betas"] = (first, 0.999)
        for p, opt in ((w, given), (twin, plain)):
            steps(opt, [p], 1)
        assert torch.equal(w, twin)
    before = w.detach().clone()
    betas.items[1] = 1.0
    with pytest.raises(ValueError, match=r"betas\[1\] must be a number >= 0 and < 1, got 1.0"):
        given.step()
    assert torch.equal(w, before)


@pytest.mark.parametrize(
    "betas", [ListConfig(0.9), ListConfig(0.9, 0.99, 0.999), b"\0\0"], ids=["1", "3", "bytes"]
)
def test_betas_are_two(betas: Any) -> None:
    with pytest.raises(TypeError, match="betas must be a pair of numbers"):
        Lamb([parameter(3)], betas=betas)
