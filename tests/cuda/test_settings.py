"""Settings of each layer's own give the CPU's bytes on a GPU, whatever they are and however they are mixed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.kernels import columns
from numba_lamb.numerics import rules
from tests.cuda.double import Gpu, Pair, fresh_gpu, gradients_like
from tests.cuda.gpu_settings import choose_for_lamb, choose_for_lars, seeded, with_settings
from tests.cuda.test_bits import grouped, models

MAKERS: dict[str, Any] = {
    "Lamb": (nl.Lamb, choose_for_lamb, {}),
    "Lars": (nl.Momentum, choose_for_lars, {"momentum": 0.9, "loss_scale": 3.0}),
}


@pytest.mark.parametrize("maker", MAKERS)
@settings(max_examples=12)
@given(model=models(), seed=st.integers(0, 2**32), spoil=st.booleans())
def test_settings_of_layers_give_the_cpus_bytes(
    maker: str, model: dict[str, Any], seed: int, spoil: bool
) -> None:
    base, write, options = MAKERS[maker]
    made = with_settings(base, seeded(write, seed))
    weights, random = model["weights"], model["random"]
    names = list(weights)
    weights[names[seed % len(names)]][...] = 0
    of_weights, of_gradients = model["misaligned"]
    with fresh_gpu() as gpu:
        gpu.driver.one_block_at_a_time = model["one_block_at_a_time"]
        pair = Pair(
            gpu,
            weights,
            lambda params: made(grouped(params, model), 0.02, nonfinite="skip", **options),
            of_weights,
        )
        for step in range(4):
            gradients: dict[str, Any] = gradients_like(weights, random)
            gradients[names[(seed + 1) % len(names)]][...] = 0
            if step == 1:
                gradients.update(dict.fromkeys(model["missing"]))
            spoiled = gradients[names[seed % len(names)]]
            if step == 2 and spoil and spoiled is not None and spoiled.size:
                spoiled.reshape(-1)[0] = np.nan
            pair.step(gradients, misaligned_by=of_gradients)
        pair.check()
        assert pair.gpu_optimizer.skipped_steps == pair.cpu.skipped_steps


def one_by_one(column: int, values: list[float]) -> Callable[[Any], None]:
    """Give each layer one of `values` in turn."""

    def write(part: Any) -> None:
        count = len(part.layers)
        part.hyper64[:, column] = np.resize(np.array(values, dtype=float), count)

    return write


SHAPES = {"a": ((9000,), "f4"), "b": ((130,), "f8"), "c": ((3, 7), "f4"), "d": ((5,), "f8")}
SPOILED = [("a", 0), ("a", 8999), ("b", 129), ("c", 20), ("d", 4)]


def weights_of(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: random.standard_normal(shape).astype(dtype) for name, (shape, dtype) in SHAPES.items()}


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_only_layers_that_must_be_finite_are_looked_at(gpu: Gpu, nonfinite: str, limit: float | None) -> None:
    """The first layer of each dtype must be finite, the second need not; and the raised text is the CPU's."""
    random = np.random.default_rng(1)
    made = with_settings(nl.Momentum, one_by_one(columns.CHECKED, [1, 0]))
    for name, place in SPOILED:
        pair = Pair(
            gpu,
            weights_of(random),
            lambda params: made(params, 0.1, 0.9, nonfinite=nonfinite, max_grad_norm=limit),
        )
        gradients = gradients_like(pair.on_cpu, random)
        gradients[name].reshape(-1)[place] = np.inf
        stopped = name in "ab" or limit is not None
        if nonfinite == "raise" and stopped:
            with pytest.raises(FloatingPointError) as on_cpu:
                pair.cpu.step(gradients)
            with pytest.raises(FloatingPointError) as on_gpu:
                pair.gpu_optimizer.step(gpu.arrays(gradients))
            assert str(on_gpu.value) == str(on_cpu.value)
        else:
            pair.step(gradients)
        pair.check()
        assert pair.gpu_optimizer.global_step == (not stopped)
        pair.step(gradients_like(pair.on_cpu, random))
        pair.check()


