"""A GPU gives the CPU's bytes: weights, state and statistics, for any layout, option and value."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from tests.cuda.double import Gpu, Pair, fresh_gpu, gradients_like

SIZES = [0, 1, 3, 4, 5, 31, 127, 128, 129, 255, 256, 257, 300, 4095, 4096, 4097, 8192 + 300]
KERNELS = [(2, 1, 1), (3, 3, 3), (2, 13, 10), (1, 5000, 1), (7, 1, 2, 1), (0, 3, 3), (4, 0, 2)]
MAKERS: dict[str, Any] = {
    "Lamb": lambda params, **options: nl.Lamb(params, 0.02, **options),
    "Lamb, some adapt": lambda params, **options: nl.Lamb(
        params, 0.02, 0.8, 0.95, 1e-3, adapt_filter=lambda layer: layer.size % 2 == 0, **options
    ),
    "Momentum": lambda params, **options: nl.Momentum(params, 0.02, 0.9, loss_scale=8.0, **options),
    "Nesterov": lambda params, **options: nl.Momentum(params, 0.02, 0.9, use_nesterov=True, **options),
    "mindspore": lambda params, **options: nl.Lars(nl.Momentum(params, 0.02, 0.9, **options), 1e-3, 0.1),
    "clip": lambda params, **options: nl.Lars(
        nl.Momentum(params, 0.02, 0.9, loss_scale=3.0, use_nesterov=True, **options),
        coefficient=0.02,
        use_clip=True,
        lars_filter=lambda layer: layer.size != 4096,
    ),
    "paper": lambda params, **options: nl.Lars(nl.Momentum(params, 0.5, 0.9, **options), variant="paper"),
    "paddle": lambda params, **options: nl.Lars(
        nl.Momentum(params, 0.5, 0.0, decay_filter=lambda layer: layer.size > 5, **options), variant="paddle"
    ),
}


@st.composite
def models(draw: Any) -> dict[str, Any]:
    """A model's arrays, cut into groups, and what its steps are like."""
    groups = draw(st.integers(1, 3))
    shapes: list[tuple[int, tuple[int, ...]]] = []
    centralized = []
    for group in range(groups):
        centralizes = draw(st.booleans())
        centralized.append(centralizes)
        shape = st.sampled_from(KERNELS) if centralizes else st.sampled_from(SIZES).map(lambda n: (n,))
        if not centralizes:
            shape = st.one_of(shape, st.just(()))
        shapes += [(group, one) for one in draw(st.lists(shape, min_size=1, max_size=3))]
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = {
        f"w{k}": random.standard_normal(shape).astype(draw(st.sampled_from(["f4", "f4", "f8"])))
        for k, (_, shape) in enumerate(shapes)
    }
    options = [
        {
            "weight_decay": draw(st.sampled_from([0.0, 0.01, 0.3])),
            "grad_centralization": centralizes,
            **draw(st.sampled_from([{}, {"lr": 0.5}, {"lr": lambda step: 0.3 / (step + 1)}, {"lr": 0.0}])),
        }
        for centralizes in centralized
    ]
    return {
        "weights": weights,
        "group_of": {f"w{k}": group for k, (group, _) in enumerate(shapes)},
        "options": options,
        "random": random,
        "missing": draw(st.lists(st.sampled_from(list(weights)), max_size=2)),
        "max_grad_norm": draw(st.sampled_from([None, None, 0.5, 1e6])),
        "misaligned": draw(st.tuples(st.sampled_from([0, 8]), st.sampled_from([0, 8, 16]))),
        "one_block_at_a_time": draw(st.booleans()),
    }


def grouped(params: dict[str, Any], model: dict[str, Any]) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = [{} for _ in model["options"]]
    for name, array in params.items():
        members[model["group_of"][name]][name] = array
    groups = [
        {"params": of_group, **options} for of_group, options in zip(members, model["options"], strict=True)
    ]
    return [*groups, {"order_params": list(params)}]


