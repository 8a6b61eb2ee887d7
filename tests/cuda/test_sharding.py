"""Ranks that share an optimizer's state on GPUs: threads that take turns on the double of the driver."""

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import Gpu
from tests.sharding.launch import finish, start
from tests.sharding.ranks import on_ranks
from tests.sharding.test_numpy import MAKES, arrays, left, take


class OnGpu:
    """An optimizer of arrays on the double, given gradients of the host."""

    def __init__(self, gpu: Gpu, make: Any, dtype: Any, **options: Any) -> None:
        self.gpu, self.arrays = gpu, gpu.arrays(arrays(1, dtype))
        self.opt = make(self.arrays, **options)
        self.params = self.opt.params

    def step(self, gradients: Any) -> None:
        self.opt.step(self.gpu.arrays(gradients))

    def left(self) -> Any:
        return left({name: array.get() for name, array in self.arrays.items()}, self.opt)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_bytes_are_those_of_one_process_on_the_cpu(gpu: Gpu, make: Any, dtype: Any) -> None:
    params = arrays(1, dtype)
    opt = make(params)
    take(opt, range(3), dtype)
    expected = left(params, opt)

    def work(comm: Any) -> Any:
        own = OnGpu(gpu, make, dtype, comm=nl.Sharding(comm, bucket_mb=0.1))
        take(own, range(3), dtype)
        return own.left()

    for found in on_ranks(2, work, turns=True):
        assert found == expected


KINDS = ["clipped", "8 bits", "no master", "lans", "momentum"]


@pytest.mark.parametrize("kind", KINDS)
def test_pytorchs_optimizers_take_the_steps_of_one_process_on_the_cpu(kind: str, mapped: Any) -> None:
    torch = pytest.importorskip("torch", reason="the peers extra is not installed")
    import numba_lamb.torch as nlt
    from tests.sharding.test_torch import KINDS as OPTIONS
    from tests.sharding.test_torch import network, same, take

    name, options = OPTIONS[kind]
    dtype = torch.bfloat16 if kind == "no master" else torch.float32
    single = network(dtype)
    opt = getattr(nlt, name)(single.named_parameters(), **options)
    take(single, opt, range(5))

    def work(comm: Any) -> None:
        model = network(dtype)
        make = getattr(nlt, f"Sharded{name}")
        given = {"process_group": comm, "bucket_mb": 0.05, **options}
        sharded = make(model.named_parameters(), **given)
        for step in range(5):
            take(model, OnDouble(mapped, sharded), range(step, step + 1))
        assert all(map(torch.equal, model.parameters(), single.parameters()))
        assert dict(sharded.stats()) == opt.stats()
        with mapped.active():
            whole = sharded.full_state_dict()
        assert same(whole["state"], opt.state_dict()["state"])
        resumed = make(model.named_parameters(), **given)
        with mapped.active():
            resumed.load_state_dict(whole)
            assert same(resumed.full_state_dict()["state"], opt.state_dict()["state"])

    on_ranks(2, work, turns=True)


class OnDouble:
    """An optimizer whose step is taken on the double."""

    def __init__(self, mapped: Any, opt: Any) -> None:
        self.mapped, self.opt = mapped, opt

    def step(self) -> None:
        with self.mapped.active():
            self.opt.step()


@pytest.mark.skipif(sys.platform != "linux", reason="gloo needs the name of an interface here")
def test_dtensors_on_processes(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the peers extra is not installed")
    finish(start(2, "../cuda/ranks_main.py", tmp_path))


SMALL = {"a": (3, 30), "b": (7,), "c": (5000,)}


def small(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SMALL.items()}


class Small:
    """Lamb over small arrays on the double, as one of several ranks."""

    def __init__(self, gpu: Gpu, comm: Any, lr: Any = 0.1, **options: Any) -> None:
        self.gpu, self.arrays = gpu, gpu.arrays(small(1))
        self.opt = nl.Lamb(self.arrays, lr, comm=nl.Sharding(comm), **options)

    def step(self, gradients: Any, stream: Any = None) -> str:
        """Take a step; return what was raised."""
        try:
            self.opt.step(self.gpu.arrays(gradients), stream)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def left(self) -> Any:
        return left({name: array.get() for name, array in self.arrays.items()}, self.opt)


def alone(**options: Any) -> tuple[dict[str, np.ndarray], nl.Lamb]:
    """The same on the CPU, in one process."""
    params = small(1)
    return params, nl.Lamb(params, 0.1, **options)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("limit", [None, 1.0])
def test_a_nan_of_one_rank_stops_all_alike(gpu: Gpu, nonfinite: Any, limit: float | None) -> None:
    options: dict[str, Any] = {"nonfinite": nonfinite, "max_grad_norm": limit}
    params, opt = alone(**options)
    bad = small(5)
    bad["c"][-1] = np.nan
    opt.step(small(4))
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError) as raised:
            opt.step(bad)
    else:
        opt.step(bad)
    opt.step(small(6))

    def work(comm: Any) -> str:
        own = Small(gpu, comm, **options)
        assert own.step(small(4)) == ""
        said = own.step(bad if comm.rank == 1 else small(5))
        assert own.step(small(6)) == ""
        assert own.left() == left(params, opt)
        assert own.opt.skipped_steps == opt.skipped_steps
        return said

    said = f"FloatingPointError: {raised.value}" if nonfinite == "raise" else ""
    assert on_ranks(2, work, turns=True) == [said] * 2


