"""How Lamb behaves towards its user: steps, calls, absent gradients, filters, rates, statistics, state."""

import copy
import gc
import pickle
import weakref
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb import checkpoint
from numba_lamb.kernels.cpu import launch
from numba_lamb.schedules import WarmUpLR
from tests.helpers import frozen, snapshot


def ones(*shape, dtype=np.float32):
    return np.ones(shape or (2,), dtype)


def model(seed=0, **shapes):
    """Random arrays by name; names that end in ``64`` are float64."""
    random = np.random.default_rng(seed)
    return {
        name: np.asarray(random.standard_normal(shape)).astype("f8" if name.endswith("64") else "f4")
        for name, shape in (shapes or {"w": (3, 5), "x": (4,)}).items()
    }


def gradients_of(params, seed=1):
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.standard_normal(w.shape)).astype(w.dtype) for name, w in params.items()}


def duplicate(params):
    return {name: w.copy() for name, w in params.items()}


# -- gradients ---------------------------------------------------------------------------------------------------

WAYS = {
    "mapping": lambda g: g,
    "mapping in another order": lambda g: dict(reversed(g.items())),
    "list": lambda g: list(g.values()),
    "tuple": lambda g: tuple(g.values()),
    "values": lambda g: g.values(),
    "generator": lambda g: (gradient for gradient in g.values()),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_gradients_by_name_and_in_order_are_the_same(way):
    params, twins = model(), model()
    opt, twin = nl.Lamb(params, 0.1), nl.Lamb(twins, 0.1)
    for seed in range(3):
        gradients = gradients_of(params, seed)
        assert opt.step(way(gradients)) is None
        assert twin(gradients) == (True, True)
    assert snapshot(opt)["state"] == snapshot(twin)["state"]
    assert frozen(params) == frozen(twins)


def test_gradients_are_only_read():
    params = model()
    gradients = gradients_of(params)
    before = frozen(gradients)
    for gradient in gradients.values():
        gradient.flags.writeable = False
    nl.Lamb(params, 0.1).step(gradients)
    assert frozen(gradients) == before


@pytest.mark.slow
def test_fresh_kept_and_exchanged_arrays_give_the_same_bits():
    shapes = {"a": (50,), "b": (50,)}
    fresh, kept, exchanged = (model(**shapes) for _ in range(3))
    by_fresh, by_kept, by_exchanged = nl.Lamb(fresh, 0.1), nl.Lamb(kept, 0.1), nl.Lamb(exchanged, 0.1)
    buffers = [ones(50), ones(50)]
    for step in range(6):
        gradients = list(gradients_of(fresh, step).values())
        by_fresh.step([gradient.copy() for gradient in gradients])
        for buffer, gradient in zip(buffers, gradients, strict=True):
            buffer[:] = gradient
        by_kept.step(buffers)
        # The same two arrays take turns in the two places.
        turn = buffers if step % 2 else buffers[::-1]
        for buffer, gradient in zip(turn, gradients, strict=True):
            buffer[:] = gradient
        by_exchanged.step(turn)
        del gradients
        gc.collect()
    assert frozen(fresh) == frozen(kept) == frozen(exchanged)


def test_an_array_that_died_is_not_taken_for_a_new_one_in_its_place():
    params, twins = model(w=(5000,)), model(w=(5000,))
    opt, twin = nl.Lamb(params, 0.1), nl.Lamb(twins, 0.1)
    identities = set()
    for step in range(20):
        gradient = gradients_of(params, step)["w"]
        twin.step([gradient.copy()])
        holder = np.empty((step + 1, 5000), np.float32)
        holder[step] = gradient
        view = holder[step]
        identities.add(id(view))
        opt.step([view])
        del view, holder
    assert len(identities) < 20
    assert frozen(params) == frozen(twins)


def test_gradients_may_overlap_each_other():
    params, twins = model(a=(6,), b=(6,), c=(2, 2)), model(a=(6,), b=(6,), c=(2, 2))
    buffer = np.linspace(-1, 1, 8, dtype=np.float32)
    views = [buffer[:6], buffer[2:], buffer[:4].reshape(2, 2)]
    nl.Lamb(params, 0.1).step(views)
    nl.Lamb(twins, 0.1).step([view.copy() for view in views])
    assert frozen(params) == frozen(twins)


def test_one_array_may_be_the_gradient_of_several():
    a, b = ones(), ones()
    gradient = np.array([0.5, -1], np.float32)
    nl.Lamb([a, b], 0.1).step([gradient, gradient])
    assert a.tolist() == b.tolist() != [1, 1]


class Tagged(np.ndarray):
    """A subclass with an attribute."""

    tag = "mine"


def with_odd_strides():
    # The stride of an axis of length 1 is never used.
    return np.lib.stride_tricks.as_strided(ones(4), (1, 4), (12345, 4))


ARRAYS = {
    "subclass": lambda: ones(4).view(Tagged),
    "part of a buffer": lambda: ones(10)[3:7],
    "from bytes": lambda: np.frombuffer(bytearray(ones(4).tobytes()), np.float32),
    "odd strides": with_odd_strides,
    "Fortran and C order": lambda: np.asfortranarray(ones(4, 1)),
    "dtype with metadata": lambda: np.ones(4, np.dtype("f4", metadata={"unit": "kg"})),
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
def test_unusual_arrays_are_updated_where_they_lie(make):
    w, gradient, plain = make(), make(), ones(4)
    gradient[...] = 0.5
    opt = nl.Lamb({"w": w, "v": plain}, 0.1)
    opt.step([gradient, np.full(4, 0.5, np.float32)])
    assert opt.params["w"] is w
    assert w.reshape(-1).tolist() == plain.tolist() != [1, 1, 1, 1]


def test_memory_maps_are_updated_in_the_file(tmp_path):
    ones(4).tofile(tmp_path / "w")
    ones(4).tofile(tmp_path / "g")
    w = np.memmap(tmp_path / "w", np.float32, "r+")
    plain = ones(4)
    nl.Lamb({"w": w, "v": plain}, 0.1).step([np.memmap(tmp_path / "g", np.float32, "r"), ones(4)])
    w.flush()
    assert np.fromfile(tmp_path / "w", np.float32).tolist() == plain.tolist() != [1, 1, 1, 1]


def test_parameters_may_be_changed_between_steps():
    params, twins = model(), model()
    opt, twin = nl.Lamb(params, 0.1), nl.Lamb(twins, 0.1)
    gradients = gradients_of(params)
    opt.step(gradients)
    params["w"][...] = twins["w"]
    params["x"][...] = twins["x"]
    state = opt.state_dict()
    opt.step(gradients)
    twin.load_state_dict(state)
    twin.step(gradients)
    assert frozen(params) == frozen(twins)


# -- absent gradients --------------------------------------------------------------------------------------------


def test_none_leaves_a_parameter_its_state_and_its_step():
    params = model(a=(4,), b64=(2, 3), c=(4,))
    opt = nl.Lamb(params, 0.1, weight_decay=0.1)
    gradients = gradients_of(params)
    assert opt(gradients) == (True, True, True)
    before = snapshot(opt)
    assert opt({**gradients, "b64": None}) == (True, False, True)
    after = snapshot(opt)
    assert after["params"]["b64"] == before["params"]["b64"]
    assert after["params"]["a"] != before["params"]["a"]
    assert after["state"]["layers"]["b64"] == before["state"]["layers"]["b64"]
    assert after["stats"]["trust_ratio/b64"] == before["stats"]["trust_ratio/b64"]
    assert after["stats"]["trust_ratio/a"] != before["stats"]["trust_ratio/a"]
    assert opt.global_step == 2
    assert [layer["step"] for layer in opt.state_dict()["layers"].values()] == [2, 1, 2]


@given(present=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6))
def test_a_parameter_steps_as_if_it_were_alone(present):
    params, twins = model(a=(7,), b=(2, 2)), model(a=(7,), b=(2, 2))
    opt = nl.Lamb(params, 0.1, weight_decay=0.1)
    alone = {name: nl.Lamb({name: w}, 0.1, weight_decay=0.1) for name, w in twins.items()}
    for step, flags in enumerate(present):
        gradients = gradients_of(params, step)
        given_now = {name: gradients[name] if flag else None for name, flag in zip("ab", flags, strict=True)}
        assert opt(given_now) == flags
        for name, gradient in given_now.items():
            if gradient is not None:
                alone[name].step([gradient])
    assert frozen(params) == frozen(twins)
    assert opt.stats() == {key: value for key, value in merged_stats(alone).items() if key in opt.stats()}
    assert opt.global_step == len(present)


def merged_stats(optimizers):
    return {key: value for opt in optimizers.values() for key, value in opt.stats().items()}


def test_a_step_without_any_gradient_counts():
    params = model()
    opt = nl.Lamb(params, [0.5, 0.25])
    before = frozen(params)
    assert opt([None, None]) == (False, False)
    assert frozen(params) == before
    assert opt.get_lr() == 0.25
    assert opt.stats() == {}


# -- shapes and dtypes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_sizes_zero_and_one(dtype):
    shapes = {"scalar": (), "one": (1,), "ones": (1, 1, 1), "none": (0,), "nothing": (3, 0, 2)}
    params = {name: np.full(shape, -2, dtype) for name, shape in shapes.items()}
    opt = nl.Lamb(params, 0.25)
    gradients = {name: np.full(shape, 0.5, dtype) for name, shape in shapes.items()}
    assert opt(gradients) == (True,) * 5
    # The direction is 1/(1 + 2e-6), the ratio twice its inverse: the weight changes by rate * |weight|.
    for name in ("scalar", "one", "ones"):
        assert params[name].item() == pytest.approx(-2.5, rel=1e-6)
        assert opt.stats()[f"trust_ratio/{name}"] == pytest.approx(2, rel=1e-5)
    for name in ("none", "nothing"):
        assert opt.stats()[f"weight_norm/{name}"] == opt.stats()[f"update_norm/{name}"] == 0
        assert opt.stats()[f"trust_ratio/{name}"] == 1
    assert [layer["step"] for layer in opt.state_dict()["layers"].values()] == [1] * 5
    assert opt({**gradients, "none": None, "scalar": None}) == (False, True, True, False, True)


def test_a_model_of_nothing_but_empty_arrays():
    opt = nl.Lamb([ones(0)], 0.1)
    assert opt([ones(0)]) == (True,)
    assert opt.global_step == 1


def test_empty_convolution_kernels_can_be_centralized():
    groups = [{"params": [ones(0, 2, 2), ones(2, 0, 2)], "grad_centralization": True}]
    assert nl.Lamb(groups, 0.1)([ones(0, 2, 2), ones(2, 0, 2)]) == (True, True)


@given(order=st.permutations(["a", "b64", "c", "d64"]), decay=st.sampled_from([0.0, 0.25]))
def test_layers_are_independent_of_company_order_and_dtype(order, decay):
    shapes = {"a": (4097,), "b64": (130,), "c": (3, 3, 3), "d64": ()}
    together, alone = model(**shapes), model(**shapes)
    opt = nl.Lamb({name: together[name] for name in order}, 0.1, weight_decay=decay)
    singles = {name: nl.Lamb({name: alone[name]}, 0.1, weight_decay=decay) for name in order}
    for seed in range(2):
        gradients = gradients_of(alone, seed)
        opt.step(gradients)
        for name, single in singles.items():
            single.step({name: gradients[name]})
    assert frozen(together) == frozen(alone)
    assert opt.stats() == merged_stats(singles)


# -- what a step does --------------------------------------------------------------------------------------------


def test_first_step_is_the_signed_direction_times_the_ratio():
    w = np.array([3.0, 4.0])
    opt = nl.Lamb({"w": w}, 0.5, eps=1e-12)
    opt.step({"w": np.array([1e-3, -1e3])})
    np.testing.assert_allclose(w, np.array([3, 4]) - 0.5 * 5 / np.sqrt(2) * np.array([1, -1]), rtol=1e-8)
    state = opt.state_dict()["layers"]["w"]
    np.testing.assert_allclose(state["m"], [1e-4, -1e2], rtol=1e-12)
    np.testing.assert_allclose(state["v"], [1e-9, 1e3], rtol=1e-12)


def test_rate_zero_moves_the_moments_alone():
    params = model()
    before = frozen(params)
    opt = nl.Lamb(params, 0)
    opt.step(gradients_of(params))
    assert frozen(params) == before
    assert all(layer["m"].all() for layer in opt.state_dict()["layers"].values())


def test_zero_gradients_from_the_start_move_nothing_without_decay():
    params = model()
    before = frozen(params)
    nl.Lamb(params, 0.5).step({name: np.zeros_like(w) for name, w in params.items()})
    assert frozen(params) == before


def test_zero_weights_take_a_step_of_ratio_one():
    w = np.zeros(3, np.float32)
    opt = nl.Lamb({"w": w}, 0.25)
    opt.step([ones(3)])
    np.testing.assert_allclose(w, -0.25, rtol=1e-5)
    assert opt.stats()["trust_ratio/w"] == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("beta1", 0.5),
        ("beta2", 0.9),
        ("eps", 0.5),
        ("weight_decay", 0.25),
        ("adapt_filter", lambda layer: False),
    ],
    ids=["beta1", "beta2", "eps", "weight_decay", "adapt_filter"],
)
def test_every_argument_changes_the_result(argument, value):
    params, twins = model(), model()
    opt, twin = nl.Lamb(params, 0.1, **{argument: value}), nl.Lamb(twins, 0.1)
    for seed in range(2):
        for optimizer in (opt, twin):
            optimizer.step(gradients_of(params, seed))
    for name, w in params.items():
        assert not np.array_equal(w, twins[name])
    if argument in ("beta1", "beta2", "eps"):
        assert getattr(opt, argument) == value


