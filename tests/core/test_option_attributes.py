"""Options as attributes of NumPy optimizers: each has an effect, or an AttributeError that names the right way."""

import copy
import pickle

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.methods.names import OPTIONS
from tests.helpers import frozen

MAKERS = {
    "Lamb": lambda params, **options: nl.Lamb(params, 0.1, **options),
    "Momentum": lambda params, **options: nl.Momentum(params, 0.1, 0.9, **options),
    "Lars": lambda params, **options: nl.Lars(nl.Momentum(params, 0.1, 0.9, **options), coefficient=0.3),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
LIVE = {"learning_rate", "weight_decay", "max_grad_norm", "nonfinite"}


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
def test_a_decay_that_is_refused_changes_nothing(make):
    opt = make(model(), weight_decay=0.5)
    for bad in (-1.0, float("nan"), "0.1", None, True):
        with pytest.raises((TypeError, ValueError), match=r"^weight_decay must be"):
            opt.weight_decay = bad
    assert opt.weight_decay == opt.get_weight_decay() == 0.5


@makers
def test_nonfinite_that_is_assigned_holds_from_the_next_step_on(make):
    params = model()
    opt = make(params)
    assert opt.nonfinite == "raise"
    before, bad = frozen(params), [np.full(200, np.nan, np.float32), np.ones(3)]
    with pytest.raises(FloatingPointError):
        opt.step(bad)
    opt.nonfinite = "skip"
    opt.step(bad)
    assert (opt.skipped_steps, opt.global_step, frozen(params)) == (1, 0, before)
    for wrong in ("drop", 1, True):
        with pytest.raises(ValueError, match=f"^nonfinite must be one of .*not {wrong!r}"):
            opt.nonfinite = wrong
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
    readable = {"beta1", "beta2", "eps", "momentum", "loss_scale", "use_nesterov"} & set(dir(type(opt)))
    before = pickle.dumps(opt)
    for name in sorted(OPTIONS - LIVE):
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


def test_the_way_that_is_named_works():
    opt = nl.Lamb(model(), 0.1)
    with pytest.raises(
        AttributeError, match=r"load a state_dict\(\) whose \['numbers'\]\['beta1'\] you changed"
    ):
        opt.beta1 = 0.5
    state = opt.state_dict()
    state["numbers"]["beta1"] = 0.5
    opt.load_state_dict(state)
    assert trained(opt) == trained(nl.Lamb(model(), 0.1, beta1=0.5))
    with pytest.raises(AttributeError, match="it is called 'use_nesterov' here"):
        nl.Momentum(model(), 0.1, 0.9).nesterov = True


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