def test_a_rate_that_one_rank_refuses_stops_all(gpu: Gpu) -> None:
    def work(comm: Any) -> tuple[str, str, int]:
        own = Small(gpu, comm, gpu.array(np.float32(-1 if comm.rank else 1)), nonfinite="raise")
        before = own.left()
        said = own.step(small(4))
        assert own.left() == before
        own.opt.nonfinite = "skip"
        own.step(small(4))
        try:
            own.opt.check()
        except RuntimeError as error:
            return said, str(error), own.opt.global_step
        return said, "", own.opt.global_step

    first, second = on_ranks(2, work, turns=True)
    said = "ValueError: another rank refused the step; nothing was changed"
    assert first == (said, "1 steps changed nothing: another rank refused the step", 0)
    assert second[0].startswith("ValueError: a rate in device memory was negative")
    assert second[2] == 0


def test_ranks_that_differ_all_raise_and_go_on_once_they_agree(gpu: Gpu) -> None:
    params, opt = alone()
    for _ in range(2):
        opt.step(small(4))

    def differ(own: Small, what: str) -> dict[str, Any]:
        gradients: dict[str, Any] = small(4)
        if what == "options":
            own.opt.eps = 1e-3
        elif what == "rates":
            own.opt.learning_rate = 0.3
        elif what == "gradient":
            gradients["b"] = np.zeros(8, np.float32)
        return gradients

    def work(comm: Any) -> list[str]:
        own = Small(gpu, comm)
        assert own.step(small(4)) == ""
        said = []
        for what in ("options", "rates", "gradient"):
            said.append(own.step(differ(own, what if comm.rank else "")))
            own.opt.eps, own.opt.learning_rate = 1e-6, 0.1
        stream = gpu.driver.stream()
        if comm.rank == 1:
            gpu.driver.begin_capture(stream)
        said.append(own.step(small(4), stream))
        gpu.driver.captures.clear()
        assert own.step(small(4)) == ""
        assert own.left() == left(params, opt)
        return said

    options, rates, gradient, capture = on_ranks(2, work, turns=True)[0]
    assert options.startswith("Disagreement: options must be the same on all ranks, got another on rank 1")
    assert rates.startswith("Disagreement: learning rates and weight decays must be the same on all ranks")
    assert gradient.startswith("Disagreement: rank 1 raised ValueError: gradient of 'b' must")
    assert "a step of several ranks cannot be captured into a graph" in capture


@pytest.mark.parametrize("size", [1, 3])
def test_groups_join_gradients_have_other_dtypes_and_files_go_to_one_process(
    gpu: Gpu, size: int, tmp_path: Path
) -> None:
    file, more = tmp_path / "training.npz", np.linspace(-1, 1, 9000, dtype=np.float32)

    def gradients(step: int) -> dict[str, Any]:
        found: dict[str, Any] = small(step)
        found["b"] = None if step == 5 else found["b"].astype(ml_dtypes.bfloat16)
        found["c"] = found["c"].astype(np.float16)
        return found

    def begin(params: Any, opt: Any, wrap: Any) -> None:
        opt.step(wrap(gradients(4)))
        opt.add_param_group({"params": {"d": params["d"]}, "lr": 0.5})
        opt.step(wrap({**gradients(5), "d": more[::-1].copy()}))

    params, opt = alone()
    params["d"] = more.copy()
    begin(params, opt, lambda given: given)

    def work(comm: Any) -> None:
        own = Small(gpu, comm)
        own.arrays["d"] = gpu.array(more)
        begin(own.arrays, own.opt, gpu.arrays)
        assert own.left() == left(params, opt)
        nl.save(file, own.opt)

    on_ranks(size, work, turns=True)
    resumed = small(2)
    again = nl.Lamb(resumed, 0.1)
    again.add_param_group({"params": {"d": np.zeros_like(more)}, "lr": 0.5})
    nl.load(file, again)
    # What stats() tells is of steps since then.
    expected = {**left(params, opt), "stats": {}}
    assert left({**resumed, "d": again.params["d"]}, again) == expected

    def load(comm: Any) -> None:
        own = Small(gpu, comm)
        own.arrays["d"] = gpu.array(np.zeros_like(more))
        own.opt.add_param_group({"params": {"d": own.arrays["d"]}, "lr": 0.5})
        nl.load(file, own.opt)
        assert own.left() == expected

    on_ranks(2, load, turns=True)


def test_steps_are_not_captured_into_graphs(gpu: Gpu) -> None:
    with pytest.raises(ValueError, match="capture_steps must be None where ranks share state, got 3"):
        nl.Lamb(gpu.arrays(small(1)), 0.1, capture_steps=3, comm=nl.Sharding(None))


def test_a_model_moves_to_a_gpu_with_its_state(mapped: Any) -> None:
    torch = pytest.importorskip("torch", reason="the peers extra is not installed")
    import numba_lamb.torch as nlt
    from tests.sharding.test_torch import network, take

    single = network()
    opt = nlt.Lamb(single.named_parameters(), lr=0.01)
    take(single, opt, range(5))

    def work(comm: Any) -> None:
        model = network()
        sharded = nlt.ShardedLamb(model.named_parameters(), lr=0.01, process_group=comm)
        take(model, sharded, range(2))
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        for step in range(2, 5):
            take(model, OnDouble(mapped, sharded), range(step, step + 1))
        assert all(map(torch.equal, model.parameters(), single.parameters()))
        assert sharded.stats() == opt.stats()

    on_ranks(2, work, turns=True)