# -- filters -----------------------------------------------------------------------------------------------------


def test_decay_filter_replaces_the_rule_by_name():
    shapes = {"w": (4,), "beta": (4,)}
    filtered, grouped = model(**shapes), model(**shapes)
    opt = nl.Lamb(filtered, 0.1, weight_decay=0.25, decay_filter=lambda layer: layer.name == "beta")
    groups = [
        {"params": {"w": grouped["w"]}, "weight_decay": 0.0},
        {"params": {"beta": grouped["beta"]}, "weight_decay": 0.25},
    ]
    twin = nl.Lamb(groups, 0.1)
    for optimizer in (opt, twin):
        optimizer.step(gradients_of(filtered))
    assert frozen(filtered) == frozen(grouped)


def test_decay_filter_holds_for_groups_too():
    params, twins = model(), model()
    exempt = nl.Lamb([{"params": params, "weight_decay": 0.25}], 0.1, decay_filter=lambda layer: False)
    plain = nl.Lamb(twins, 0.1)
    for optimizer in (exempt, plain):
        optimizer.step(gradients_of(params))
    assert frozen(params) == frozen(twins)


def test_adapt_filter_keeps_the_ratio_at_one():
    params = model()
    opt = nl.Lamb(params, 0.1, adapt_filter=lambda layer: layer.ndim > 1)
    opt.step(gradients_of(params))
    stats = opt.stats()
    assert stats["trust_ratio/x"] == 1
    assert stats["trust_ratio/w"] == stats["weight_norm/w"] / stats["update_norm/w"] != 1


