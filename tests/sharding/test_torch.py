"""Ranks that share the state of PyTorch's optimizers take the steps of one process, bit for bit."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import numba_lamb.torch as nlt
from numba_lamb.comm import CommError
from numba_lamb.torch.dtensors import check_cuts
from numba_lamb.torch.part import Part
from tests.sharding.ranks import on_ranks

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lamb": ("Lamb", {"lr": 0.01, "weight_decay": 0.1}),
    "clipped": ("Lamb", {"lr": 0.01, "max_grad_norm": 1.0, "nonfinite": "skip"}),
    "8 bits": ("Lamb", {"lr": 0.01, "moments": "int8"}),
    "no master": ("Lamb", {"lr": 0.01, "moments": "bfloat16", "master": None}),
    "lans": ("Lans", {"lr": 0.01}),
    "lars": ("Lars", {"lr": 0.1}),
    "momentum": ("Momentum", {"lr": 0.1}),
}


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a network whose last layer is frozen, and whose first lies in memory with channels last."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(40, 300), nn.LayerNorm(300), nn.Linear(300, 50)
        )
    model[0].to(memory_format=torch.channels_last)
    model[4].requires_grad_(False)
    return model.to(dtype)


def take(model: nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    """Take steps from gradients whose sums over ranks are exact; the last layer joins in the fourth."""
    for step in steps:
        if step == 3:
            model[4].requires_grad_(True)  # type: ignore[index]
        draws = torch.Generator().manual_seed(step)
        for number, parameter in enumerate(model.parameters()):
            values = (torch.randn(parameter.shape, generator=draws) * 16).round().div(64).to(parameter.dtype)
            wanted = parameter.requires_grad and (step, number) != (2, 3)
            parameter.grad = values.clone(memory_format=torch.preserve_format) if wanted else None
        opt.step()


def give_up() -> None:
    """Fail, as a closure may."""
    raise OSError("no data")


def same(one: Any, other: Any) -> bool:
    """Return whether two states have the same tensors, strides included."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key][name]) and value.stride() == other[key][name].stride()
        for key in one
        for name, value in one[key].items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_one_process(kind: str, dtype: torch.dtype) -> None:
    name, options = KINDS[kind]
    first = network(dtype)
    single = copy.deepcopy(first)
    opt = getattr(nlt, name)(single.named_parameters(), **options)
    take(single, opt, range(5))

    def make(model: nn.Module, comm: Any) -> Any:
        given = {"process_group": comm, "bucket_mb": 0.05}
        return getattr(nlt, f"Sharded{name}")(model.named_parameters(), **given, **options)

    def work(comm: Any) -> bool:
        model = copy.deepcopy(first)
        sharded = make(model, comm)
        take(model, sharded, range(5))
        assert all(map(torch.equal, model.parameters(), single.parameters()))
        assert sharded.stats() == opt.stats()
        full = sharded.full_state_dict()
        assert same(full["state"], opt.state_dict()["state"])
        # From this rank's own part, and from all of it.
        for state in (copy.deepcopy(sharded.state_dict()), full):
            again = copy.deepcopy(model)
            resumed = make(again, comm)
            resumed.load_state_dict(state)
            assert same(resumed.full_state_dict()["state"], opt.state_dict()["state"])
        return True

    for size in (1, 3):
        assert all(on_ranks(size, work))


def test_the_whole_state_goes_to_an_optimizer_of_one_process_and_back() -> None:
    first = network()
    single = copy.deepcopy(first)
    opt = nlt.Lamb(single.named_parameters(), lr=0.01)
    take(single, opt, range(6))

    def work(comm: Any) -> tuple[Any, Any]:
        model = copy.deepcopy(first)
        sharded = nlt.ShardedLamb(model.named_parameters(), lr=0.01, process_group=comm)
        take(model, sharded, range(4))
        return sharded.full_state_dict(), model

    state, model = on_ranks(2, work)[0]
    resumed = nlt.Lamb(model.named_parameters(), lr=0.01)
    resumed.load_state_dict(state)
    take(model, resumed, range(4, 6))
    assert all(map(torch.equal, model.parameters(), single.parameters()))


def test_a_part_goes_through_a_file_and_other_numbers_of_ranks_are_refused() -> None:
    first = network()

    def save(comm: Any) -> bytes:
        model = copy.deepcopy(first)
        sharded = nlt.ShardedLamb(model.named_parameters(), lr=0.01, process_group=comm)
        take(model, sharded, range(1))
        file = io.BytesIO()
        torch.save(sharded.state_dict(), file)
        return file.getvalue()

    files = on_ranks(3, save)

    def load(comm: Any) -> None:
        state = torch.load(io.BytesIO(files[comm.rank]))
        part = state["state"][2]["exp_avg"]
        assert isinstance(part, Part)
        assert part.whole == 12000
        sharded = nlt.ShardedLamb(copy.deepcopy(first).named_parameters(), lr=0.01, process_group=comm)
        if comm.size == 3:
            sharded.load_state_dict(state)
            return
        with pytest.raises(
            CommError, match="state_dict must be that of all 2 ranks of one optimizer, got other"
        ):
            sharded.load_state_dict(state)

    on_ranks(3, load)
    on_ranks(2, load)


