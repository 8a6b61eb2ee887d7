"""Flat parameters: FSDP1's, and those that engines put into groups in place of layers."""

from typing import Any

import pytest
import torch

from numba_lamb.torch import Lamb, Lars, Momentum
from tests.torch.helpers import PAIRS, alike, assert_same, fill, network, ours, snapshot, steps, values

P = torch.nn.Parameter


def ones(*shape: int) -> Any:
    return P(torch.ones(shape))


def layers() -> list[Any]:
    return [ones(4, 3), ones(4), ones(5, 4), ones(5)]


def flat(params: Any, padding: int = 0, shards: int = 1) -> Any:
    whole = torch.cat([*(p.detach().flatten() for p in params), torch.zeros(padding)])
    return P(whole[: len(whole) // shards].clone())


@ours
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_parameters_of_fsdp1_are_refused_where_layers_matter(make: Any, original: bool) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this torch has no distributed package")
    from torch.distributed.fsdp import FullyShardedDataParallel

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = network()
        before = make(model.parameters())
        wrapped = FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))
        wrapped(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
        if isinstance(before, Momentum):
            # It needs no norms, unless it clips.
            make(wrapped.named_parameters()).step()
            with pytest.raises(TypeError, match="must be a layer, got one of several that FSDP1 flattened"):
                Momentum(wrapped.parameters(), lr=0.1, max_grad_norm=1.0)
            return
        with pytest.raises(TypeError, match="must be a layer, got one of several that FSDP1 flattened"):
            make(wrapped.named_parameters())
        if original:
            # The parameters that were given stay in the model, and are pieces of flat ones now.
            with pytest.raises(TypeError, match="'param_0' must be a layer, got one of several"):
                before.step()
    finally:
        distributed.destroy_process_group()


MERGED = {
    "all into one": lambda ps: [flat(ps)],
    "with padding": lambda ps: [flat(ps, padding=7)],
    "one kept": lambda ps: [ps[0], flat(ps[1:])],
    "one copied": lambda ps: [P(ps[0].detach().clone()), flat(ps[1:])],
    "two buckets": lambda ps: [flat(ps[:2]), flat(ps[2:])],
    "matrices": lambda ps: [ones(41, 1)],
}
KEPT = {
    "copies": lambda ps: [P(p.detach().clone()) for p in ps],
    "pruned": lambda ps: [ones(2, 3), ones(2), ones(5, 2), ones(5)],
    "grown": lambda ps: [ones(8, 3), ones(8), ones(5, 8), ones(5)],
    "grown, without biases": lambda ps: [ones(8, 3), ones(5, 8)],
    "one flattened": lambda ps: [flat(ps[:1]), *ps[1:]],
    "a part": lambda ps: ps[:2],
    "more": lambda ps: [*ps, ones(9)],
    "a norm in place of two layers": lambda ps: [ones(5), ones(5)],
    "a prompt alone": lambda ps: [ones(6)],
    "split": lambda ps: [ones(2, 3), ones(2, 3), *ps[1:]],
}


@pytest.mark.parametrize("kind", [Lamb, Lars])
@pytest.mark.parametrize("change", [*MERGED, *KEPT])
@pytest.mark.parametrize("stepped", [False, True])
def test_layers_that_were_merged_are_refused(kind: Any, change: str, stepped: bool) -> None:
    params = layers()
    opt = kind([{"params": [ones(2, 2)]}, {"params": list(params)}], lr=0.1)
    if stepped:
        steps(opt, [*opt.param_groups[0]["params"], *params])
    opt.param_groups[1]["params"] = new = {**MERGED, **KEPT}[change](params)
    before = snapshot(opt)
    fill(new)
    if change in KEPT:
        opt.step()
        assert all(opt.state[p]["step"].item() >= 1 for p in new)
        return
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^params of group 1 must be layers, but 4 tensors were merged"):
            opt.step()
        if not stepped:
            opt.load_state_dict(opt.state_dict())
    assert_same(snapshot(opt), before)
    opt.param_groups[1]["params"] = params
    steps(opt, params)


def test_shards_of_other_processes_count(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    params = layers()
    opt = Lamb(params, lr=0.1)
    opt.param_groups[0]["params"] = [flat(params, padding=3, shards=4)]
    fill(opt.param_groups[0]["params"])
    with pytest.raises(ValueError, match=r"^params must be layers, but 4 tensors were merged into 1"):
        opt.step()


def test_a_formula_without_layers_may_have_them_merged() -> None:
    def scenario(make: Any) -> Any:
        params = layers()
        opt = make(params, lr=0.1)
        opt.param_groups[0]["params"] = new = [flat(params)]
        steps(opt, new)
        return values(new)

    for pair in ("sgd", "adamw"):
        alike(pair, scenario, 1e-6)
    params = layers()
    opt = Momentum(params, lr=0.1, decay_filter=lambda layer: layer.ndim > 1)
    opt.param_groups[0]["params"] = [flat(params)]
    fill(opt.param_groups[0]["params"])
    with pytest.raises(ValueError, match="must be layers"):
        opt.step()


@pytest.mark.parametrize("pair", ["lamb", "lars"])
def test_groups_may_be_added_while_others_change(pair: str) -> None:
    make = PAIRS[pair][0]
    params = layers()
    opt = make(params)
    opt.add_param_group({"params": [ones(44)]})
    opt.param_groups[0]["params"] = params[2:]
    opt.add_param_group({"params": params[:2]})
    steps(opt, [p for group in opt.param_groups for p in group["params"]])
    opt.param_groups.reverse()
    steps(opt, params)
    assert opt.state[params[0]]["step"].item() == 4