# -- rates -------------------------------------------------------------------------------------------------------

VALUES = [0.5, 0.125, 0.0, 0.25]

RATES = {
    "list": lambda: VALUES,
    "tuple": lambda: tuple(VALUES),
    "array": lambda: np.array(VALUES),
    "float32 array": lambda: np.array(VALUES, np.float32),
    "strided array": lambda: np.repeat(VALUES, 2)[::2],
    "iterator": lambda: iter(VALUES),
    "generator": lambda: (value for value in VALUES),
    "callable": lambda: VALUES.__getitem__,
    "returns NumPy scalars": lambda: lambda step: np.float32(VALUES[step]),
    "returns 0-d arrays": lambda: lambda step: np.array(VALUES[step]),
    "integers where they are": lambda: [0.5, 0.125, 0, 0.25],
}


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("make", RATES.values(), ids=RATES)
def test_every_form_of_a_schedule_is_the_same(make, name):
    params, twins = model(), model()
    options = {"learning_rate": 0.25, name: make()}
    opt, twin = nl.Lamb(params, **options), nl.Lamb(twins, 0.25)
    key = {"learning_rate": "lr"}.get(name, name)
    for step, value in enumerate(VALUES):
        gradients = gradients_of(params, step)
        twin.param_groups[0][key] = value
        now = opt.get_lr() if key == "lr" else opt.get_weight_decay()
        assert now == value
        assert type(now) is float
        opt.step(gradients)
        twin.step(gradients)
    assert frozen(params) == frozen(twins)