def test_ranks_that_make_other_optimizers_all_raise() -> None:
    def work(comm: Any) -> None:
        model = network()
        given = {"process_group": comm, "lr": 0.01}
        with pytest.raises(CommError, match="options must be the same on all ranks, got another on rank 1"):
            nlt.ShardedLamb(model.named_parameters(), **given, eps=1e-3 if comm.rank else 1e-6)
        with pytest.raises(TypeError if comm.rank else CommError, match="'beta1' is no option"):
            nlt.ShardedLamb(model.named_parameters(), **given, **({"beta1": 0.9} if comm.rank else {}))
        model[4].requires_grad_(comm.rank == 0)
        with pytest.raises(CommError, match="the layers must be the same on all ranks"):
            nlt.ShardedLamb(model.named_parameters(), **given)

    on_ranks(2, work)

    def work_with_others(comm: Any) -> None:
        conv = nn.Conv2d(8, 64, 3)
        with pytest.raises(CommError, match="bucket_mb must be the same on all ranks"):
            nlt.ShardedLamb(conv.parameters(), process_group=comm, bucket_mb=1.0 + comm.rank)
        if comm.rank:
            conv.to(memory_format=torch.channels_last)
        with pytest.raises(CommError, match="the layers must be the same on all ranks"):
            nlt.ShardedLamb(conv.parameters(), process_group=comm)

    on_ranks(2, work_with_others)


def test_layers_in_the_place_of_others() -> None:
    found = []
    for make in (nlt.Lamb, nlt.ShardedLamb):
        first, second = nn.Parameter(torch.ones(20_000)), nn.Parameter(torch.ones(300))
        opt = make([first, second], lr=0.1)
        for parameter in (first, second):
            parameter.grad = torch.ones_like(parameter)
        opt.step()
        # The second has the first one's name now.
        opt.state.pop(opt.param_groups[0]["params"].pop(0))
        opt.step()
        third = nn.Parameter(torch.ones(40_000))
        third.grad = torch.ones_like(third)
        opt.state.clear()
        opt.param_groups[0]["params"][0] = third
        opt.step()
        found.append((second.detach(), third.detach()))
    assert all(map(torch.equal, *found))


def test_groups_with_the_same_names() -> None:
    def work(comm: Any) -> bool:
        models = [nn.Linear(30, 20), nn.Linear(100, 90)]
        made = [
            nlt.ShardedLamb([{"params": m.named_parameters()} for m in models], lr=0.1, process_group=comm)
            for _ in range(2)
        ]
        for model in models:
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
        made[0].step()
        made[1].load_state_dict(copy.deepcopy(made[0].state_dict()))
        made[1].step()
        made[0].step()
        return same(made[0].full_state_dict()["state"], made[1].full_state_dict()["state"])

    assert all(on_ranks(2, work))


def test_state_that_was_not_loaded_on_all_ranks() -> None:
    first = network()

    def work(comm: Any) -> None:
        model = copy.deepcopy(first)
        opt = nlt.ShardedLamb(model.named_parameters(), lr=0.01, process_group=comm, timeout=20)
        take(model, opt, range(1))
        older = copy.deepcopy(opt.state_dict())
        take(model, opt, range(1, 3))
        newer, whole = copy.deepcopy(opt.state_dict()), opt.full_state_dict()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with pytest.raises(CommError, match="the number of steps must be the same on all ranks"):
            opt.load_state_dict(newer if comm.rank else older)
        with pytest.raises(CommError, match="load_state_dict failed on a rank"):
            take(model, opt, range(3, 4))
        opt.load_state_dict(newer)
        refused = {**whole, "param_groups": []} if comm.rank else whole
        with pytest.raises(ValueError if comm.rank else CommError, match="number of parameter groups"):
            opt.load_state_dict(refused)
        with pytest.raises(CommError, match="load_state_dict failed on a rank"):
            opt.full_state_dict()
        assert all(map(torch.equal, model.parameters(), before))
        opt.load_state_dict(newer)
        take(model, opt, range(3, 5))

    on_ranks(2, work)


def test_calls_of_some_ranks_alone() -> None:
    def work(comm: Any) -> None:
        model = network()
        opt = nlt.ShardedLamb(model.named_parameters(), lr=0.01, process_group=comm)
        take(model, opt, range(1))
        state = opt.state_dict()
        for call in (opt.full_state_dict, lambda: opt.load_state_dict(state)):
            with pytest.raises(CommError, match="the call must be the same on all ranks"):
                take(model, opt, range(1, 2)) if comm.rank else call()
        take(model, opt, range(1, 2))

    on_ranks(2, work)


