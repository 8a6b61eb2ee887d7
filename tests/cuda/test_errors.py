"""What is refused on a GPU, before anything is queued, and in what words."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import OPTIMIZERS, Gpu, GpuArray, Pair, fresh_gpu

SHAPE = (3, 4)
ONES = np.ones(SHAPE, "f4")


@pytest.fixture(name="two")
def two_gpus() -> Any:
    with fresh_gpu(devices=2) as gpu:
        yield gpu


def with_interface(array: GpuArray, **more: Any) -> GpuArray:
    array.more = more
    return array


class RequiresGrad:
    """As PyTorch's tensors do it: the interface is there, and refuses."""

    ndim = 0

    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError(
            "Can't get __cuda_array_interface__ on Variable that requires grad; use var.detach()"
        )


class OnTheHost:
    """An interface around memory that no GPU has."""

    def __init__(self) -> None:
        self.values = np.ones(SHAPE, "f4")
        self.__cuda_array_interface__ = {
            "shape": SHAPE,
            "typestr": "<f4",
            "data": (self.values.ctypes.data, False),
            "version": 3,
        }


def read_only(array: GpuArray) -> GpuArray:
    array.read_only = True
    return array


Case = tuple[Callable[[Gpu], Any], type[Exception], str]

# What neither a parameter nor a gradient may be.
ARRAYS: dict[str, Case] = {
    "two bytes": (lambda gpu: gpu.array(ONES.astype("V2")), TypeError, "must .*float32.*, got .*V2"),
    "big-endian": (lambda gpu: gpu.array(ONES.astype(">f4")), TypeError, "must .*float32.*, got .*>f4"),
    "int": (lambda gpu: gpu.array(ONES.astype("i4")), TypeError, "must .*float32.*, got .*int32"),
    "strides": (
        lambda gpu: with_interface(gpu.array(ONES), strides=(4, 12)),
        ValueError,
        r"must be C-contiguous, not strides \(4, 12\) for shape \(3, 4\)",
    ),
    "mask": (lambda gpu: with_interface(gpu.array(ONES), mask=object()), TypeError, "must not be masked"),
    "no memory": (
        lambda gpu: with_interface(gpu.array(ONES), data=(0, False)),
        TypeError,
        "has no memory of its own .*GpuArray",
    ),
    "host memory": (lambda gpu: OnTheHost(), ValueError, "belongs to no GPU"),
    "misaligned": (
        lambda gpu: gpu.array(ONES, misaligned_by=2),
        ValueError,
        "must be aligned to its item size, but lies at 0x7f",
    ),
    "requires grad": (
        lambda gpu: RequiresGrad(),
        TypeError,
        "has no accessible memory: .*requires grad.*detach",
    ),
    "list": (lambda gpu: [1.0, 2.0], TypeError, "not list"),
}
PARAMETERS: dict[str, Case] = ARRAYS | {
    "read-only": (
        lambda gpu: read_only(gpu.array(ONES)),
        ValueError,
        "is read-only and cannot be updated in place",
    ),
}
GRADIENTS: dict[str, Case] = ARRAYS | {
    "NumPy": (
        lambda gpu: ONES.copy(),
        TypeError,
        "must be an array on GPU 0, like its parameter, not a numpy.ndarray",
    ),
    "other GPU": (
        lambda gpu: gpu.array(ONES, device=1),
        ValueError,
        "must be on GPU 0, like its parameter, not on GPU 1",
    ),
    "shape": (
        lambda gpu: gpu.array(np.ones((4, 3), "f4")),
        ValueError,
        r"must have the parameter's shape \(3, 4\), got \(4, 3\)",
    ),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_what_cannot_be_a_parameter(two: Gpu, case: str) -> None:
    array, error, message = PARAMETERS[case][0](two), *PARAMETERS[case][1:]
    owned = dict(two.driver.owners)
    with pytest.raises(error, match=f"(parameter|entry|params).*w.*{message}"):
        nl.Lamb({"w": array}, 0.1)
    optimizer = nl.Lamb({"v": two.array(ONES)}, 0.1)
    with pytest.raises(error, match=f"parameter 'w' .*{message}"):
        optimizer.add_param_group({"params": [("w", array)]})
    assert list(optimizer.params) == ["v"]
    del optimizer
    assert two.driver.owners.keys() >= owned.keys()
    assert two.driver.contexts == [0]


@pytest.mark.parametrize("case", GRADIENTS)
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_what_cannot_be_a_gradient(two: Gpu, case: str, nonfinite: str) -> None:
    weights = {"v": np.ones(5), "w": ONES}
    pair = Pair(two, weights, lambda params: nl.Lamb(params, 0.1, max_grad_norm=1.0, nonfinite=nonfinite))
    good = {"v": np.full(5, 0.5), "w": ONES}
    pair.step(good)
    array, error, message = GRADIENTS[case][0](two), *GRADIENTS[case][1:]
    launched = len(two.driver.launches)
    for stream in (None, two.driver.stream()):
        with pytest.raises(error, match=f"gradient of 'w' .*{message}"):
            pair.gpu_optimizer.step({"v": two.array(np.ones(5)), "w": array}, stream)
    assert len(two.driver.launches) == launched
    assert two.driver.contexts == [0]
    pair.check()
    pair.step(good)
    pair.check()


def test_a_gradient_must_not_lie_in_a_parameter(gpu: Gpu) -> None:
    weight = gpu.array(np.ones(8, "f4"))
    optimizer = nl.Momentum({"v": gpu.array(np.ones(2, "f4")), "w": weight}, 0.1, 0.9)
    inside = with_interface(gpu.array(np.ones(2, "f4")), data=(weight.address + 8, False))
    with pytest.raises(ValueError, match="gradient of 'v' shares memory with parameter 'w'"):
        optimizer.step({"v": inside, "w": gpu.array(np.ones(8, "f4"))})
    part = with_interface(gpu.array(np.ones(2, "f4")), data=(weight.address + 8, False))
    with pytest.raises(ValueError, match="parameters 'w' and 'v' share memory"):
        nl.Momentum({"v": part, "w": weight}, 0.1, 0.9)


def test_parameters_are_all_in_one_place(two: Gpu) -> None:
    here, there, host = two.array(ONES), two.array(ONES, device=1), ONES.copy()
    empty = two.array(np.ones((0, 3), "f4"))
    mixed = "must be all on the CPU or all on one GPU, but 'h' is a NumPy array and 'g' is on a GPU"
    several = "must be on one GPU, but 'g' is on GPU 0 and 't' on GPU 1"
    for params, message in (
        ({"h": host, "g": here}, mixed),
        ({"g": here, "h": host}, mixed),
        ({"h": host, "g": empty}, mixed),
        ({"e": empty, "g": here, "t": there}, several),
    ):
        with pytest.raises(ValueError, match=message):
            nl.Lamb(params, 0.1)
    for first, second, message in (
        ({"h": host}, {"g": here}, mixed),
        ({"g": here}, {"h": host}, mixed),
        ({"g": here}, {"t": there}, several),
        ({"e": empty}, {"t": there}, "parameter 't' must be on GPU 0, like the others, not on GPU 1"),
    ):
        optimizer = nl.Lamb(first, 0.1)
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": list(second.items())})
        assert list(optimizer.params) == list(first)
        assert len(optimizer.param_groups) == 1
        optimizer.step(dict.fromkeys(first))
    assert two.driver.contexts == [0]


def test_an_optimizer_runs_on_the_gpu_of_its_parameters(two: Gpu) -> None:
    weights = {"e": np.ones((0, 2)), "w": ONES}
    pair = Pair(two, weights, lambda params: nl.Lamb(params, 0.1), device=1)
    owned = {two.driver.owners[address][0] for address in two.driver.owners}
    assert owned == {1}
    pair.gpu_optimizer.step(two.arrays(weights, device=1))
    pair.cpu.step(weights)
    pair.check()


OPTIONS: dict[str, tuple[dict[str, Any], bool, type[Exception], str]] = {
    "threads": (
        {"num_threads": 2},
        True,
        ValueError,
        "num_threads is for NumPy arrays; these parameters are on a GPU",
    ),
    "steps": ({"capture_steps": 5}, False, ValueError, "capture_steps is for arrays on a GPU"),
    "no steps": ({"capture_steps": 0}, True, ValueError, "capture_steps must be at least 1, not 0"),
    "bool": ({"capture_steps": True}, True, TypeError, "capture_steps must be an int or None, not bool"),
    "text": ({"capture_steps": "x"}, True, TypeError, "capture_steps must be an int or None, not str"),
    "float": ({"capture_steps": 5.0}, True, TypeError, "capture_steps must be an int or None, not float"),
    "nonfinite": (
        {"nonfinite": "ignore"},
        True,
        ValueError,
        "nonfinite must be one of 'propagate', 'skip', 'raise', or None, got 'ignore'",
    ),
}


@pytest.mark.parametrize("maker", ["Lamb", "Momentum"])
@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit(gpu: Gpu, maker: str, case: str) -> None:
    options, on_gpu, error, message = OPTIONS[case]
    params = {"w": gpu.array(ONES) if on_gpu else ONES.copy()}
    with pytest.raises(error, match=message):
        OPTIMIZERS[maker](params, **options)


def test_a_stream_is_for_arrays_on_a_gpu() -> None:
    optimizer = nl.Lamb([np.ones(3)], 0.1)
    with pytest.raises(ValueError, match="stream is for arrays on a GPU; these parameters are NumPy arrays"):
        optimizer.step([np.ones(3)], stream=0)
    assert optimizer.global_step == 0


def test_gradients_in_a_wrong_form(gpu: Gpu) -> None:
    optimizer = nl.Lamb(gpu.arrays({"v": ONES, "w": ONES}), 0.1)
    gradient = gpu.array(ONES)
    for gradients, error, message in (
        (gradient, TypeError, "gradients must be a sequence of arrays or a mapping.*GpuArray"),
        ([gradient], ValueError, "gradients has 1 entries for 2 parameters"),
        ({"v": gradient}, KeyError, "no gradient for parameter 'w'"),
        ({"v": gradient, "x": gradient}, KeyError, "no parameter is named 'x'"),
    ):
        with pytest.raises(error, match=message):
            optimizer.step(gradients)
    assert optimizer.global_step == 0


def test_rates_more_than_the_dtype_can_hold(gpu: Gpu) -> None:
    pair = Pair(gpu, {"w": ONES}, lambda params: nl.Lamb(params, lambda step: 10.0 ** (37 + 2 * step)))
    pair.step({"w": ONES})
    for optimizer, gradient in ((pair.cpu, ONES), (pair.gpu_optimizer, gpu.array(ONES))):
        with pytest.raises(ValueError, match=r"must be held by .*, got 1e\+39 at step 1"):
            optimizer.step([gradient])
    pair.check()
    pair.gpu_optimizer.learning_rate = 1e39
    with pytest.raises(
        ValueError, match=r"learning_rate must be held by the dtype of its parameters, got 1e\+39"
    ):
        pair.gpu_optimizer.step([gpu.array(ONES)])
    assert pair.gpu_optimizer.global_step == 1