def test_a_0d_array_is_read_anew_at_each_step():
    rate = np.array(0.5, np.float32)
    opt = nl.Lamb([ones()], rate)
    assert opt.get_lr() == 0.5
    rate[...] = 0.25
    assert opt.get_lr() == 0.25
    assert opt.learning_rate is rate


def test_schedules_see_the_0_based_step_and_get_lr_has_no_effect():
    seen = []
    opt = nl.Lamb(
        [ones()], lambda step: seen.append(step) or 0.5, weight_decay=lambda step: seen.append(step) or 0
    )
    opt.step([ones()])
    opt.get_lr()
    opt.get_weight_decay()
    opt.get_lr()
    opt.step([ones()])
    assert seen == [0, 0, 1, 1, 1, 1, 1]


def test_generators_are_pulled_no_further_than_needed():
    pulled = []

    def endless():
        while True:
            pulled.append(len(pulled))
            yield 0.5

    opt = nl.Lamb([ones()], endless())
    assert pulled == []
    opt.get_lr()
    opt.get_lr()
    opt.step([ones()])
    assert pulled == [0]
    opt.step([ones()])
    assert pulled == [0, 1]


def test_a_refused_step_uses_up_no_value():
    opt = nl.Lamb([ones()], iter([0.5, 0.25]))
    with pytest.raises(ValueError, match="shape"):
        opt.step([ones(3)])
    opt.step([ones()])
    assert opt.get_lr() == 0.25


