"""A rank with FSDP2 and tensor parallelism beside one process. Argument: folder. Four ranks."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from numba_lamb.comm import CommError
from numba_lamb.torch import Lamb, Lars, Momentum

EVERYTHING = StateDictOptions(full_state_dict=True, cpu_offload=True)
PLAN = {
    "first": ColwiseParallel(output_layouts=Replicate()),
    "second": ColwiseParallel(),
    "last": RowwiseParallel(),
}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, 256), nn.LayerNorm(256)
        self.second, self.last = nn.Linear(256, 128), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(self.norm(torch.relu(self.first(x))))))


def network(kind: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = Network().to(dtype)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    if kind == "tensor parallel":
        parallelize_module(model, mesh["inner"], PLAN)
        return fully_shard(model, mesh=mesh["outer"])
    mesh = mesh if kind == "hybrid" else init_device_mesh("cpu", (4,))
    for part in (model.first, model.second, model.last):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gradients(model: nn.Module, step: int) -> None:
    draws = torch.Generator().manual_seed(step)
    x, y = torch.randn(32, 64, generator=draws), torch.randint(0, 10, (32,), generator=draws)
    model.zero_grad()
    nn.functional.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y).backward()


def spoil(model: nn.Module) -> None:
    """Put a NaN into one rank's gradients alone."""
    for parameter in model.parameters():
        if dist.get_rank() == 3:
            parameter.grad.to_local().fill_(float("nan"))


def whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check(kind: str, make: Any, options: dict[str, Any], dtype: torch.dtype, folder: Path) -> None:
    torch.manual_seed(0)
    single, model = Network().to(dtype), network(kind, dtype)
    alone, opt = make(single.named_parameters(), **options), make(model.named_parameters(), **options)
    for step in range(20):
        gradients(model, step)
        for parameter, own in zip(model.parameters(), single.parameters(), strict=True):
            own.grad = whole(parameter.grad).clone()
        if step == 5 and options.get("nonfinite") == "skip":
            spoil(model)
            opt.step()
            assert opt.skipped_steps == 1
            continue
        alone.step()
        opt.step()
        found, expected = opt.stats(), alone.stats()
        for name, value in expected.items():
            assert abs(found[name] - value) <= 1e-13 * value, (kind, name)
    for parameter, own in zip(model.parameters(), single.parameters(), strict=True):
        # A piece here ends within a chunk, and norms are alike to the last bits of float64 alone.
        torch.testing.assert_close(whole(parameter).detach(), own.detach(), rtol=1e-6, atol=0)
    for entry in opt.state.values():
        assert isinstance(next(value for key, value in entry.items() if key != "step"), DTensor)
    weights, state = get_state_dict(model, opt)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    again = network(kind, dtype)
    resumed = make(again.named_parameters(), **options)
    weights, state = get_state_dict(again, resumed)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(again, resumed, model_state_dict=weights, optim_state_dict=state)
    if dtype == torch.bfloat16:
        check_remainders(single, model, opt)
    for each, optimizer in ((model, opt), (again, resumed)):
        gradients(each, 21)
        optimizer.step()
    for parameter, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter.to_local(), other.to_local()), kind


def check_remainders(single: nn.Module, model: nn.Module, opt: Any) -> None:
    """What makes the masters of bfloat16 parameters comes together for one process."""
    told = [get_optimizer_state_dict(model, opt, options=EVERYTHING)]
    dist.broadcast_object_list(told)
    single.zero_grad()
    loaded = Lamb(single.named_parameters(), lr=0.02, moments="bfloat16")
    set_optimizer_state_dict(single, loaded, told[0], options=EVERYTHING)
    for parameter, own in zip(model.parameters(), single.parameters(), strict=True):
        expected = whole(opt.state[parameter]["remainder"].to(torch.int32))
        assert torch.equal(loaded.state[own]["remainder"].to(torch.int32), expected)


def check_8_bits(folder: Path) -> None:
    """Moments of 8 bits, whose scales go from one number of ranks to another and to one process."""

    def made(model: nn.Module) -> Lamb:
        rows = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim == 1]
        return Lamb([{"params": rows, "moments": "int8"}, {"params": others}], lr=0.02)

    torch.manual_seed(0)
    single, model, again = Network(), network("sharded", torch.float32), network("hybrid", torch.float32)
    with pytest.raises(
        ValueError, match=r"moments must be None or 'bfloat16' for 'first\.bias', whose pieces end"
    ):
        Lamb(model.named_parameters(), moments="int8")
    alone, opt, resumed = made(single), made(model), made(again)

    def step(number: int, *others: tuple[nn.Module, Lamb]) -> None:
        gradients(model, number)
        for each, optimizer in others:
            for own, parameter in zip(each.parameters(), model.parameters(), strict=True):
                own.grad = whole(parameter.grad).clone()
                if isinstance(own, DTensor):
                    own.grad = distribute_tensor(own.grad, own.device_mesh, own.placements)
            optimizer.step()
        opt.step()

    def same_codes(other: Lamb, parameters: list[nn.Parameter]) -> None:
        for parameter, own in zip(model.parameters(), parameters, strict=True):
            if parameter.ndim > 1:
                for name in ("exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale"):
                    found, expected = whole(opt.state[parameter][name]), whole(other.state[own][name])
                    assert torch.equal(found, expected), name

    for number in range(5):
        step(number, (single, alone))
    same_codes(alone, [*single.parameters()])

    weights, state = get_state_dict(model, opt)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    weights, state = get_state_dict(again, resumed)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(again, resumed, model_state_dict=weights, optim_state_dict=state)
    same_codes(resumed, [*again.parameters()])

    # All of it in one process, and back.
    state = get_optimizer_state_dict(model, opt, options=EVERYTHING)
    # PyTorch makes no state of a new optimizer whose parameters have gradients.
    for each in (single, model):
        each.zero_grad()
    loaded = made(single)
    told = [state if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told)
    set_optimizer_state_dict(single, loaded, told[0], options=EVERYTHING)
    same_codes(loaded, [*single.parameters()])
    opt = made(model)
    set_optimizer_state_dict(model, opt, get_optimizer_state_dict(single, loaded), options=EVERYTHING)
    same_codes(loaded, [*single.parameters()])
    step(5, (single, loaded), (again, resumed))
    same_codes(loaded, [*single.parameters()])
    same_codes(resumed, [*again.parameters()])


