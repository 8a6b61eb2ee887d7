"""What may be given as parameters and groups, and what order, names and options come of it."""

from collections import OrderedDict
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numba_lamb as nl
from tests.helpers import frozen, snapshot


def ones(*shape, dtype=np.float32):
    return np.ones(shape or (2,), dtype)


A, B = ones(3), ones(2, 2)
NAMED = {"a": A, "b": B}

FORMS = {
    "mapping": NAMED,
    "ordered mapping": OrderedDict(NAMED),
    "mapping proxy": MappingProxyType(NAMED),
    "pairs": [("a", A), ("b", B)],
    "tuple of pairs": (("a", A), ("b", B)),
    "items": NAMED.items(),
    "group of a mapping": [{"params": NAMED}],
    "group of pairs": [{"params": [("a", A), ("b", B)]}],
    "two groups": [{"params": {"a": A}}, {"params": [("b", B)]}],
}


@pytest.mark.parametrize("params", FORMS.values(), ids=FORMS)
def test_forms_keep_names_order_and_arrays(params):
    opt = nl.Lamb(params, 0.1)
    assert list(opt.params) == ["a", "b"]
    assert opt.params["a"] is A
    assert opt.params["b"] is B
    assert [layer.shape for layer in opt.layout.layers] == [(3,), (2, 2)]


@pytest.mark.parametrize(
    "make",
    [iter, tuple, list, lambda pairs: (pair for pair in pairs), lambda pairs: [{"params": iter(pairs)}]],
    ids=["iterator", "tuple", "list", "generator", "iterator in a group"],
)
def test_one_pass_iterables_are_read_once(make):
    assert list(nl.Lamb(make([("a", A), ("b", B)]), 0.1).params) == ["a", "b"]


def test_arrays_without_names_are_numbered_over_all_groups():
    opt = nl.Lamb([{"params": [ones(), ("named", ones())]}, {"params": [ones()]}], 0.1)
    assert list(opt.params) == ["param_0", "named", "param_2"]
    opt.add_param_group({"params": (ones() for _ in range(2))})
    assert list(opt.params) == ["param_0", "named", "param_2", "param_3", "param_4"]


def test_params_cannot_be_changed_through_the_mapping():
    opt = nl.Lamb(NAMED, 0.1)
    with pytest.raises(TypeError):
        opt.params["a"] = ones(3)


def test_group_options_reach_their_parameters_only():
    opt = nl.Lamb(
        [
            {"params": {"a": ones(), "b": ones()}, "lr": 0.5},
            {"params": {"c": ones()}, "weight_decay": 0.25},
            {"params": {"d": ones()}, "lr": [0.75, 0.0], "weight_decay": lambda step: 2.0 + step},
        ],
        learning_rate=0.125,
        weight_decay=0.0625,
    )
    assert opt.get_lr() == (0.5, 0.5, 0.125, 0.75)
    assert opt.get_weight_decay() == (0.0625, 0.0625, 0.25, 2.0)
    opt.step([ones() for _ in range(4)])
    assert opt.get_lr() == (0.5, 0.5, 0.125, 0.0)
    assert opt.get_weight_decay() == (0.0625, 0.0625, 0.25, 3.0)
    assert [group["lr"] for group in opt.param_groups[:2]] == [0.5, 0.125]
    assert [len(group["params"]) for group in opt.param_groups] == [2, 1, 1]


def test_the_dicts_that_were_given_are_not_touched():
    group = {"params": (w for w in [ones()]), "lr": 0.5}
    generator = group["params"]
    opt = nl.Lamb([group], 0.1)
    opt.param_groups[0]["lr"] = 0.25
    assert group == {"params": generator, "lr": 0.5}


DECAYED_BY_NAME = {
    "weight": True,
    "bias": True,
    "LayerNorm.weight": True,
    "Gamma": True,
    "BETA": True,
    "gamma": False,
    "layer.beta": False,
    "alphabeta": False,
    "gammatron.weight": False,
}


@pytest.mark.parametrize(("name", "decayed"), DECAYED_BY_NAME.items(), ids=DECAYED_BY_NAME)
@pytest.mark.parametrize("grouped", [False, True], ids=["no groups", "a group"])
def test_the_rule_by_name_holds_without_groups_alone(name, decayed, grouped):
    w = ones()
    params = {name: w}
    opt = nl.Lamb([{"params": params}] if grouped else params, 0.5, weight_decay=0.125)
    opt.step([np.zeros(2, np.float32)])
    # With a zero gradient, u is the decay alone, so its ratio is 1/decay and the step is rate * w.
    assert w.tolist() == ([0.5, 0.5] if decayed or grouped else [1.0, 1.0])