def test_schedules_of_the_package_work_everywhere():
    opt = nl.Lamb([{"params": [ones()], "lr": WarmUpLR(0.5, 2)}], 0.1, weight_decay=WarmUpLR(0.25, 2))
    seen = []
    for _ in range(3):
        seen.append((opt.get_lr(), opt.get_weight_decay()))
        opt.step([ones()])
    assert seen == [((0.0,), 0.0), ((0.25,), 0.125), ((0.5,), 0.25)]


NUMBERS = {
    "float": 0.25,
    "int": 1,
    "float64": np.float64(0.25),
    "float32": np.float32(0.25),
    "float16": np.float16(0.25),
    "int64": np.int64(1),
    "0-d int": np.array(1),
    "minus zero": -0.0,
}


@pytest.mark.parametrize("rate", NUMBERS.values(), ids=NUMBERS)
def test_any_real_number_is_a_rate(rate):
    opt = nl.Lamb([ones()], rate)
    assert type(opt.get_lr()) is float
    assert opt.get_lr() == float(rate)
    opt.learning_rate = 0.5
    opt.learning_rate = rate
    assert opt.get_lr() == float(rate)
    assert opt.learning_rate is rate


def test_assigned_rates_hold_from_the_next_step_on_where_there_is_no_own_one():
    opt = nl.Lamb([{"params": [ones()], "lr": 0.75}, {"params": [ones()]}], 0.5)
    opt.step([ones(), ones()])
    schedule = [0.5, 0.25, 0.125]
    opt.learning_rate = schedule
    assert opt.get_lr() == (0.75, 0.25)
    assert opt.learning_rate is schedule
    opt.learning_rate = lambda step: 2.0**-step
    assert opt.get_lr() == (0.75, 0.5)


def test_tables_are_read_live():
    table = [0.5]
    opt = nl.Lamb([ones()], table)
    opt.step([ones()])
    with pytest.raises(IndexError, match="table of 1 values"):
        opt.get_lr()
    table.append(0.25)
    assert opt.get_lr() == 0.25