def ones(*parameters: Any) -> None:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)


def check_meshes() -> None:
    """Stages of a pipeline, experts, and parameters that are in no pieces: each has its own norms."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("stage", "replicate", "shard"))
    torch.manual_seed(rank // 2)
    model = nn.Sequential(*(nn.Linear(30, 64) for _ in range(1 + rank // 2)))
    norm = model[0].weight.norm().item()
    fully_shard(model, mesh=mesh["replicate", "shard"])
    opt = Lamb(model.named_parameters(), lr=0.01)
    ones(*model.parameters())
    opt.step()
    assert abs(opt.stats()["weight_norm/0.weight"] - norm) < 1e-6 * norm

    everywhere, pair = init_device_mesh("cpu", (4,)), mesh["shard"]
    dense, expert, own = (
        torch.ones(40, 30),
        torch.full((64, 30), 1.0 + rank // 2),
        torch.full((9,), 1.0 + rank),
    )
    pieces = [
        nn.Parameter(distribute_tensor(dense, everywhere, [Shard(0)])),
        nn.Parameter(distribute_tensor(expert, pair, [Shard(0)])),
        nn.Parameter(own.clone()),
    ]
    whole_ones = [nn.Parameter(value.clone()) for value in (dense, expert, own)]
    opt, alone = Lamb(pieces, lr=0.1), Lamb(whole_ones, lr=0.1)
    for _ in range(2):
        ones(*pieces, *whole_ones)
        opt.step()
        alone.step()
    for found, expected in zip(pieces, whole_ones, strict=True):
        torch.testing.assert_close(whole(found).detach(), expected.detach(), rtol=1e-6, atol=0)
    other = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    crossing = [nn.Parameter(distribute_tensor(dense, other[name], [Shard(0)])) for name in "ab"]
    opt = Lamb(crossing)
    ones(*crossing)
    with pytest.raises(TypeError, match="DTensors of one optimizer must lie on ranks of one mesh, got some"):
        opt.step()


def check_disagreements() -> None:
    """What one rank alone has or refuses is an error on all, and a step that all can take is taken."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (4,))
    model = fully_shard(nn.Linear(30, 64), mesh=mesh)
    opt = Lamb(model.parameters(), lr=0.01)
    ones(*model.parameters())
    if rank == 1:
        model.bias.grad = None
    with pytest.raises(CommError, match="which parameters have gradients must be the same on all ranks"):
        opt.step()
    ones(*model.parameters())
    opt.step()
    opt.param_groups[0]["betas"] = (0.9, 2.0 if rank == 1 else 0.999)
    with pytest.raises(ValueError if rank == 1 else CommError, match=r"betas\[1\] must be a number"):
        opt.step()
    opt.param_groups[0]["betas"] = (0.9, 0.999)
    opt.step()
    # State of pieces as large, but of other rows.
    moment = next(iter(opt.state.values()))["exp_avg"]
    crossed = init_device_mesh("cpu", (2, 2))
    placed = distribute_tensor(moment.full_tensor(), crossed, [Replicate(), Replicate()])
    opt.state[model.weight]["exp_avg"] = placed.redistribute(crossed, [Replicate(), Shard(0)])
    with pytest.raises(
        (ValueError, CommError), match="state 'exp_avg' of parameter 'param_0' must be placed as"
    ):
        opt.step()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    lamb = {"lr": 0.02, "weight_decay": 0.1, "max_grad_norm": 1.0, "nonfinite": "skip"}
    for kind in ("sharded", "hybrid", "tensor parallel"):
        check(kind, Lamb, lamb, torch.float32, folder / kind)
    check("sharded", Lamb, {"lr": 0.02, "moments": "bfloat16"}, torch.bfloat16, folder / "bfloat16")
    check("sharded", Lars, {"lr": 0.1}, torch.float32, folder / "lars")
    check("sharded", Momentum, {"lr": 0.1}, torch.float32, folder / "momentum")
    check_8_bits(folder / "8 bits")
    check_meshes()
    check_disagreements()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
