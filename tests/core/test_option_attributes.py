"""Options as attributes of NumPy optimizers: each has an effect, or an AttributeError that names the right way."""

import copy
import pickle

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.methods.names import OPTIONS
from numba_lamb.methods.options import FIXED, Method
from numba_lamb.methods.table import METHODS
from numba_lamb.optimizers import base
from tests.helpers import frozen, version_1
from tests.options import Key, NumpyFront, gradients_of

MAKERS = {
    "Lamb": lambda params, **options: nl.Lamb(params, 0.1, **options),
    "Momentum": lambda params, **options: nl.Momentum(params, 0.1, 0.9, **options),
    "Lars": lambda params, **options: nl.Lars(nl.Momentum(params, 0.1, 0.9, **options), coefficient=0.3),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
FRONT = NumpyFront()
KEYS = [
    pytest.param(method, key, id=f"{method.name}-{key.argument}")
    for method in METHODS.values()
    for key in FRONT.keys(method)
]


def rows(name):
    return {name: np.linspace(-1, 2, 24 + len(name) * 6).reshape(-1, 3, 2)}


@pytest.mark.parametrize(("method", "key"), [one for one in KEYS if one.values[1].name not in FIXED])
def test_an_option_that_is_set_holds_for_groups_without_their_own(method: Method, key: Key):
    """From the next step on, in a copy too, as if it had been given to the constructor."""
    for value, own in zip(key.good, [*key.good[1:], key.good[0]], strict=True):
        late = FRONT.make_as_named(method, [(rows("a"), {})], {})
        given = FRONT.make_as_named(method, [(rows("a"), {})], {key.name: value})
        for opt in (late, given):
            opt.add_param_group({"params": rows("bb"), key.name: own})
        late = copy.deepcopy(late)
        setattr(late, key.argument, value)
        assert getattr(late, key.argument) is getattr(given, key.argument) is value
        assert [group[key.name] for group in late.param_groups] == [value, own]
        late.add_param_group({"params": rows("ccc")})
        given.add_param_group({"params": rows("ccc")})
        for step in range(2):
            for opt in (late, given):
                FRONT.step(opt, gradients_of(opt.params, step))
        assert FRONT.result(late) == FRONT.result(given)
        assert late.param_groups[2][key.name] is value


def test_a_group_that_was_given_one_keeps_it_when_the_shared_one_is_refused():
    opt = nl.Lamb([{"params": rows("a")}, {"params": rows("bb"), "beta1": 0.25}], 0.1, beta1=0.5)
    with pytest.raises(ValueError, match=r"^beta1 must be a float between 0 and 1, both excluded, got 1.0$"):
        opt.beta1 = 1.0
    assert [group["beta1"] for group in opt.param_groups] == [0.5, 0.25]
    assert opt.beta1 == 0.5


def model():
    return {"w": np.linspace(1, 2, 200, dtype=np.float32), "b": np.ones(3)}


def trained(opt, count=2):
    for step in range(count):
        opt.step([np.cos(array + step) for array in opt.params.values()])
    return frozen([dict(opt.params), opt.state_dict()["layers"]])


@makers
def test_a_decay_that_is_assigned_is_the_one_given(make):
    for decay in (0.5, [0.5, 0.25], lambda step: 0.25 / (step + 1)):
        late, plain = make(model()), make(model(), weight_decay=decay)
        late.weight_decay = decay
        assert late.weight_decay is decay
        assert late.get_weight_decay() == plain.get_weight_decay()
        assert trained(late) == trained(plain)
    opt = make([{"params": {"w": np.ones(3)}, "weight_decay": 0.25}, {"params": {"b": np.ones(3)}}])
    opt.weight_decay = 0.5
    opt.add_param_group({"params": {"c": np.ones(3)}})
    assert opt.get_weight_decay() == (0.25, 0.5, 0.5)
    assert opt.weight_decay == 0.5
    opt = copy.deepcopy(opt)
    opt.weight_decay = 0.125
    assert opt.get_weight_decay() == (0.25, 0.125, 0.125)


@makers
def test_nonfinite_that_is_assigned_holds_from_the_next_step_on(make):
    params = model()
    opt = make(params)
    assert opt.nonfinite is None
    before, bad = frozen(params), [np.full(200, np.nan, np.float32), np.ones(3)]
    with pytest.raises(FloatingPointError):
        opt.step(bad)
    opt.nonfinite = "skip"
    opt.step(bad)
    assert (opt.skipped_steps, opt.global_step, frozen(params)) == (1, 0, before)
    assert opt.nonfinite == "skip"
    opt.nonfinite = None
    with pytest.raises(FloatingPointError):
        opt.step(bad)
    opt.nonfinite = "propagate"
    opt.step(bad)
    assert np.isnan(params["w"]).all()
    assert np.isfinite(params["b"]).all()


@makers
def test_every_other_option_says_what_to_do(make):
    opt = make(model())
    settable = {key.argument for key in FRONT.keys(METHODS[type(opt).__name__])}
    assert settable >= {"learning_rate", "weight_decay", "maximize", "max_grad_norm"}
    readable = {"loss_scale"} & set(dir(type(opt)))
    before = pickle.dumps(opt)
    for name in sorted(OPTIONS - settable):
        with pytest.raises(
            AttributeError, match=f"^'{name}' of {type(opt).__name__} cannot be set; "
        ) as caught:
            setattr(opt, name, 0.5)
        assert caught.value.name == name
        if name not in readable:
            with pytest.raises(AttributeError, match=f"no attribute '{name}'; "):
                getattr(opt, name)
            assert not hasattr(opt, name)
    assert pickle.dumps(opt) == before
    with pytest.raises(AttributeError, match="set learning_rate, or param_groups"):
        opt.lr = 0.0
    with pytest.raises(AttributeError, match=r"no attribute 'anything'$"):
        _ = opt.anything
    opt.anything = 3
    assert opt.anything == 3


def test_the_ways_that_are_named_work():
    opt = nl.Lamb(model(), 0.1)
    with pytest.raises(AttributeError, match=r"'betas' of Lamb cannot be set; set beta1 and beta2$"):
        opt.betas = (0.5, 0.75)
    opt.beta1, opt.beta2 = 0.5, 0.75
    assert trained(opt) == trained(nl.Lamb(model(), 0.1, 0.5, 0.75))
    opt = nl.Momentum(model(), 0.1, 0.9)
    with pytest.raises(
        AttributeError, match="'betas' of Momentum cannot be set; it is no option of Momentum"
    ):
        opt.betas = (0.5, 0.75)
    with pytest.raises(AttributeError, match="it is called 'use_nesterov' here"):
        opt.nesterov = True
    with pytest.raises(
        AttributeError, match=r"load a state_dict\(\) whose \['numbers'\]\['loss_scale'\] you"
    ):
        opt.loss_scale = 8.0
    state = opt.state_dict()
    state["numbers"]["loss_scale"] = 8.0
    opt.load_state_dict(state)
    assert opt.loss_scale == 8.0
    assert trained(opt) == trained(nl.Momentum(model(), 0.1, 0.9, loss_scale=8.0))


def test_a_state_of_version_1_is_one_of_today():
    for make in MAKERS.values():
        opt, other = make(model()), make(model())
        trained(opt)
        old = version_1(opt)
        assert (old["format_version"], opt.state_dict()["format_version"]) == (1, 2)
        for name in ("beta1", "momentum"):
            if name in old["numbers"]:
                old["numbers"][name] = 0.5
                setattr(opt, name, 0.5)
        other.load_state_dict(old)
        assert frozen(other.state_dict()) == frozen(opt.state_dict())


@makers
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_a_schedule_that_raises_changes_nothing(make, name):
    def schedule(step):
        if step == 1 and failing:
            raise LookupError("lost")
        return 0.125

    def generator():
        yield 0.125
        raise LookupError("lost")

    failing = True
    for given in (schedule, generator()):
        opt, twin = make(model()), make(model())
        setattr(opt, name, given)
        setattr(twin, name, 0.125)
        before = trained(opt, 1)
        for attempt in range(3):
            dead = given is not schedule and attempt
            message = "is an iterator that raised LookupError at step 1" if dead else "lost"
            with pytest.raises(RuntimeError if dead else LookupError, match=message):
                trained(opt, 1)
            assert frozen([dict(opt.params), opt.state_dict()["layers"]]) == before
            assert opt.global_step == 1
        failing = False
        if given is not schedule:
            setattr(opt, name, 0.125)
        trained(twin, 1)
        assert trained(opt, 1) == trained(twin, 1)
        failing = True


def test_an_assignment_that_is_interrupted_leaves_the_options_as_they_were(monkeypatch):
    params, twin = model(), model()
    opt, plain = (nl.Lamb(arrays, 0.1, weight_decay=0.1) for arrays in (params, twin))
    write = base.write_options

    def interrupted(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "write_options", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.beta1 = 0.5
    monkeypatch.undo()
    assert opt.beta1 == 0.9
    assert trained(opt) == trained(plain)


def test_options_that_a_filter_changes_hold_from_that_step_on():
    w, twin, asked = np.ones(3), np.ones(3), []

    def changes(layer: nl.layout.Layer) -> bool:
        if opt.global_step == 1:
            opt.param_groups[0]["maximize"] = True
        return True

    def counts(layer: nl.layout.Layer) -> bool:
        asked.append(layer.name)
        opt.param_groups[0]["max_grad_norm"] = float(len(asked))
        return True

    opt, other = nl.Momentum([w], 0.1, 0.9), nl.Momentum([twin], 0.1, 0.9)
    for one in (opt, other):
        one.step([np.ones(3)])
    opt.decay_filter, other.maximize = changes, True
    for one in (opt, other):
        one.step([np.ones(3)])
    assert w.tobytes() == twin.tobytes()
    opt.param_groups[0]["decay_filter"] = counts
    with pytest.raises(RuntimeError, match=r"decay_filter and adapt_filter must leave .* options"):
        opt.step([np.ones(3)])
    assert (opt.global_step, w.tobytes()) == (2, twin.tobytes())