def test_filters_get_the_layer_with_its_group():
    seen = []
    nl.Lamb(
        [{"params": {"a": ones(2, 3)}}, {"params": {"b": ones(dtype=np.float64)}}],
        0.1,
        decay_filter=lambda layer: (
            seen.append((layer.name, layer.shape, layer.dtype.str, layer.group)) or True
        ),
    )
    assert seen == [("a", (2, 3), "<f4", 0), ("b", (2,), "<f8", 1)]


# -- order_params ------------------------------------------------------------------------------------------------


def three():
    arrays = {
        name: np.linspace(1, 2, size, dtype=np.float32) for name, size in (("a", 2), ("b", 3), ("c", 4))
    }
    groups = [
        {"params": {"a": arrays["a"], "b": arrays["b"]}, "lr": 0.5},
        {"params": {"c": arrays["c"]}, "weight_decay": 0.25},
    ]
    return arrays, groups


ENTRIES = {
    "names": lambda arrays, order: list(order),
    "arrays": lambda arrays, order: [arrays[name] for name in order],
    "pairs": lambda arrays, order: [(name, arrays[name]) for name in order],
    "mapping": lambda arrays, order: {name: arrays[name] for name in order},
    "iterator of names": lambda arrays, order: iter(order),
    "names and arrays": lambda arrays, order: [order[0], *(arrays[name] for name in order[1:])],
}


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "between", "last"])
def test_order_params_fixes_the_order_gradients_are_given_in(entries, place):
    arrays, groups = three()
    groups.insert(place, {"order_params": entries(arrays, ["c", "a", "b"])})
    opt = nl.Lamb(groups, 0.125)
    assert list(opt.params) == ["c", "a", "b"]
    assert [layer.group for layer in opt.layout.layers] == [1, 0, 0]
    assert opt.get_lr() == (0.125, 0.5, 0.5)
    assert opt([ones(4), ones(2), ones(3)]) == (True, True, True)


@given(order=st.permutations(["a", "b", "c"]))
def test_order_changes_no_bit(order):
    arrays, groups = three()
    plain_arrays, plain_groups = three()
    opt = nl.Lamb([*groups, {"order_params": order}], 0.125)
    plain = nl.Lamb(plain_groups, 0.125)
    for step in range(2):
        gradients = {name: np.cos(array + step) for name, array in arrays.items()}
        opt.step([gradients[name] for name in order])
        plain.step(gradients)
    assert frozen(arrays) == frozen(plain_arrays)
    assert opt.stats() == plain.stats()


def test_the_last_order_counts_and_an_empty_one_is_none():
    _, groups = three()
    opt = nl.Lamb([*groups, {"order_params": ["a", "b", "c"]}, {"order_params": ["b", "c", "a"]}], 0.1)
    assert list(opt.params) == ["b", "c", "a"]
    assert list(nl.Lamb([*groups, {"order_params": []}], 0.1).params) == ["a", "b", "c"]


def test_a_pair_in_order_params_must_agree_with_itself():
    arrays, groups = three()
    order = [("c", arrays["a"]), ("a", arrays["c"]), ("b", arrays["b"])]
    with pytest.raises(ValueError, match="order_params"):
        nl.Lamb([*groups, {"order_params": order}], 0.1)


# -- add_param_group ---------------------------------------------------------------------------------------------


def test_adding_a_group_before_the_first_step_is_as_giving_it_at_once():
    def groups():
        return [
            {"params": {"a": ones(3)}, "lr": 0.5},
            {"params": {"b": ones(5, dtype=np.float64)}, "lr": 0.25},
        ]

    at_once = nl.Lamb(groups(), 0.1, weight_decay=0.1)
    first, second = groups()
    later = nl.Lamb([first], 0.1, weight_decay=0.1)
    later.add_param_group(second)
    for opt in (at_once, later):
        opt.step({"a": np.arange(3, dtype=np.float32), "b": np.arange(5.0)})
    assert snapshot(later)["params"] == snapshot(at_once)["params"]
    assert snapshot(later)["state"] == snapshot(at_once)["state"]
    assert later.get_lr() == at_once.get_lr() == (0.5, 0.25)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_was_there_keeps_its_state_and_the_new_starts_at_step_one(dtype):
    a, b = ones(3), np.linspace(1, 2, 70, dtype=dtype)
    opt = nl.Lamb({"a": a}, 0.1)
    alone_a, alone_b = a.copy(), b.copy()
    twin_a, twin_b = nl.Lamb({"a": alone_a}, 0.1), nl.Lamb({"b": alone_b}, 0.1)
    g, h = np.array([1, 2, 3], np.float32), np.cos(b)
    opt.step([g])
    before = opt.stats()
    opt.add_param_group({"params": {"b": b}})
    assert opt.stats() == before
    opt.step([-g, h])
    opt.step({"b": -h, "a": g})
    for gradient in (g, -g, g):
        twin_a.step([gradient])
    for gradient in (h, -h):
        twin_b.step([gradient])
    assert frozen([a, b]) == frozen([alone_a, alone_b])
    state = opt.state_dict()
    assert frozen(state["layers"]) == frozen(
        {**twin_a.state_dict()["layers"], **twin_b.state_dict()["layers"]}
    )
    assert [layer["step"] for layer in state["layers"].values()] == [3, 2]
    assert opt.global_step == 3