def test_ranks_that_cut_layers_otherwise() -> None:
    def work(comm: Any) -> None:
        model = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 150), nn.Linear(150, 50))
        model[1:].requires_grad_(False)
        opt = nlt.ShardedLamb(model.parameters(), lr=0.01, process_group=comm)
        model[1].requires_grad_(True)
        if comm.rank == 0:
            opt.state_dict()
        model[2].requires_grad_(True)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with pytest.raises(CommError, match="how ranks have cut the layers must be the same on all ranks"):
            opt.step()

    on_ranks(2, work)


def test_parts_are_in_the_order_of_memory() -> None:
    conv, other = nn.Conv2d(8, 64, 3), nn.Conv2d(8, 64, 3).to(memory_format=torch.channels_last)
    opt, resumed = (nlt.ShardedLamb(model.parameters()) for model in (conv, other))
    for parameter in conv.parameters():
        parameter.grad = torch.randn_like(parameter)
    opt.step()
    with pytest.raises(
        ValueError, match=r"must be in the order of its memory, \[0, 2, 3, 1\], got \[0, 1, 2, 3\]"
    ):
        resumed.load_state_dict(opt.state_dict())
    resumed.load_state_dict(opt.full_state_dict())
    assert torch.equal(*(o.full_state_dict()["state"][0]["exp_avg"] for o in (opt, resumed)))


def test_layers_of_no_element_are_no_parts() -> None:
    empty = nn.Parameter(torch.zeros(0, 5))
    empty.grad = torch.zeros_like(empty)
    opt = nlt.ShardedLamb([empty])
    opt.step()
    assert type(opt.state_dict()["state"][0]["exp_avg"]) is torch.Tensor
    opt.load_state_dict(opt.state_dict())


def test_an_error_of_one_rank_is_told_to_all() -> None:
    first = network()

    def work(comm: Any) -> None:
        model = copy.deepcopy(first)
        sharded = nlt.ShardedLamb(model.named_parameters(), lr=0.01, process_group=comm)
        take(model, sharded, range(1))
        if comm.rank == 1:
            sharded.param_groups[0]["betas"] = (0.9, 2.0)
        with pytest.raises(ValueError if comm.rank else CommError, match=r"betas\[1\] must be a number"):
            take(model, sharded, range(1, 2))
        with pytest.raises(OSError if comm.rank else CommError, match="no data"):
            sharded.step(give_up if comm.rank else None)
        sharded.param_groups[0]["betas"] = (0.9, 0.999)
        take(model, sharded, range(1, 2))

    on_ranks(2, work)


def test_what_it_cannot_do_is_said() -> None:
    opt = nlt.ShardedLamb(network().named_parameters(), lr=0.01)
    with pytest.raises(TypeError, match=r"cannot be copied or pickled; use its state_dict\(\)"):
        copy.deepcopy(opt)
    with pytest.raises(TypeError, match="'beta1' is no option of numba_lamb"):
        nlt.ShardedLamb(network().named_parameters(), beta1=0.9)
    with pytest.raises(TypeError, match=r"process_group must be one of torch\.distributed or None, got a"):
        nlt.ShardedLamb(network().named_parameters(), process_group=3)
    with pytest.raises(ValueError, match="fused_amp must be False where ranks share state, got True"):
        nlt.ShardedLamb(network().named_parameters(), fused_amp=True)
    with pytest.raises(ValueError, match="timeout must be a finite number > 0, got -1"):
        nlt.ShardedLamb(network().named_parameters(), timeout=-1)


def test_a_group_without_the_cpus_memory_makes_one_of_gloo() -> None:
    import torch.distributed as dist

    from numba_lamb.torch.comm import TorchComm

    dist.init_process_group("cuda:gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        comm, out = TorchComm(None, 5.0), np.zeros(3, dtype=np.uint8)
        comm.all_gather(out, np.arange(3, dtype=np.uint8))()
        assert out.tolist() == [0, 1, 2]
        # Only NCCL's are taken for those of a GPU's memory.
        assert comm.on_device(0) is None
    finally:
        dist.destroy_process_group()


def test_a_part_stays_one_where_a_state_dict_is_copied() -> None:
    part = Part.of(torch.arange(3.0), 5, 20)
    copies = [part.clone(), part.detach(), part.cpu(), part.to("cpu", torch.float64), copy.deepcopy(part)]
    for found in copies:
        assert isinstance(found, Part)
        assert (found.first, found.whole, found.tolist()) == (5, 20, [0.0, 1.0, 2.0])
    assert copies[3].dtype == torch.float64
    # A sum is no part.
    assert type(part + part) is torch.Tensor


def test_meshes_that_cut_one_name_otherwise_are_refused() -> None:
    near = np.array([True, True, False, False, False])
    starts, stops = np.array([0, 32, 0, 32, 0]), np.array([32, 64, 32, 64, 0])
    check_cuts("expert", starts, stops, near)
    starts[3] = stops[2] = 40
    with pytest.raises(TypeError, match="DTensors named 'expert' must be cut alike on all meshes"):
        check_cuts("expert", starts, stops, near)
