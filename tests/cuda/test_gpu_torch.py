"""PyTorch on a real GPU: its streams, its allocator, its graphs, a training; skipped where there is none."""

from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.gpu_arrays import NO_GPU, Library, cuda_torch, of_torch
from tests.cuda.gpu_twins import OPTIMIZERS, Twins
from tests.helpers import frozen

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=NO_GPU or "")]

SHAPES = {"weight": (200, 300), "bias": (77,)}
LONG = 50_000_000
"""Clock cycles, some 30 ms: whatever does not wait for a stream that sleeps so long is wrong for certain."""


@pytest.fixture(name="torch")
def torch_fixture() -> Any:
    return cuda_torch()


@pytest.fixture(name="library")
def library_fixture(torch: Any) -> Library:
    return of_torch()


def twins_of(library: Library, optimizer: str = "lamb") -> Twins:
    return Twins(OPTIMIZERS[optimizer], library, shapes=SHAPES)


def test_a_step_follows_the_current_stream(torch: Any, library: Library) -> None:
    twins = twins_of(library)
    gradients = twins.gradients(0)
    source = twins.put(gradients)
    given = {name: torch.full_like(tensor, float("nan")) for name, tensor in source.items()}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        for name, tensor in given.items():
            tensor.copy_(source[name])
        twins.on_gpu.step(given)
        found = {name: tensor.clone() for name, tensor in twins.device.items()}
    side.synchronize()
    twins.on_cpu.step(gradients)
    assert frozen({name: library.get(tensor) for name, tensor in found.items()}) == frozen(twins.host)
    twins.assert_same()


def test_the_allocator_waits_for_the_stream_that_reads_a_gradient(torch: Any, library: Library) -> None:
    twins = twins_of(library)
    twins.step(twins.gradients(0))
    gradients = twins.gradients(1)
    given = [library.put(gradient) for gradient in gradients.values()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
    twins.on_gpu.step(given, stream=side)
    sizes = [tensor.shape for tensor in given]
    del given
    # Were the gradients' memory free already, these would be it.
    spoilt = [torch.full(size, float("nan"), device="cuda") for size in sizes * 4]
    torch.cuda.synchronize()
    assert all(tensor.isnan().all() for tensor in spoilt)
    twins.on_cpu.step(gradients)
    twins.assert_same()


@pytest.mark.parametrize("optimizer", ["lamb", "lars", "momentum"])
def test_a_captured_step_follows_its_schedule(
    torch: Any, library: Library, optimizer: str, warm: bool
) -> None:
    schedule = nl.schedules.CosineWithWarmUpLR(0.05, warmup_steps=3, total_steps=8)

    def make(params: Any) -> Any:
        limits: dict[str, Any] = {"max_grad_norm": 0.5}
        if not isinstance(params["weight"], np.ndarray):
            limits["capture_steps"] = 8
        if optimizer == "lamb":
            return nl.Lamb(params, schedule, weight_decay=0.1, **limits)
        momentum = nl.Momentum(params, schedule, 0.9, weight_decay=0.1, **limits)
        return momentum if optimizer == "momentum" else nl.Lars(momentum)

    twins = Twins(make, library, shapes=SHAPES)
    given = twins.put(twins.gradients(0))
    twins.on_cpu.step(twins.gradients(0))
    twins.on_gpu.step(given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        twins.on_gpu.step(given)
    for step in range(1, 8):
        gradients = twins.gradients(step)
        for name, gradient in gradients.items():
            given[name].copy_(torch.from_numpy(gradient))
        graph.replay()
        twins.on_cpu.step(gradients)
    torch.cuda.synchronize()
    twins.assert_same()
    twins.on_gpu.check()
    before = frozen(twins.weights())
    graph.replay()
    torch.cuda.synchronize()
    assert frozen(twins.weights()) == before
    with pytest.raises(RuntimeError, match="past capture_steps"):
        twins.on_gpu.check()


def test_a_replay_skips_what_is_not_finite(torch: Any, library: Library) -> None:
    twins = Twins(lambda p: nl.Lamb(p, 0.01, nonfinite="skip"), library, shapes=SHAPES)
    given = twins.put(twins.gradients(0))
    twins.on_gpu.step(given)
    twins.on_cpu.step(twins.gradients(0))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        twins.on_gpu.step(given)
    for step in range(1, 4):
        gradients = twins.gradients(step)
        if step == 2:
            gradients["bias"][5] = np.inf
        for name, gradient in gradients.items():
            given[name].copy_(torch.from_numpy(gradient))
        graph.replay()
        twins.on_cpu.step(gradients)
    torch.cuda.synchronize()
    assert twins.on_gpu.skipped_steps == 1
    twins.assert_same()


def test_a_rate_that_is_a_tensor_is_read_where_it_lies(torch: Any, library: Library) -> None:
    twins = twins_of(library)
    rate = torch.tensor(0.5, device="cuda")
    twins.on_gpu.learning_rate = rate
    for value in (0.5, 0.125):
        rate.fill_(value)
        twins.on_cpu.learning_rate = value
        twins.step(twins.gradients(3))
    for group in (*twins.on_cpu.param_groups, *twins.on_gpu.param_groups):
        group["lr"] = 0.25
    twins.assert_same()


def test_a_training_takes_the_same_way_as_on_the_cpu(torch: Any) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(512, 20, device="cuda")
    targets = torch.sin(inputs @ torch.randn(20, 1, device="cuda"))
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).cuda()
    tensors = dict(model.named_parameters())
    params = {name: tensor.detach() for name, tensor in tensors.items()}
    host = {name: tensor.cpu().numpy() for name, tensor in params.items()}
    schedule = nl.schedules.CosineWithWarmUpLR(0.05, warmup_steps=10, total_steps=200)
    on_gpu, on_cpu = (nl.Lamb(p, schedule, weight_decay=0.01, max_grad_norm=1.0) for p in (params, host))
    losses = []
    for _ in range(200):
        model.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        on_cpu.step([tensor.grad.cpu().numpy() for tensor in tensors.values()])
        on_gpu.step([tensor.grad for tensor in tensors.values()])
        losses.append(loss.detach())
    assert frozen({name: tensor.cpu().numpy() for name, tensor in params.items()}) == frozen(host)
    assert frozen(on_gpu.state_dict()) == frozen(on_cpu.state_dict())
    assert float(losses[-1]) < 0.2 * float(losses[0])
