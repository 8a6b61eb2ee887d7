"""What is set around a step, and what it leaves behind: default devices, modes, threads, memory."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.torch.helpers import assert_same, fill, network, ours, parameter, snapshot, steps, train


class Passing(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


AROUND = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "meta": lambda: torch.device("meta"),
    "function_mode": Passing,
    "dispatch_mode": Dispatching,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def moved(p: Any) -> None:
    p.data = p.data.clone()


@ours
@pytest.mark.parametrize("around", list(AROUND))
@pytest.mark.parametrize("first", [False, True])
def test_steps_inside_of_anything_are_the_same(make: Any, around: str, first: bool) -> None:
    """The first step, which makes the state, or later ones; with a parameter whose memory has gaps."""

    def trained(wrapped: Any) -> Any:
        base = parameter(4, 6).detach()
        params = [torch.nn.Parameter(base[:, :3]), parameter(5, seed=1)]
        opt = make(params, max_grad_norm=0.5, nonfinite="skip")
        for step in range(4):
            fill(params, step)
            params[1].grad = params[1].grad[:1].expand(5)
            if step == 2:
                moved(params[1])
            if (step == 0) == first:
                with wrapped():
                    opt.step()
            else:
                opt.step()
        return snapshot(opt)

    assert_same(trained(AROUND[around]), trained(torch.no_grad))


@ours
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_dtype_plays_no_part(make: Any, dtype: Any) -> None:
    before = torch.get_default_dtype()

    def trained() -> Any:
        model = network(dtype)
        opt = make(model.parameters())
        train(model, opt)
        return snapshot(opt)

    expected = trained()
    try:
        torch.set_default_dtype(torch.float64)
        found = trained()
    finally:
        torch.set_default_dtype(before)
    assert_same(found, expected)


@ours
def test_more_threads_than_there_are_processors(make: Any) -> None:
    def trained(threads: int) -> Any:
        params = [parameter(200, 150)]
        opt = make(params)
        torch.set_num_threads(threads)
        steps(opt, params)
        return snapshot(opt)

    before = torch.get_num_threads()
    try:
        assert_same(trained(300), trained(1))
    finally:
        torch.set_num_threads(before)


def alive() -> int:
    gc.collect()
    return sum(type(thing) in (torch.Tensor, torch.nn.Parameter) for thing in gc.get_objects())


@pytest.mark.slow
@ours
def test_nothing_piles_up(make: Any) -> None:
    params = [parameter(30), parameter(40, seed=1)]
    opt = make(params)
    counts = []
    for step in range(30):
        fill(params, step)
        if step % 2:
            params[1].grad = None
        moved(params[0])
        opt.state[params[0]] = {key: value.clone() for key, value in opt.state.get(params[0], {}).items()}
        if step % 5 == 0:
            opt.load_state_dict(opt.state_dict())
        opt.step()
        if step in (9, 29):
            counts.append(alive())
    assert counts[0] == counts[1]


@ours
def test_a_discarded_optimizer_frees_its_state_and_its_parameters(make: Any) -> None:
    params = [parameter(30), parameter(40, seed=1)]
    opt = make(params)
    steps(opt, params)
    references = [weakref.ref(opt), *map(weakref.ref, params)]
    references += [weakref.ref(value) for p in params for value in opt.state[p].values()]
    del opt, params
    gc.collect()
    assert all(reference() is None for reference in references)


@ours
def test_parameters_that_are_taken_away_free_their_state(make: Any) -> None:
    params = [parameter(30), parameter(40, seed=1)]
    opt = make(params)
    steps(opt, params)
    references = [weakref.ref(value) for value in opt.state[params[0]].values()]
    references.append(weakref.ref(params[0]))
    del opt.state[params[0]]
    del opt.param_groups[0]["params"][0]
    del params[0]
    steps(opt, params)
    gc.collect()
    assert all(reference() is None for reference in references)


@ours
def test_old_memory_of_a_parameter_is_let_go_by_the_next_step(make: Any) -> None:
    p = parameter(30)
    opt = make([p])
    steps(opt, [p])
    old = weakref.ref(p.data.untyped_storage())
    held = p.data.untyped_storage().data_ptr()
    moved(p)
    steps(opt, [p])
    gc.collect()
    assert old() is None
    assert p.data_ptr() != held


@ours
def test_filters_are_asked_about_layers_that_take_part(make: Any) -> None:
    asked = []

    def asking(layer: Any) -> bool:
        asked.append(layer.name)
        return True

    params = [parameter(3), parameter(4, seed=1), parameter(2, seed=2)]
    opt = make([("a", params[0]), ("b", params[1]), ("c", params[2])], decay_filter=asking)
    assert asked == []
    steps(opt, params[:2], 3)
    assert sorted(set(asked)) == ["a", "b"]
    asked.clear()
    steps(opt, params[:2], 3, first=3)
    assert asked == []
    steps(opt, params, 2)
    assert sorted(set(asked)) == ["a", "b", "c"]


@ours
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_given_twice_in_a_group_is_refused(make: Any) -> None:
    p = parameter(3)
    with pytest.raises(ValueError, match="'param_1' is given twice"):
        make([p, p])
    opt, q = make([p]), parameter(2)
    with pytest.raises(ValueError, match="'param_2' is given twice"):
        opt.add_param_group({"params": [q, q]})
    assert len(opt.param_groups) == 1