def test_live_groups_are_the_truth():
    opt = nl.Lamb([{"params": [ones()]}, {"params": [ones()]}], 0.5, weight_decay=0.25)
    opt.param_groups[1]["lr"] = 0.125
    opt.param_groups[0]["weight_decay"] = 0.0
    assert opt.get_lr() == (0.5, 0.125)
    assert opt.get_weight_decay() == (0.0, 0.25)


def test_one_group_has_one_rate_under_two_names():
    opt = nl.Lamb([ones()], 0.5)
    opt.param_groups[0]["lr"] = 0.25
    assert opt.get_lr() == 0.25
    assert opt.learning_rate == 0.25


def test_centralization_can_be_switched_while_training():
    def conv():
        return np.arange(1, 13, dtype=np.float32).reshape(2, 2, 3)

    switched, always, gradient = conv(), conv(), conv()
    opt = nl.Lamb([{"params": {"w": switched}}], 0.1)
    opt.param_groups[0]["grad_centralization"] = True
    twin = nl.Lamb([{"params": {"w": always}, "grad_centralization": True}], 0.1)
    opt.step([gradient])
    twin.step([gradient])
    assert frozen(switched) == frozen(always)
    opt.param_groups[0]["grad_centralization"] = False
    opt.step([gradient])
    twin.step([gradient])
    assert frozen(switched) != frozen(always)


# -- non-finite gradients ----------------------------------------------------------------------------------------

BAD = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["w", "x64"])
def test_skip_leaves_everything_but_its_count(name, value):
    shapes = {"w": (3, 5000), "x64": (4,)}
    params, twins = model(**shapes), model(**shapes)
    opt, twin = nl.Lamb(params, VALUES, nonfinite="skip"), nl.Lamb(twins, VALUES)
    gradients = gradients_of(params)
    assert opt(gradients) == twin(gradients) == (True, True)
    before = snapshot(opt)
    bad = duplicate(gradients)
    bad[name].flat[-1] = value
    assert opt(bad) == (False, False)
    assert opt.step(bad) is None
    assert opt.skipped_steps == 2
    after = snapshot(opt)
    assert after["state"].pop("skipped_steps") == "2"
    assert before["state"].pop("skipped_steps") == "0"
    assert after == before
    opt.step(gradients)
    twin.step(gradients)
    assert frozen(params) == frozen(twins)
    assert opt.global_step == 2


def test_a_skipped_step_says_false_for_absent_gradients_too():
    opt = nl.Lamb([ones(), ones()], 0.1, nonfinite="skip")
    assert opt([None, np.array([np.nan, 1], np.float32)]) == (False, False)


def test_propagate_lets_the_value_through_in_its_layer_alone():
    params, twins = model(), model()
    opt, twin = nl.Lamb(params, 0.1, nonfinite="propagate"), nl.Lamb(twins, 0.1)
    gradients = gradients_of(params)
    twin.step(gradients)
    bad = duplicate(gradients)
    bad["w"][0, 0] = np.nan
    assert opt(bad) == (True, True)
    assert np.isnan(params["w"]).all()
    assert frozen(params["x"]) == frozen(twins["x"])
    assert opt.skipped_steps == 0


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
def test_finite_gradients_are_treated_alike(nonfinite):
    params, twins = model(), model()
    gradients = gradients_of(params)
    gradients["w"][0, 0] = 2.0**63
    nl.Lamb(params, 0.1, nonfinite=nonfinite)(gradients)
    nl.Lamb(twins, 0.1)(gradients)
    assert frozen(params) == frozen(twins)


# -- statistics --------------------------------------------------------------------------------------------------


def test_stats_are_norms_of_the_last_update():
    params = model(w=(3, 5000), x64=(4,))
    before = duplicate(params)
    opt = nl.Lamb(params, 0.1)
    assert opt.stats() == {}
    opt.step({"w": None, "x64": ones(4, dtype=np.float64)})
    assert set(opt.stats()) == {"trust_ratio/x64", "weight_norm/x64", "update_norm/x64"}
    opt.step(gradients_of(params))
    stats = opt.stats()
    assert all(type(value) is float for value in stats.values())
    assert stats["weight_norm/w"] == pytest.approx(np.linalg.norm(before["w"].astype("f8")), rel=1e-12)
    for name in params:
        assert stats[f"trust_ratio/{name}"] == stats[f"weight_norm/{name}"] / stats[f"update_norm/{name}"]
    moved = np.linalg.norm((before["w"] - params["w"]).astype("f8"))
    assert moved == pytest.approx(0.1 * stats["weight_norm/w"], rel=1e-4)


