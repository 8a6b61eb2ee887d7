"""Ranks that share the state of NumPy's optimizers take the steps of one process, byte for byte."""

import os
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.comm import CommError
from numba_lamb.comm.alone import Alone
from numba_lamb.engine.cpu import parts
from numba_lamb.layout import CHUNK
from tests.sharding.ranks import LIMIT, on_ranks

SHAPES: dict[str, tuple[int, ...]] = {
    "embedding": (50, 300),
    "bias": (7,),
    "scalar": (),
    "conv": (8, 4, 3, 3),
    "weight": (3 * CHUNK + 77,),
    "double": (5000,),
    "empty": (0, 3),
}
OTHERS = [name for name in SHAPES if name != "conv"]


def arrays(seed: int, dtype: Any, step: float = 0.0) -> dict[str, np.ndarray]:
    """Return arrays of these shapes; with a `step` they are multiples of it, whose sums are exact."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in SHAPES.items():
        values = np.asarray(rng.standard_normal(shape))
        values = np.round(values / step) * step if step else values
        found[name] = np.asarray(values, dtype=np.float64 if name == "double" else dtype)
    return found


def grouped(params: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    return [{"params": {"conv": params["conv"]}, **options}, {"params": {n: params[n] for n in OTHERS}}]


MAKES = {
    "lamb": lambda p, **k: nl.Lamb(p, 0.01, weight_decay=0.1, **k),
    "clipped, two passes of sums": lambda p, **k: nl.Lamb(p, 0.01, max_grad_norm=1.0, variant="oneflow", **k),
    "decoupled": lambda p, **k: nl.Lamb(p, 0.01, weight_decay=0.1, decoupled_decay=True, **k),
    "centralized": lambda p, **k: nl.Lamb(grouped(p, grad_centralization=True), 0.01, **k),
    "8 bits, no master": lambda p, **k: nl.Lamb(grouped(p, moments="int8", master=None), 0.01, **k),
    "lans": lambda p, **k: nl.Lans(p, 0.01, weight_decay=0.1, **k),
    "momentum": lambda p, **k: nl.Momentum(p, 0.01, 0.9, weight_decay=0.1, nonfinite="propagate", **k),
    "lars": lambda p, **k: nl.Lars(nl.Momentum(p, 0.01, 0.9, weight_decay=0.1, **k)),
}


def take(opt: Any, steps: range, dtype: Any) -> None:
    for step in steps:
        gradients: dict[str, Any] = arrays(100 + step, dtype, 1 / 64)
        if step == 2:
            gradients["bias"] = None
        opt.step({name: gradients[name] for name in opt.params})


def first_moments(opt: Any) -> int:
    """Return the bytes of all first moments that are here."""
    return sum(bucket.state.nbytes["m"] for bucket in opt._buckets)


def left(params: dict[str, np.ndarray], opt: Any) -> dict[str, Any]:
    """Return bytes of all that a run leaves."""
    state = opt.state_dict()["layers"]
    kept = {f"{n} {key}": np.asarray(v).tobytes() for n, layer in state.items() for key, v in layer.items()}
    return {**kept, **{name: array.tobytes() for name, array in params.items()}, "stats": opt.stats()}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_bytes_are_those_of_one_process(make: Any, dtype: Any) -> None:
    params = arrays(1, dtype)
    opt = make(params)
    take(opt, range(4), dtype)
    expected = left(params, opt)

    def work(comm: Any) -> dict[str, Any]:
        own = arrays(1, dtype)
        sharded = make(own, comm=nl.Sharding(comm, bucket_mb=0.1))
        take(sharded, range(4), dtype)
        assert first_moments(sharded) <= whole / comm.size + 2 * 8 * (CHUNK + 64)
        return left(own, sharded)

    whole = first_moments(opt)
    for size in (1, 2, 3, 8):
        for found in on_ranks(size, work):
            assert found == expected


def test_resuming_on_another_number_of_ranks(tmp_path: Any) -> None:
    params, file = arrays(1, np.float32), tmp_path / "training.npz"
    opt = MAKES["lamb"](params)
    take(opt, range(4), np.float32)

    def begin(comm: Any) -> None:
        own = MAKES["lamb"](arrays(1, np.float32), comm=nl.Sharding(comm))
        take(own, range(2), np.float32)
        nl.save(file, own)

    def finish(comm: Any) -> dict[str, Any]:
        own = arrays(3, np.float32)
        resumed = MAKES["lamb"](own, comm=nl.Sharding(comm))
        nl.load(file, resumed)
        take(resumed, range(2, 4), np.float32)
        return left(own, resumed)

    on_ranks(4, begin)
    assert on_ranks(3, finish) == [left(params, opt)] * 3
    alone = arrays(3, np.float32)
    single = MAKES["lamb"](alone)
    nl.load(file, single)
    take(single, range(2, 4), np.float32)
    assert left(alone, single) == left(params, opt)


def test_gradients_are_averaged() -> None:
    def work(comm: Any) -> list[float]:
        w = np.zeros(5)
        opt = nl.Momentum({"w": w}, 1.0, 0.0, comm=comm)
        opt.step([np.full(5, 1.0 + comm.rank)])
        return w.tolist()

    assert on_ranks(4, work) == [[-2.5] * 5] * 4


def test_a_gradient_that_one_rank_lacks_is_averaged_as_zeros() -> None:
    def work(comm: Any) -> tuple[list[float], list[float], int]:
        v, w = np.zeros(3), np.zeros(3)
        opt = nl.Momentum({"v": v, "w": w}, 1.0, 0.0, comm=comm)
        opt.step([None, np.ones(3) if comm.rank == 1 else None])
        return v.tolist(), w.tolist(), opt.state_dict()["layers"]["v"]["step"]

    assert on_ranks(2, work) == [([0.0] * 3, [-0.5] * 3, 0)] * 2


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_nan_of_one_rank_stops_all_alike(nonfinite: Any) -> None:
    def work(comm: Any) -> tuple[bytes, str, int]:
        params = arrays(1, np.float32)
        opt = nl.Lamb(params, 0.1, nonfinite=nonfinite, comm=nl.Sharding(comm))
        take(opt, range(1), np.float32)
        before, said = left(params, opt), ""
        gradients = arrays(5, np.float32)
        if comm.rank == 1:
            gradients["weight"][-1] = np.nan
        try:
            opt.step(gradients)
        except FloatingPointError as error:
            said = str(error)
        assert left(params, opt) == before
        take(opt, range(1, 2), np.float32)
        return b"".join(array.tobytes() for array in params.values()), said, opt.skipped_steps

    first, *others = on_ranks(3, work)
    assert others == [first] * 2
    assert ("'weight' has 1 values" in first[1]) is (nonfinite == "raise")
    assert first[2] == (nonfinite == "skip")


def differ(what: str, opt: nl.Lamb) -> None:
    if what == "options":
        opt.eps = 1e-3
    elif what == "learning rates":
        opt.learning_rate = 0.3


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("options", "options must be the same on all ranks, got another on rank 1 than on rank 0"),
        ("learning rates", "learning rates and weight decays must be the same on all ranks"),
        (
            "gradient",
            "rank 1 raised ValueError: gradient of 'bias' must have .*nothing was changed",
        ),
    ],
)
def test_ranks_that_differ_all_raise_and_go_on_once_they_agree(what: str, said: str) -> None:
    def work(comm: Any) -> bytes:
        params = arrays(1, np.float32)
        opt = nl.Lamb(params, 0.1, comm=nl.Sharding(comm))
        before = left(params, opt)
        gradients = arrays(5, np.float32)
        own = dict(gradients)
        if comm.rank == 1:
            differ(what, opt)
            if what == "gradient":
                own["bias"] = np.zeros(8, np.float32)
        kind = ValueError if what == "gradient" and comm.rank == 1 else CommError
        with pytest.raises(kind, match="bias" if kind is ValueError else said):
            opt.step(own)
        opt.eps, opt.learning_rate = 1e-6, 0.1
        assert left(params, opt) == before
        opt.step(gradients)
        return b"".join(array.tobytes() for array in params.values())

    first, *others = on_ranks(3, work)
    assert others == [first] * 2


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"params": {"w": np.zeros(6)}}, "the layers must be the same on all ranks, got another on rank 1"),
        ({"eps": 1e-3}, "options must be the same on all ranks, got another on rank 1 than on rank 0"),
        ({"beta1": 2.0}, r"rank 1 raised ValueError: beta1 must be .*; nothing was changed"),
    ],
)
def test_ranks_that_make_other_optimizers_all_raise(other: dict[str, Any], said: str) -> None:
    def work(comm: Any) -> None:
        given: dict[str, Any] = {"params": {"w": np.zeros(5)}, "learning_rate": 0.1, "comm": comm}
        kind = ValueError if comm.rank == 1 and "beta1" in other else CommError
        with pytest.raises(kind, match=said if kind is CommError else "beta1"):
            nl.Lamb(**{**given, **(other if comm.rank == 1 else {})})

    on_ranks(2, work)


def test_ranks_to_which_other_groups_are_added_all_raise() -> None:
    def work(comm: Any) -> None:
        w = np.zeros(5)
        opt = nl.Lamb({"w": w}, 0.1, comm=comm)
        if comm.rank == 1:
            opt.add_param_group({"params": {"v": np.zeros(2)}})
        said = "the layers must be the same on all ranks, got another on rank 1"
        with pytest.raises(CommError, match=said):
            opt.step([np.ones_like(array) for array in opt.params.values()])

    on_ranks(2, work)


def test_a_rank_that_is_gone_leaves_the_others_with_an_error() -> None:
    is_here = threading.Event()

    def work(comm: Any) -> str:
        params = {"w": np.ones(3)}
        opt = nl.Lamb(params, 0.1, comm=comm)
        state = opt.state_dict()
        if comm.rank == 1:
            assert is_here.wait(LIMIT)
            comm._meeting.barrier.abort()
            return ""
        is_here.set()
        with pytest.raises(CommError, match="a rank is gone"):
            opt.step([np.ones(3)])
        # What became of the step on the other ranks is not known.
        for use in (lambda: opt.step([np.ones(3)]), opt.state_dict, lambda: opt.load_state_dict(state)):
            with pytest.raises(CommError, match="load a checkpoint into a new optimizer"):
                use()
        return "raised"

    assert on_ranks(2, work) == ["raised", ""]


def test_state_is_a_part_of_each_rank() -> None:
    def work(comm: Any) -> int:
        opt = nl.Lamb({"w": np.ones((1000, 1000), np.float32)}, 0.1, comm=comm)
        return sum(array.nbytes for array in opt._buckets[0]._state.values())

    (whole,) = on_ranks(1, work)
    for size in (2, 4, 8):
        assert max(on_ranks(size, work)) <= whole / size + 2 * 4 * (CHUNK + 64)


def test_centralization_needs_whole_layers_from_the_start() -> None:
    def work(comm: Any) -> None:
        opt = nl.Lamb({"w": np.ones((64, 64, 9), np.float32)}, 0.1, comm=comm)
        with pytest.raises(ValueError, match="must be False for 'w', which lies on several ranks, got True"):
            opt.grad_centralization = True

    on_ranks(2, work)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"bucket_mb": 0}, "bucket_mb must be a finite number > 0, got 0"),
        ({"timeout": float("inf")}, "timeout must be a finite number > 0, got inf"),
    ],
)
def test_arguments_are_checked(arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        nl.Sharding(None, **arguments)


def test_what_is_no_communicator_is_refused() -> None:
    with pytest.raises(TypeError, match="comm must be a communicator of mpi4py, a Sharding or None, got a"):
        nl.Lamb({"w": np.ones(3)}, 0.1, comm=4)


def test_a_containers_quota_is_shared_by_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Alone):
        sharing = 2

    monkeypatch.setattr(parts, "usable_cpus", lambda: 64)
    monkeypatch.setattr(parts, "cpu_quota", lambda: 4)
    monkeypatch.setattr(parts.launch, "thread_count", lambda threads: 4)
    assert nl.Lamb({"w": np.ones(3)}, 0.1, comm=Two())._backend._num_threads == 2


def test_threads_follow_the_ranks_on_the_same_cpus() -> None:
    class Crowded(Alone):
        sharing = 1000

    opt = nl.Lamb({"w": np.ones(3)}, 0.1, comm=Crowded())
    assert opt._backend._num_threads == 1
    if len(os.sched_getaffinity(0)) > 1:
        assert nl.Lamb({"w": np.ones(3)}, 0.1, num_threads=2, comm=Crowded())._backend._num_threads == 2


def test_a_group_that_was_refused_leaves_nothing() -> None:
    def refuse(layer: Any) -> bool:
        raise RuntimeError("no")

    opt = nl.Lamb({"w": np.ones(10, np.float32)}, 0.1, comm=nl.Sharding(None))
    with pytest.raises(RuntimeError, match="no"):
        opt.add_param_group({"params": {"A": np.ones(2_000_000, np.float32)}, "decay_filter": refuse})
    opt.add_param_group({"params": {"A": np.ones(1000, np.float32)}})
    opt.step({"w": np.ones(10, np.float32), "A": np.ones(1000, np.float32)})


def test_an_option_that_one_rank_refuses_is_told_to_all() -> None:
    def work(comm: Any) -> None:
        with pytest.raises(CommError, match="bucket_mb must be the same on all ranks"):
            nl.Lamb({"w": np.ones(3)}, 0.1, comm=nl.Sharding(comm, bucket_mb=1.0 + comm.rank))
        opt = nl.Lamb({"w": np.ones(3)}, 0.1, comm=comm)
        if comm.rank:
            opt.param_groups[0]["beta1"] = 2.0
        with pytest.raises(ValueError if comm.rank else CommError, match="beta1 of group 0 must be"):
            opt.step([np.ones(3)])
        opt.param_groups[0]["beta1"] = 0.9
        opt.step([np.ones(3)])

    on_ranks(2, work)