@pytest.mark.parametrize("maker", MAKERS)
@settings(max_examples=6)
@given(model=models())
def test_steps_give_the_cpus_bytes(maker: str, model: dict[str, Any]) -> None:
    weights, random = model["weights"], model["random"]
    of_weights, of_gradients = model["misaligned"]
    limit = model["max_grad_norm"]
    with fresh_gpu() as gpu:
        gpu.driver.one_block_at_a_time = model["one_block_at_a_time"]
        pair = Pair(
            gpu,
            weights,
            lambda params: MAKERS[maker](grouped(params, model), max_grad_norm=limit, nonfinite="raise"),
            of_weights,
        )
        for step in range(3):
            gradients: dict[str, Any] = gradients_like(weights, random)
            if step == 1:
                gradients.update(dict.fromkeys(model["missing"]))
            pair.step(gradients, misaligned_by=of_gradients)
        pair.check()


VALUES = {
    "zeros": lambda shape, random: np.zeros(shape),
    "negative zeros": lambda shape, random: -np.zeros(shape),
    "denormal": lambda shape, random: random.standard_normal(shape) * 1e-43,
    "tiny": lambda shape, random: random.standard_normal(shape) * 1e-25,
    "huge": lambda shape, random: random.standard_normal(shape) * 1e30,
    "mixed": lambda shape, random: random.standard_normal(shape) * 10.0 ** random.integers(-44, 36, shape),
    "usual": lambda shape, random: random.standard_normal(shape),
}


@pytest.mark.parametrize("maker", ["Lamb", "Nesterov", "mindspore", "clip", "paddle"])
@pytest.mark.parametrize("of_weights", VALUES)
def test_extreme_values_give_the_cpus_bytes(gpu: Gpu, maker: str, of_weights: str) -> None:
    random = np.random.default_rng(3)
    names = [f"{kind}/{of_weights}" for kind in VALUES]
    weights = {name: VALUES[of_weights]((2, 5, 13), random).astype("f4") for name in names}
    pair = Pair(
        gpu,
        weights,
        lambda params: MAKERS[maker](
            [
                {"params": {name: params[name] for name in names[:4]}, "weight_decay": 0.1},
                {"params": {name: params[name] for name in names[4:]}, "grad_centralization": True},
            ],
            max_grad_norm=1e3 if of_weights == "usual" else None,
            nonfinite="propagate",
        ),
    )
    for _ in range(2):
        pair.step({name: VALUES[name.split("/")[0]]((2, 5, 13), random).astype("f4") for name in names})
    pair.check()


@pytest.mark.parametrize("maker", ["Lamb", "mindspore"])
def test_more_chunks_and_layers_than_lanes(gpu: Gpu, maker: str) -> None:
    """The trees over chunks and over layers go round their 128 lanes."""
    random = np.random.default_rng(5)
    weights = {"large": random.standard_normal(600_001).astype("f4")}
    weights |= {f"small{k}": random.standard_normal(1 + k % 3).astype("f4") for k in range(300)}
    pair = Pair(gpu, weights, lambda params: MAKERS[maker](params, weight_decay=0.01, max_grad_norm=0.1))
    pair.step(gradients_like(weights, random))
    pair.check()