@pytest.mark.parametrize("clips", ["f4", "f8"])
@pytest.mark.parametrize("checks", ["f4", "f8"])
def test_a_norm_stops_a_step_only_where_layers_beside_it_must_be_finite(
    gpu: Gpu, clips: str, checks: str
) -> None:
    """One dtype is clipped, and one must be finite; they may be the same."""
    random = np.random.default_rng(2)

    def write(part: Any) -> None:
        part.hyper64[:, columns.MAX_GRAD_NORM] = part.dtype == np.dtype(clips)
        part.hyper64[:, columns.CHECKED] = part.dtype == np.dtype(checks)

    made = with_settings(nl.Momentum, write)
    pair = Pair(gpu, weights_of(random), lambda params: made(params, 0.1, 0.9, nonfinite="skip"))
    pair.step(gradients_like(pair.on_cpu, random))
    gradients = gradients_like(pair.on_cpu, random)
    name = {"f4": "a", "f8": "b"}[clips]
    gradients[name][1] = np.nan
    pair.step(gradients)
    pair.check()
    assert pair.gpu_optimizer.skipped_steps == (clips == checks)


@pytest.mark.parametrize(
    ("kernel", "column", "value", "dtype"),
    [
        *(("decay_weights", columns.DECOUPLED, 1, dtype) for dtype in ("f4", "f8", None)),
        ("lamb_other_norm", columns.NORM_OF, rules.EPS_IN_ROOT, "f4"),
        ("lamb_other_norm", columns.NORM_OF, rules.UNDECAYED, "f8"),
    ],
)
def test_a_pass_is_taken_only_where_a_layer_asks_for_it(
    gpu: Gpu, kernel: str, column: int, value: int, dtype: str | None
) -> None:
    """A part without such a layer has no launch for it; a step that is stopped decays nothing."""
    random = np.random.default_rng(3)

    def write(part: Any) -> None:
        part.hyper64[0, column] = value * (dtype is not None and part.dtype == np.dtype(dtype))

    made = with_settings(nl.Lamb, write)
    pair = Pair(gpu, weights_of(random), lambda params: made(params, 0.1, weight_decay=0.3, nonfinite="skip"))
    for bad in (False, True, False):
        gradients = gradients_like(pair.on_cpu, random)
        if bad:
            gradients["d"][0] = np.nan
        pair.step(gradients)
    pair.check()
    assert gpu.driver.launches.count(kernel) == 3 * (dtype is not None)


@pytest.mark.parametrize("norm_of", [rules.DIRECTION, rules.EPS_IN_ROOT])
def test_an_eps_of_zero_leaves_no_nan_past_the_end_of_a_layer(gpu: Gpu, norm_of: int) -> None:
    random = np.random.default_rng(5)

    def write(part: Any) -> None:
        part.hyper[:, columns.EPS] = 0
        part.hyper64[:, columns.NORM_OF] = norm_of

    made = with_settings(nl.Lamb, write)
    weights = {name: random.standard_normal(size).astype("f4") for name, size in (("a", 5), ("b", 130))}
    pair = Pair(gpu, weights, lambda params: made(params, 0.1, weight_decay=0.2))
    pair.step(gradients_like(pair.on_cpu, random))
    pair.check()
    assert all(np.isfinite(w).all() for w in pair.on_cpu.values())


def test_settings_that_change_hold_from_the_next_step(gpu: Gpu) -> None:
    random = np.random.default_rng(4)
    pair = Pair(gpu, weights_of(random), lambda params: nl.Lamb(params, 0.1, weight_decay=0.2))
    for step in range(6):
        for optimizer in pair.both:
            for part in optimizer._buckets:
                choose_for_lamb(part, np.random.default_rng([step, part.dtype.itemsize]))
                part.hyper[:, columns.RESCALE] = part.hyper64[:, columns.SIGN]
                part.refresh_flags()
        pair.cpu._backend.columns_changed()
        pair.step(gradients_like(pair.on_cpu, random))
        if step % 2:
            pair.check()
