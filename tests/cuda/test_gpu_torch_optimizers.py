"""PyTorch's optimizers on a real GPU give the CPU's bytes; skipped where there is none."""

import copy
from typing import Any

import pytest

from tests.cuda.gpu_arrays import NO_GPU, cuda_torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=NO_GPU or "")]


@pytest.fixture(name="torch")
def torch_fixture() -> Any:
    return cuda_torch()


def make(name: str, model: Any, **options: Any) -> Any:
    from numba_lamb.torch import Lamb, Lars, Momentum

    made = {"lamb": Lamb, "lars": Lars, "momentum": Momentum}[name]
    return made(model.named_parameters(), lr=0.01, weight_decay=0.1, **options)


class Twins:
    """The same model on both, with the same gradients."""

    def __init__(self, torch: Any, name: str, **options: Any) -> None:
        torch.manual_seed(0)
        self.torch = torch
        self.cpu = torch.nn.Sequential(torch.nn.Linear(70, 300), torch.nn.Linear(300, 5))
        self.gpu = copy.deepcopy(self.cpu).cuda()
        self.on_cpu, self.on_gpu = make(name, self.cpu, **options), make(name, self.gpu, **options)

    @property
    def pairs(self) -> Any:
        return zip(self.cpu.parameters(), self.gpu.parameters(), strict=True)

    def step(self, factor: float = 1.0) -> None:
        for w, twin in self.pairs:
            w.grad = factor * self.torch.randn_like(w)
            twin.grad = w.grad.cuda()
        self.on_cpu.step()
        self.on_gpu.step()

    def check(self) -> None:
        for w, twin in self.pairs:
            assert self.torch.equal(w, twin.cpu())
            for key, value in self.on_cpu.state[w].items():
                assert self.torch.equal(value, self.on_gpu.state[twin][key].cpu()), key
        assert dict(self.on_gpu.stats()) == dict(self.on_cpu.stats())


@pytest.mark.parametrize("name", ["lamb", "lars", "momentum"])
def test_bytes(torch: Any, name: str) -> None:
    twins = Twins(torch, name, max_grad_norm=1.0, nonfinite="skip")
    for factor in (1.0, float("inf"), 1e-3, 1.0):
        twins.step(factor)
    twins.check()
    assert twins.on_gpu.skipped_steps == 1


def test_a_rate_on_the_gpu_is_read_there(torch: Any) -> None:
    twins = Twins(torch, "lamb")
    rate = torch.tensor(0.01, device="cuda")
    twins.on_gpu.param_groups[0]["lr"] = rate
    twins.step()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.current_stream()):
        torch.cuda.set_sync_debug_mode("error")
        try:
            rate.mul_(0.5)
            for w in twins.gpu.parameters():
                w.grad = torch.ones_like(w)
            twins.on_gpu.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    twins.on_cpu.param_groups[0]["lr"] = 0.005
    for w in twins.cpu.parameters():
        w.grad = torch.ones_like(w)
    # As float32 holds it, which is what the GPU reads.
    twins.on_cpu.param_groups[0]["lr"] = float(rate)
    twins.on_cpu.step()
    twins.check()


def test_grad_scaler_fused(torch: Any) -> None:
    twins = Twins(torch, "lamb", fused_amp=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for factor in (1.0, float("nan"), 1.0):
        for w, twin in twins.pairs:
            w.grad = torch.randn_like(w)
            twin.grad = 1024.0 * factor * w.grad.cuda()
        scaler.scale(torch.ones((), device="cuda"))
        scale = scaler.get_scale()
        for twin in twins.gpu.parameters():
            twin.grad.mul_(scale / 1024.0)
        scaler.step(twins.on_gpu)
        scaler.update()
        if factor == 1.0:
            twins.on_cpu.step()
    for w, twin in twins.pairs:
        assert torch.equal(w, twin.cpu())
    assert twins.on_gpu.skipped_steps == 1


def test_a_model_moves_and_its_state_with_it(torch: Any) -> None:
    twins = Twins(torch, "lamb")
    twins.step()
    saved = copy.deepcopy(twins.on_cpu.state_dict())
    moved = make("lamb", twins.gpu)
    moved.load_state_dict(saved)
    twins.on_gpu = moved
    twins.step()
    twins.check()
    again = copy.deepcopy(twins.on_gpu)
    assert [g["lr"] for g in again.param_groups] == [0.01]
    twins.cpu.cuda()
    for w, twin in twins.pairs:
        w.grad = torch.ones_like(w)
        twin.grad = torch.ones_like(twin)
    for state in twins.on_cpu.state.values():
        state.update({key: value.cuda() for key, value in state.items() if key != "step"})
    twins.on_cpu.step()
    twins.on_gpu.step()
    for w, twin in twins.pairs:
        assert torch.equal(w, twin)
