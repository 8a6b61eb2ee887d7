"""Parameters of 16 bits with masters, and moments of 16 and 8 bits: what is kept, and how it comes back."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch

from numba_lamb.torch import Lamb, Lans, Lars, Momentum

KINDS = [Lamb, Lans, Lars, Momentum]
STORED: list[dict[str, Any]] = [
    {},
    {"moments": "bfloat16"},
    {"moments": "int8"},
    {"master": None, "moments": "int8", "seed": 3},
]
kinds = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.slow


def network(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    made = torch.nn.Sequential(
        torch.nn.Conv2d(3, 40, 3), torch.nn.Flatten(), torch.nn.Linear(40, 3)
    ).bfloat16()
    return made.to(dtype, memory_format=torch.channels_last)


def train(model: torch.nn.Module, opt: Any, steps: int, seed: int = 1) -> None:
    """Take steps with gradients that bfloat16 holds, whatever the parameters are."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            gradient = torch.randn(p.shape, generator=generator).bfloat16().to(p.dtype)
            p.grad = torch.empty_like(p).copy_(gradient)
        opt.step()


def masters(model: torch.nn.Module, opt: Any) -> list[np.ndarray]:
    """The float32 values that parameters stand for."""
    found = []
    for p in model.parameters():
        value, entry = p.detach(), opt.state[p]
        if p.dtype == torch.bfloat16:
            high = value.view(torch.int16).contiguous().numpy().astype(np.int64) << 16
            bits = high + entry["remainder"].contiguous().numpy()
            found.append(bits.astype(np.uint32).view(np.float32))
        else:
            found.append((entry["master"] if p.dtype == torch.float16 else value).contiguous().numpy())
    return found


def same(first: list[Any], second: list[Any]) -> bool:
    return [one.tobytes() for one in first] == [other.tobytes() for other in second]


def all_of(model: torch.nn.Module, opt: Any) -> list[torch.Tensor]:
    return [tensor for p in model.parameters() for tensor in (p.detach(), *opt.state[p].values())]


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_16_bits_trains_as_that_of_float32(kind: Any, dtype: torch.dtype) -> None:
    whole, half = network(torch.float32), network(dtype)
    first, second = kind(whole.named_parameters(), lr=0.05), kind(half.named_parameters(), lr=0.05)
    train(whole, first, 4)
    train(half, second, 4)
    assert same(masters(half, second), masters(whole, first))
    for p, q in zip(half.parameters(), whole.parameters(), strict=True):
        near = q.detach().to(dtype)
        if dtype == torch.float16:
            assert torch.equal(p, near)
        else:
            # But for ties, which go away from zero here.
            assert (p.view(torch.int16).int() - near.view(torch.int16).int()).abs().max() <= 1
        assert {tensor.dtype for tensor in second.state[p].values()} <= {torch.float32, torch.int16}