@pytest.mark.parametrize("maker", ["Lamb", "mindspore", "Lans"])
def test_rows_that_cross_chunks_are_centralized(gpu: Gpu, maker: str) -> None:
    """Rows longer than a chunk, and rows of which a chunk's end cuts one."""
    random = np.random.default_rng(6)
    shapes = {"long": (2, 4500, 1), "short": (470, 3, 3)}
    weights = {name: random.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    make = {**MAKERS, "Lans": lambda params, **options: nl.Lans(params, 0.02, **options)}[maker]
    pair = Pair(gpu, weights, lambda params: make([{"params": params, "grad_centralization": True}]))
    pair.step(gradients_like(weights, random))
    pair.check()


def test_unequal_step_counts(gpu: Gpu) -> None:
    random = np.random.default_rng(7)
    weights = {name: random.standard_normal(40).astype("f4") for name in "abc"}
    pair = Pair(gpu, weights, lambda params: nl.Lamb(params, 0.1))
    for step in range(7):
        gradients: dict[str, Any] = gradients_like(weights, random)
        gradients["b"] = gradients["b"] if step % 2 else None
        gradients["c"] = gradients["c"] if step == 6 else None
        pair.step(gradients)
    pair.check()
    assert [layer["step"] for layer in pair.gpu_optimizer.state_dict()["layers"].values()] == [7, 3, 1]


def test_a_step_without_any_gradient_counts(gpu: Gpu) -> None:
    for maker in ("Lamb", "Momentum", "mindspore"):
        pair = Pair(
            gpu, {"w": np.ones(5)}, lambda params, maker=maker: MAKERS[maker](params, max_grad_norm=1.0)
        )
        pair.step({"w": None})
        pair.check()
        assert pair.gpu_optimizer.global_step == 1
        assert pair.gpu_optimizer({"w": None}) == (False,)


@pytest.mark.parametrize("maker", ["Lamb", "Momentum", "mindspore"])
def test_parameters_without_values(gpu: Gpu, maker: str) -> None:
    """No device is known then; a step has nothing to do, and is counted."""
    weights = {"a": np.zeros((0, 3), "f4"), "b": np.zeros((3, 0), "f8")}
    pair = Pair(gpu, weights, lambda params: MAKERS[maker](params, max_grad_norm=1.0))
    pair.step(weights)
    pair.check()
    assert pair.gpu_optimizer.global_step == 1


LANS_SIZES = [1, 127, 129, 4097]


def lans_pair(gpu: Gpu, eps: float = 1e-3, misaligned_by: int = 0) -> Pair:
    """Layers that end in the middle of a row or a chunk, one that is centralized, and one in float64."""
    random = np.random.default_rng(4)
    weights: dict[str, Any] = {f"w{n}": random.standard_normal(n).astype("f4") for n in LANS_SIZES}
    weights |= {"zero": np.zeros(5, "f4"), "wide": random.standard_normal(130)}
    weights["conv"] = random.standard_normal((3, 5, 9)).astype("f4")

    def make(params: dict[str, Any]) -> Any:
        flat = {name: array for name, array in params.items() if name != "conv"}
        conv = {"params": {"conv": params["conv"]}, "grad_centralization": True, "weight_decay": 0.0}
        return nl.Lans(
            [{"params": flat}, conv],
            0.02,
            0.8,
            0.95,
            eps,
            0.1,
            weight_norm_bounds=(0.0, 40.0),
            adapt_filter=lambda layer: layer.size != 127,
            nonfinite="skip",
        )

    return Pair(gpu, weights, make, misaligned_by)


@pytest.mark.parametrize("misaligned_by", [0, 8])
def test_lans_gives_the_cpus_bytes(gpu: Gpu, misaligned_by: int) -> None:
    pair = lans_pair(gpu, misaligned_by=misaligned_by)
    random = np.random.default_rng(5)
    for step in range(3):
        gradients: dict[str, Any] = gradients_like(pair.on_cpu, random)
        if step == 1:
            gradients["w129"] = None
            gradients["w4097"] *= np.float32(1e-42)
        pair.step(gradients)
    pair.check()
    assert all(np.isfinite(values).all() for values in pair.on_cpu.values())


def test_a_step_of_lans_that_is_not_finite_is_left_out(gpu: Gpu) -> None:
    pair = lans_pair(gpu, eps=1e-30)
    gradients = gradients_like(pair.on_cpu, np.random.default_rng(6))
    pair.step(gradients)
    gradients["w129"] = np.full(129, np.nan, "f4")
    pair.step(gradients)
    pair.check()
    assert [opt.skipped_steps for opt in pair.both] == [1, 1]