def test_stats_are_a_copy():
    opt = nl.Lamb({"w": ones()}, 0.1)
    opt.step([ones()])
    opt.stats()["trust_ratio/w"] = 7.0
    assert opt.stats()["trust_ratio/w"] != 7.0


# -- state -------------------------------------------------------------------------------------------------------


def trained(seed=0, **options):
    params = model(seed, w=(3, 5000), x64=(4,), none=(0,), scalar=())
    opt = nl.Lamb(params, 0.1, weight_decay=0.25, **options)
    for step in range(2):
        opt.step(gradients_of(params, step))
    return opt


def test_a_loaded_state_goes_on_to_the_bit():
    opt = trained()
    opt.step({**gradients_of(opt.params), "x64": None})
    other = nl.Lamb(duplicate(opt.params), 0.5, beta1=0.5, beta2=0.5, eps=0.5)
    other.load_state_dict(opt.state_dict())
    assert (other.beta1, other.beta2, other.eps, other.get_lr()) == (0.9, 0.999, 1e-6, 0.1)
    assert other.get_weight_decay() == 0.25
    assert other.learning_rate == 0.1
    assert snapshot(other)["state"] == snapshot(opt)["state"]
    gradients = gradients_of(opt.params, 7)
    opt.step(gradients)
    other.step(gradients)
    assert frozen(dict(opt.params)) == frozen(dict(other.params))
    assert snapshot(other)["state"] == snapshot(opt)["state"]


def test_a_state_goes_through_a_checkpoint(tmp_path):
    opt = trained()
    checkpoint.save(tmp_path / "state.npz", opt.state_dict())
    other = nl.Lamb(duplicate(opt.params), 0.5)
    other.load_state_dict(checkpoint.load(tmp_path / "state.npz"))
    assert snapshot(other)["state"] == snapshot(opt)["state"]


def test_a_state_is_a_copy_both_ways():
    opt = trained()
    state = opt.state_dict()
    before = frozen(state)
    opt.step(gradients_of(opt.params))
    assert frozen(state) == before
    opt.load_state_dict(state)
    for layer in state["layers"].values():
        layer["m"][...] = 7
    assert frozen(opt.state_dict()) == before


def test_a_state_finds_its_layers_by_name():
    opt = trained()
    other = nl.Lamb(dict(reversed(duplicate(opt.params).items())), 0.1, weight_decay=0.25)
    other.load_state_dict(opt.state_dict())
    assert other.state_dict()["layers"].keys() == opt.state_dict()["layers"].keys()
    gradients = gradients_of(opt.params, 7)
    for optimizer in (opt, other):
        optimizer.step(gradients)
    assert frozen(dict(opt.params)) == frozen(dict(other.params))


def test_schedules_stay_with_their_optimizer():
    source = nl.Lamb([{"params": {"a": ones()}, "lr": 0.5}, {"params": {"b": ones()}}], [0.1, 0.2])
    source.step([ones(), ones()])
    table = [0.75, 0.625]
    target = nl.Lamb([{"params": {"a": ones()}, "lr": 0.25}, {"params": {"b": ones()}}], table)
    target.load_state_dict(source.state_dict())
    assert target.get_lr() == (0.5, 0.625)
    assert target.param_groups[1]["lr"] is table
    assert target.learning_rate is table


def test_skipped_steps_travel_with_the_state():
    opt = nl.Lamb({"w": ones()}, 0.1, nonfinite="skip")
    opt.step([np.full(2, np.nan, np.float32)])
    other = nl.Lamb({"w": ones()}, 0.1)
    other.load_state_dict(opt.state_dict())
    assert (other.skipped_steps, other.global_step) == (1, 0)