@kinds
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_a_run_that_is_saved_and_resumed_has_the_same_bits(kind: Any, stored: dict[str, Any]) -> None:
    model = network(torch.bfloat16)
    opt = kind(model.named_parameters(), lr=0.05, **stored)
    train(model, opt, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    again = network(torch.bfloat16)
    resumed = kind(again.named_parameters(), lr=0.05, **stored)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    copied, copied_opt = copy.deepcopy((model, opt))
    for one, its in ((model, opt), (again, resumed), (copied, copied_opt)):
        train(one, its, 2, seed=5)
    for one, its in ((again, resumed), (copied, copied_opt)):
        assert all(map(torch.equal, all_of(one, its), all_of(model, opt)))


@pytest.mark.parametrize("stored", STORED[1:3], ids=str)
def test_a_run_in_float32_goes_on_in_fewer_bits_and_back(stored: dict[str, Any]) -> None:
    model = network(torch.float32)
    opt = Lamb(model.named_parameters(), lr=0.05)
    train(model, opt, 3)
    low = Lamb(model.named_parameters(), lr=0.05, **stored)
    low.load_state_dict(opt.state_dict())
    fewer = Lamb.from_optimizer(opt, **stored)
    assert [group["moments"] for group in (*low.param_groups, *fewer.param_groups)] == [stored["moments"]] * 2
    before = {
        key: [opt.state[p][key].clone() for p in model.parameters()] for key in ("exp_avg", "exp_avg_sq")
    }
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    # Moments of a step without gradients are those before, less their decay.
    low.step()
    back = Lamb(model.named_parameters(), lr=0.05)
    back.load_state_dict(low.state_dict())
    back.step()
    for p, m, v in zip(model.parameters(), before["exp_avg"], before["exp_avg_sq"], strict=True):
        entry = back.state[p]
        assert entry["exp_avg"].dtype == entry["exp_avg_sq"].dtype == torch.float32
        for value, was, decay in ((entry["exp_avg"], m, 0.9), (entry["exp_avg_sq"], v, 0.999)):
            assert (value - decay**2 * was).abs().max() <= 0.03 * was.abs().max()


def test_moments_and_master_stay_as_they_were() -> None:
    model = network(torch.bfloat16)
    opt = Lamb(model.named_parameters(), lr=0.05)
    train(model, opt, 1)
    for name, value, was in (("moments", "int8", None), ("master", None, "'split'")):
        opt.param_groups[0][name] = value
        with pytest.raises(ValueError, match=f"{name} must stay {was}, got .*; from_optimizer makes"):
            opt.step()
        opt.param_groups[0][name] = {"moments": None, "master": "split"}[name]
    train(model, opt, 1)
    double = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    double.grad = torch.ones_like(double)
    with pytest.raises(
        ValueError, match="moments must be None for parameter 'param_0' of float64, got 'int8'"
    ):
        Lamb([double], moments="int8").step()


def test_a_model_may_become_one_of_16_bits() -> None:
    model = network(torch.float32)
    opt = Lamb(model.named_parameters(), lr=0.05)
    train(model, opt, 2)
    moments = [opt.state[p]["exp_avg"].clone() for p in model.parameters()]
    model.bfloat16()
    for p in model.parameters():
        p.grad = None
    train(model, opt, 1)
    for p, before in zip(model.parameters(), moments, strict=True):
        entry = opt.state[p]
        assert entry["step"].item() == 3
        assert (entry["exp_avg"].dtype, entry["remainder"].dtype) == (torch.float32, torch.int16)
        assert not torch.equal(entry["exp_avg"], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_gradients_of_another_dtype_enter_as_they_are(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    first, second = (torch.nn.Parameter(torch.ones(300, dtype=torch.bfloat16)) for _ in range(2))
    opts = [Lamb([p], lr=0.1) for p in (first, second)]
    for k in range(4):
        gradient = torch.randn(300).bfloat16()
        first.grad = gradient
        # In the third step, that of the parameter.
        second.grad = None
        second.grad_dtype = None
        second.grad = gradient.to(torch.bfloat16 if k == 2 else dtype)
        for opt in opts:
            opt.step()
        assert torch.equal(first, second)
    assert torch.equal(opts[0].state[first]["remainder"], opts[1].state[second]["remainder"])


def test_random_bits_do_not_depend_on_who_takes_part() -> None:
    def made(late: bool) -> torch.Tensor:
        torch.manual_seed(4)
        params = [torch.nn.Parameter(torch.randn(500).bfloat16()) for _ in range(3)]
        opt = Lamb(params, lr=0.1, master=None, moments="bfloat16")
        for k in range(4):
            for p in params:
                p.grad = torch.full_like(p, 0.3 + k)
            if late and k < 2:
                params[0].grad = None
            opt.step()
        return params[2].detach()

    assert torch.equal(made(False), made(True))


def test_a_master_that_float16_cannot_hold_is_told_by_name() -> None:
    w = torch.nn.Parameter(torch.tensor([65000.0, 1.0], dtype=torch.float16))
    opt = Momentum([("w", w)], lr=1.0, momentum=0.0)
    w.grad = torch.tensor([-1000.0, 0.0], dtype=torch.float16)
    opt.step()
    assert opt.stats()["beyond_float16/w"] == 1
    # What has been put in its place since is what is looked at.
    opt.state[w]["master"] = torch.ones(2)
    assert opt.stats()["beyond_float16/w"] == 0
