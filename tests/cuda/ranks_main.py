"""A rank whose DTensors play those of a GPU, beside one process on the CPU. Argument: folder. Two ranks."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from numba_lamb.comm import Span
from numba_lamb.torch import Lamb, Lars, ShardedLamb
from numba_lamb.torch.comm import NcclComm, TorchComm
from tests.cuda.double import Gpu
from tests.cuda.mapped import Mapped, map_tensors
from tests.sharding.fsdp_main import whole
from tests.sharding.test_torch import network as sharding_network
from tests.sharding.test_torch import take

KINDS = {
    "float32": (Lamb, {"lr": 0.02, "weight_decay": 0.1, "max_grad_norm": 1.0, "nonfinite": "skip"}),
    "bfloat16": (Lamb, {"lr": 0.02, "moments": "bfloat16"}),
    "8 bits": (Lamb, {"lr": 0.02, "moments": "int8"}),
    "lars": (Lars, {"lr": 0.1}),
}


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 65), nn.LayerNorm(65), nn.Linear(65, 5)).to(dtype)


def network_of_rows() -> nn.Module:
    """Return a network whose pieces do not end inside of rows of 128 elements."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 128, bias=False), nn.Tanh(), nn.Linear(128, 5, bias=False))


def give_gradients(model: nn.Module, single: nn.Module, step: int) -> None:
    """Give both the same gradients, those of one process."""
    draws = torch.Generator().manual_seed(step)
    single.zero_grad()
    single(torch.randn(8, 30, generator=draws).to(next(single.parameters()).dtype)).square().sum().backward()
    for own, other in zip(model.parameters(), single.parameters(), strict=True):
        assert own.to_local().numel() <= other.numel()
        own.grad = torch.distributed.tensor.distribute_tensor(other.grad, own.device_mesh, own.placements)


def check(mapped: Mapped, kind: str, meshes: tuple[int, ...]) -> None:
    make, options = KINDS[kind]
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    single, model = (network_of_rows() if kind == "8 bits" else network(dtype) for _ in range(2))
    fully_shard(model, mesh=init_device_mesh("cpu", meshes, mesh_dim_names=("outer", "inner")[: len(meshes)]))
    alone, opt = make(single.named_parameters(), **options), make(model.named_parameters(), **options)
    for step in range(4):
        give_gradients(model, single, step)
        if step == 1 and kind == "float32":
            # A NaN on one rank alone.
            if dist.get_rank() == 1:
                model[0].weight.grad.to_local().fill_(float("nan"))
        else:
            alone.step()
        with mapped.active():
            opt.step()
    expected = alone.stats()
    for name, value in dict(opt.stats()).items():
        assert abs(value - expected[name]) <= 1e-13 * value, (kind, name)
    for own, other in zip(model.parameters(), single.parameters(), strict=True):
        # A piece ends within a chunk: norms are alike to the last bits of float64.
        torch.testing.assert_close(whole(own).detach(), other.detach(), rtol=1e-6, atol=0)
    assert opt.skipped_steps == (kind == "float32")


def leave_out(mapped: Mapped) -> None:
    """A loss scaler says on one rank alone that a step must be left out."""
    single, model = network(torch.float32), network(torch.float32)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    opt = Lamb(model.named_parameters(), lr=0.1, fused_amp=True)
    before = [whole(parameter).detach().clone() for parameter in model.parameters()]
    give_gradients(model, single, 0)
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(float(dist.get_rank()))
    with mapped.active():
        opt.step()
    assert opt.skipped_steps == 1
    assert all(map(torch.equal, map(whole, model.parameters()), before))


def replicated(gpu: Gpu, mapped: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    """State that ranks share, by way of the CPU and by collectives on the GPU's memory, which gloo plays."""

    class OnGpu(NcclComm):
        def _on(self, stream: int) -> Any:
            gpu.driver.progress()
            return nullcontext()

        def _tensor(self, span: Span) -> torch.Tensor:
            return torch.from_numpy(gpu.driver._bytes(span.address, span.nbytes))

    single = sharding_network()
    alone = Lamb(single.named_parameters(), lr=0.01, max_grad_norm=1.0)
    take(single, alone, range(5))
    for _ in range(2):
        model = sharding_network()
        opt = ShardedLamb(model.named_parameters(), lr=0.01, max_grad_norm=1.0, bucket_mb=0.05)
        for step in range(5):
            with mapped.active():
                take(model, opt, range(step, step + 1))
        assert all(map(torch.equal, model.parameters(), single.parameters()))
        monkeypatch.setattr(TorchComm, "on_device", lambda comm, index: OnGpu(comm._given, comm.rank, index))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    with pytest.MonkeyPatch.context() as monkeypatch:
        gpu = Gpu(monkeypatch)
        mapped = map_tensors(gpu, monkeypatch)
        for kind in KINDS:
            check(mapped, kind, (2,))
        # Both ranks have all of it.
        check(mapped, "float32", (2, 1))
        leave_out(mapped)
        replicated(gpu, mapped, monkeypatch)
        gpu.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
