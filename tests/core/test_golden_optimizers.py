"""Trajectories of MindSpore and Paddle, replayed. Every file of tests/golden is used here or listed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.helpers import GOLDEN, float32, golden_arrays, golden_json, rate_of, relative_to_largest

RECORDS = {record["name"]: record for record in golden_json("optimizers.json")}
PADDLE = {record["name"]: record for record in golden_json("paddle.json")}

NOT_REPLAYED = {
    "lamb_fp16": "its moments are float16, which ours never are: a test of its own",
    "lamb_schedule_legacy": "only the r1 column; its release added 1 to the step twice under a schedule",
}
"""Golden files that record something this package does not do, with the reason."""

OTHER_ARRAYS = {
    # Centralized here as every convolution kernel; the source leaves it alone (3 input channels, not 16).
    "lamb_groups_static": {"conv2.weight"},
    "lamb_groups_mixed_order": {"conv2.weight"},
    "momentum_groups": {"conv2.weight"},
    "lars_groups": {"conv2.weight"},
}
"""Arrays that differ on purpose, in files whose other arrays agree."""


def replayed(kind: str) -> list[str]:
    return [name for name, record in RECORDS.items() if record["opt"] == kind and name not in NOT_REPLAYED]


def parameters_of(record: dict[str, Any], data: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Any]:
    """The parameter arrays, and what is passed to the optimizer (groups where the record has them)."""
    hyper = record["hyper"]
    arrays = {name: data[f"init/{name}"].copy() for name in record["shapes"]}
    if "groups" not in hyper:
        return arrays, {name: arrays[name] for name in record["order"]}
    groups = []
    for given in hyper["groups"]:
        group = {key: value for key, value in given.items() if key not in ("params", "order_params", "lr")}
        if "params" in given:
            group["params"] = [(name, arrays[name]) for name in given["params"]]
        if "order_params" in given:
            group["order_params"] = list(given["order_params"])
        if "lr" in given:
            group["lr"] = rate_of(given["lr"])
        groups.append(group)
    return arrays, groups


def steps_of(
    record: dict[str, Any], data: dict[str, np.ndarray]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for step in range(record["hyper"]["steps"]):
        yield step, {name: data[f"grad/{name}"][step] for name in record["order"]}


def compare(
    record: dict[str, Any], found: dict[str, np.ndarray], data: dict[str, np.ndarray], key: str
) -> None:
    for name in record["order"]:
        if name not in OTHER_ARRAYS.get(record["name"], ()):
            assert relative_to_largest(found[name], data[f"{key}/{name}"]) <= 1e-6, name


def build_lamb(record: dict[str, Any], params: Any, **extra: Any) -> nl.Lamb:
    hyper = record["hyper"]
    # The source keeps hyper-parameters in float32.
    numbers = {name: float32(hyper.get(name, value)) for name, value in LAMB_DEFAULTS.items()}
    return nl.Lamb(params, rate_of(hyper["lr"]), **numbers, weight_decay=rate_of(hyper["wd"]), **extra)


LAMB_DEFAULTS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6}


@pytest.mark.parametrize("name", replayed("Lamb"))
def test_lamb_follows_mindspore(name: str) -> None:
    record = RECORDS[name]
    data = golden_arrays(f"{name}.npz")
    arrays, params = parameters_of(record, data)
    opt = build_lamb(record, params)
    assert list(opt.params) == record["order"]
    for step, gradients in steps_of(record, data):
        opt.step(gradients)
        ratios = [opt.stats()[f"trust_ratio/{layer}"] for layer in record["order"]]
        compared = [k for k, layer in enumerate(record["order"]) if layer not in OTHER_ARRAYS.get(name, ())]
        np.testing.assert_allclose(
            np.array(ratios)[compared],
            data["ascend/ratio"][step][compared],
            rtol=2e-5,
            err_msg=f"step {step}",
        )
        compare(
            record, arrays, {k: v[step] for k, v in data.items() if k.startswith("ascend/w/")}, "ascend/w"
        )
    state = opt.state_dict()["layers"]
    for moment in ("m", "v"):
        compare(record, {layer: state[layer][moment] for layer in state}, data, f"ascend/{moment}")
    assert opt.global_step == data["ascend/global_step"][0]


def test_float16_with_a_master_stays_near_to_mindspores_rounded_steps() -> None:
    # The source keeps weights and moments in float16, and rounds both in every step; ours have masters. Each of
    # its 8 steps is off by half a unit, 2^-11 of a layer's largest, in no common direction.
    record, data = RECORDS["lamb_fp16"], golden_arrays("lamb_fp16.npz")
    arrays, params = parameters_of(record, data)
    opt = build_lamb(record, params)
    for _, gradients in steps_of(record, data):
        opt.step(gradients)
    for name, layer in opt.state_dict()["layers"].items():
        source = data[f"ascend/w/{name}"][-1]
        assert arrays[name].dtype == source.dtype == np.float16
        assert relative_to_largest(layer["master"], source.astype(np.float64)) <= 2.0**-9, name
    ratios = [opt.stats()[f"trust_ratio/{layer}"] for layer in record["order"]]
    np.testing.assert_allclose(ratios, data["ascend/ratio"][-1], rtol=2.0**-10)


def momentum_of(record: dict[str, Any], params: Any) -> nl.Momentum:
    hyper = record["hyper"]
    decay = rate_of(hyper["wd"])
    if record["name"] == "lars_dynamic_wd":
        # The source advances its counter twice a step here; s(2t) shows the same values.
        schedule = decay
        decay = lambda step: schedule(2 * step)  # noqa: E731
    return nl.Momentum(
        params,
        rate_of(hyper["lr"]),
        hyper["momentum"],
        weight_decay=decay,
        loss_scale=hyper.get("loss_scale", 1.0),
        use_nesterov=hyper.get("nesterov", False),
    )


LARS_FILTERS = {"all": lambda layer: True, "none": lambda layer: False, None: None}


@pytest.mark.parametrize("name", [*replayed("Momentum"), *replayed("LARS")])
def test_momentum_and_lars_follow_mindspore(name: str) -> None:
    record = RECORDS[name]
    hyper = record["hyper"]
    data = golden_arrays(f"{name}.npz")
    arrays, params = parameters_of(record, data)
    opt = momentum_of(record, params)
    if record["opt"] == "LARS":
        opt = nl.Lars(
            opt,
            epsilon=hyper.get("epsilon", 1e-5),
            coefficient=hyper.get("coefficient", 1e-3),
            use_clip=hyper.get("use_clip", False),
            lars_filter=LARS_FILTERS[hyper.get("filter")],
        )
    assert list(opt.params) == record["order"]
    key = hyper["impls"][0]
    for step, gradients in steps_of(record, data):
        rates = opt.get_lr()
        expected = data[f"{key}/lr"][step]
        np.testing.assert_allclose(np.broadcast_to(rates, expected.shape), expected, rtol=2e-6, atol=1.3e-7)
        opt.step(gradients)
        compare(
            record, arrays, {k: v[step] for k, v in data.items() if k.startswith(f"{key}/w/")}, f"{key}/w"
        )
    state = opt.state_dict()["layers"]
    compare(record, {layer: state[layer]["m"] for layer in state}, data, f"{key}/m")


def paddle_names(kind: str) -> list[str]:
    return [name for name, record in PADDLE.items() if record["kind"] == kind and name not in NOT_REPLAYED]


@pytest.mark.parametrize("name", paddle_names("Lamb"))
def test_lamb_follows_paddle(name: str) -> None:
    record = PADDLE[name]
    hyper = record["hyper"]
    data = golden_arrays(record["file"])
    dtype = np.dtype(record["dtype"])
    names = [key.removeprefix("init/") for key in data if key.startswith("init/")]
    arrays = {key: data[f"init/{key}"].astype(dtype) for key in names}
    excluded = hyper.get("exclude", [])

    def decays(layer: nl.Layer) -> bool:
        return not any(part in layer.name for part in excluded)

    # Paddle adapts a layer only where it decays it, unless told otherwise.
    always = hyper.get("always_adapt", False)
    opt = nl.Lamb(
        arrays,
        hyper["learning_rate"],
        beta1=float32(hyper.get("beta1", 0.9)),
        beta2=float32(hyper.get("beta2", 0.999)),
        eps=float32(hyper.get("epsilon", 1e-6)),
        weight_decay=float32(hyper["lamb_weight_decay"]),
        decay_filter=decays,
        adapt_filter=lambda layer: always or (decays(layer) and hyper["lamb_weight_decay"] > 0),
    )
    for step in range(12):
        opt.step({key: data[f"grad/{key}"][step].astype(dtype) for key in names})
        for key in names:
            # Where the ratio is 1, Paddle's running powers of a rounded beta show.
            limit = 1e-5 if key == "zero.weight" or not always else 1e-7 if dtype == np.float64 else 1e-6
            assert relative_to_largest(arrays[key], data[f"w/{key}"][step]) <= limit, (key, step)


@pytest.mark.parametrize("name", paddle_names("Momentum"))
def test_momentum_follows_paddle(name: str) -> None:
    record = PADDLE[name]
    hyper = record["hyper"]
    data = golden_arrays(record["file"])
    dtype = np.dtype(record["dtype"])
    names = [key.removeprefix("init/") for key in data if key.startswith("init/")]
    arrays = {key: data[f"init/{key}"].astype(dtype) for key in names}
    opt = nl.Momentum(
        arrays,
        hyper["learning_rate"],
        float32(hyper["momentum"]),
        weight_decay=float32(hyper.get("weight_decay", 0.0)),
        use_nesterov=hyper.get("use_nesterov", False),
        decay_filter=lambda layer: True,
    )
    for step in range(12):
        opt.step({key: data[f"grad/{key}"][step].astype(dtype) for key in names})
        for key in names:
            limit = 1e-14 if dtype == np.float64 else 1e-6
            assert relative_to_largest(arrays[key], data[f"w/{key}"][step]) <= limit, (key, step)


@pytest.mark.parametrize("name", paddle_names("Lars"))
def test_lars_follows_paddle(name: str) -> None:
    hyper = PADDLE[name]["hyper"]
    data = golden_arrays(f"{name}.npz")
    names = [key.removeprefix("init/") for key in data if key.startswith("init/")]
    arrays = {key: data[f"init/{key}"].copy() for key in names}
    excluded = hyper.get("exclude", [])
    opt = nl.Lars(
        nl.Momentum(
            arrays,
            hyper["learning_rate"],
            hyper["momentum"],
            weight_decay=hyper["lars_weight_decay"],
            decay_filter=lambda layer: True,
        ),
        coefficient=hyper["lars_coeff"],
        epsilon=hyper.get("epsilon", 0.0),
        lars_filter=lambda layer: not any(part in layer.name for part in excluded),
        variant="paddle",
    )
    for step in range(12):
        opt.step({key: data[f"grad/{key}"][step] for key in names})
        for key in names:
            assert relative_to_largest(arrays[key], data[f"w/{key}"][step]) <= 1e-6, (key, step)


def test_every_golden_file_is_replayed_or_listed() -> None:
    replayed_files = {*RECORDS, *PADDLE}
    assert {path.stem for path in GOLDEN.glob("*.npz")} == replayed_files
    assert set(NOT_REPLAYED) <= replayed_files