def test_no_statistics_are_known_after_loading():
    opt = trained()
    opt.load_state_dict(opt.state_dict())
    assert opt.stats() == {}
    opt.step(gradients_of(opt.params))
    assert len(opt.stats()) == 3 * 4


def test_a_state_loads_after_groups_were_added():
    def grown():
        opt = nl.Lamb({"w": ones(3)}, 0.1)
        opt.step([ones(3)])
        opt.add_param_group({"params": {"x": ones(70, dtype=np.float64)}, "lr": 0.5})
        return opt

    opt, other = grown(), grown()
    opt.step([ones(3), np.linspace(1, 2, 70)])
    other.load_state_dict(opt.state_dict())
    assert snapshot(other)["state"] == snapshot(opt)["state"]


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
}


@pytest.mark.parametrize("duplicated", COPIES.values(), ids=COPIES)
def test_a_copy_shares_nothing_or_is_refused(duplicated):
    opt = trained()
    before = snapshot(opt)
    try:
        other = duplicated(opt)
    except TypeError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert "state_dict" in refusal
        assert snapshot(opt) == before
        return
    gradients = gradients_of(opt.params, 7)
    other.step(gradients)
    assert snapshot(opt) == before
    opt.step(gradients)
    assert snapshot(other)["params"] == snapshot(opt)["params"]
    assert snapshot(other)["state"] == snapshot(opt)["state"]


def test_parameters_outlive_the_names_the_user_gave_them():
    opt = nl.Lamb(model(w=(5000,)), 0.1)
    twins = model(w=(5000,))
    twin = nl.Lamb(twins, 0.1)
    gc.collect()
    for seed in range(3):
        opt.step(gradients_of(twins, seed))
        twin.step(gradients_of(twins, seed))
    assert frozen(dict(opt.params)) == frozen(twins)


def test_a_parameter_that_became_read_only_is_refused():
    w = ones()
    opt = nl.Lamb({"w": w}, 0.1)
    w.flags.writeable = False
    with pytest.raises(ValueError, match=r"'w'.*read-only"):
        opt.step([ones()])
    assert w.tolist() == [1, 1]


def test_optimizers_are_freed_with_their_arrays():
    released = []

    class Watched(np.ndarray):
        def __del__(self):
            released.append(self.shape)

    opt = nl.Lamb({"w": ones(11).view(Watched)}, 0.1)
    opt.step([ones(12)[1:].view(Watched)])
    gc.collect()
    assert released == [(11,)]
    del opt
    gc.collect()
    assert released == [(11,), (11,)]


class Lazy(Mapping):
    """A mapping that makes a new array whenever it is asked."""

    def __init__(self, gradients):
        self.gradients = gradients

    def __getitem__(self, name):
        return self.gradients[name].copy()

    def __iter__(self):
        return iter(self.gradients)

    def __len__(self):
        return len(self.gradients)


TEMPORARY = {
    "generator": lambda gradients: (gradient.copy() for gradient in gradients.values()),
    "lazy mapping": Lazy,
}


@pytest.mark.parametrize("temporary", TEMPORARY.values(), ids=TEMPORARY)
def test_gradients_that_nobody_else_holds_live_through_the_step(temporary, monkeypatch):
    gradients = {"w": np.linspace(-1, 1, 200_000, dtype=np.float32), "x": ones(300_000)}
    params, twins = ({name: np.ones_like(g) for name, g in gradients.items()} for _ in range(2))
    opt, twin = nl.Lamb(params, 0.1), nl.Lamb(twins, 0.1)
    alive = []
    real = launch.commit
    twin.step(gradients)
    held = opt._gradients.update

    def watched(*arguments):
        gc.collect()
        alive.append([seen() is not None for seen in references])
        real(*arguments)

    def noted(ordered):
        references.extend(map(weakref.ref, ordered))
        held(ordered)

    references = []
    monkeypatch.setattr(opt._gradients, "update", noted)
    monkeypatch.setattr(launch, "commit", watched)
    opt.step(temporary(gradients))
    assert alive == [[True, True]]
    assert not any(seen() is not None for seen in references)
    assert frozen(params) == frozen(twins)