def test_a_group_added_keeps_its_decay_when_another_one_follows():
    beta = ones()
    opt = nl.Lamb({"w": ones()}, 0.5, weight_decay=0.125)
    opt.add_param_group({"params": {"beta": beta}})
    opt.add_param_group({"params": {"late": ones()}})
    opt.step([np.zeros(2, np.float32)] * 3)
    assert beta.tolist() == [0.5, 0.5]


def test_a_group_added_without_a_rate_follows_the_optimizer():
    opt = nl.Lamb({"w": ones()}, 0.5)
    opt.learning_rate = 0.25
    opt.add_param_group({"params": [ones()]})
    opt.add_param_group({"params": [ones()], "lr": 1})
    assert opt.get_lr() == (0.25, 0.25, 1.0)
    opt.learning_rate = 0.125
    assert opt.get_lr() == (0.125, 0.125, 1.0)


def test_one_generator_in_two_groups_gives_both_the_same_value():
    rates = iter([0.5, 0.25, 0.125])
    opt = nl.Lamb([{"params": [ones()], "lr": rates}, {"params": [ones()], "lr": rates}], 0.1)
    assert opt.get_lr() == (0.5, 0.5)
    opt.step([ones(), ones()])
    assert opt.get_lr() == (0.25, 0.25)
    opt.add_param_group({"params": [ones()], "lr": rates})
    assert opt.get_lr() == (0.25, 0.25, 0.25)


def test_centralization_reaches_its_group_alone():
    def model():
        return ones(2, 2, 3), ones(2, 2, 3)

    g = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    less_mean = g - g.mean(axis=(1, 2), keepdims=True)
    conv, plain = model()
    groups = [
        {"params": [conv], "grad_centralization": True},
        {"params": [plain], "grad_centralization": False},
    ]
    nl.Lamb(groups, 0.1).step([g, g])
    by_hand, reference = model()
    nl.Lamb([by_hand, reference], 0.1).step([less_mean, g])
    assert frozen([conv, plain]) == frozen([by_hand, reference])
    assert g[0, 0, 0] == 0
    assert not np.array_equal(conv, plain)


def test_a_group_that_cannot_be_made_ready_leaves_everything_as_it_was(monkeypatch):
    params = {"a": np.ones(3), "b": np.ones(4)}
    opt = nl.Lamb({"a": params["a"]}, 0.1)
    opt.step([np.ones(3)])
    before = opt.state_dict()
    place = opt._backend.place
    calls = []

    def fail_once(plan):
        calls.append(len(plan.layout))
        if len(calls) == 1:
            raise MemoryError("no room")
        place(plan)

    monkeypatch.setattr(opt._backend, "place", fail_once)
    with pytest.raises(MemoryError, match="no room"):
        opt.add_param_group({"params": {"b": params["b"]}})
    assert calls == [2, 1]
    assert list(opt.params) == ["a"]
    assert len(opt.param_groups) == 1
    np.testing.assert_equal(opt.state_dict(), before)
    opt.step([np.ones(3)])
    assert opt.global_step == 2


def test_lars_keeps_the_ratio_of_a_layer_without_a_gradient():
    params = {"a": np.ones(3), "b": np.full(3, 2.0)}
    opt = nl.Lars(nl.Momentum(params, 0.1, 0.9))
    opt.step([np.ones(3), np.ones(3)])
    ratio = opt.stats()["trust_ratio/a"]
    opt.step([None, np.ones(3)])
    assert opt.stats()["trust_ratio/a"] == ratio != 1
