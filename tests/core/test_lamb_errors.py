"""What Lamb refuses. A refusal names its cause and leaves everything as it was, to the bit."""

import copy
import re
import traceback

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.schedules import WarmUpLR
from tests.helpers import frozen, installed, snapshot

jax, torch = installed("jax"), installed("torch")


def ones(*shape, dtype=np.float32):
    return np.ones(shape or (2,), dtype)


def read_only(array):
    array.flags.writeable = False
    return array


def misaligned(count=2):
    return np.frombuffer(bytearray(4 * count + 1), dtype=np.uint8)[1:].view(np.float32)


def raising(step):
    raise LookupError(f"no rate at {step}")


# -- parameters --------------------------------------------------------------------------------------------------

BUFFER = ones(8)
W = ones()

PARAMETERS = {
    "None": (lambda: None, ValueError, "params must hold at least one parameter, not None"),
    "empty list": (lambda: [], ValueError, "params .* is empty"),
    "empty mapping": (lambda: {}, ValueError, "params .* is empty"),
    "empty iterator": (lambda: iter([]), ValueError, "params .* is empty"),
    "an array": (lambda: ones(), TypeError, "params must be .* not ndarray"),
    "a number": (lambda: 3, TypeError, "params must be .* not int"),
    "a string": (lambda: "w", TypeError, "params must be .* not str"),
    "a list of strings": (lambda: ["w"], TypeError, "entry 0 of params .* not str"),
    "lists as pairs": (lambda: [["w", ones()]], TypeError, "entry 0 of params .* not list"),
    "triples": (lambda: [("w", ones(), 3)], TypeError, "entry 0 of params .* not tuple"),
    "names that are numbers": (lambda: {1: ones()}, TypeError, "name.* int"),
    "a list of numbers": (
        lambda: {"w": [1.0, 2.0]},
        TypeError,
        "parameter 'w' must be a numpy.ndarray or have __cuda_array_interface__, not list",
    ),
    "a NumPy scalar": (lambda: {"w": np.float32(1)}, TypeError, "parameter 'w' .* not numpy.float32"),
    "None as array": (lambda: {"w": None}, TypeError, "parameter 'w' .* not NoneType"),
    "masked": (lambda: {"w": np.ma.array([1.0, 2.0])}, TypeError, "parameter 'w' .*MaskedArray"),
    **(
        {"torch": (lambda: {"w": torch.ones(2)}, TypeError, "parameter 'w' .* torch.Tensor")} if torch else {}
    ),
    **(
        {"torch parameter": (lambda: {"w": torch.nn.Parameter(torch.ones(2))}, TypeError, "'w' .* torch")}
        if torch
        else {}
    ),
    **(
        {"jax": (lambda: {"w": jax.numpy.ones(2)}, TypeError, "parameter 'w' must be .* got a JAX array")}
        if jax
        else {}
    ),
    **(
        {
            "view of jax": (
                lambda: {"w": np.asarray(jax.numpy.ones(2))},
                ValueError,
                "parameter 'w' is read-only",
            )
        }
        if jax
        else {}
    ),
    "longdouble": (
        lambda: {"w": ones(dtype=np.longdouble)},
        TypeError,
        "'w' must be bfloat16, float16, float32 or",
    ),
    "int": (lambda: {"w": ones(dtype=np.int32)}, TypeError, "parameter 'w' .*int32"),
    "bool": (lambda: {"w": ones(dtype=bool)}, TypeError, "parameter 'w' .*bool"),
    "complex": (lambda: {"w": ones(dtype=np.complex64)}, TypeError, "parameter 'w' .*complex64"),
    "object": (
        lambda: {"w": ones(dtype=object)},
        TypeError,
        "'w' must be bfloat16, float16, float32 or",
    ),
    "record": (
        lambda: {"w": np.zeros(2, [("x", "f4")])},
        TypeError,
        "'w' must be bfloat16, float16, float32 or",
    ),
    "other byte order": (lambda: {"w": ones(dtype=">f4")}, TypeError, "parameter 'w' .* native byte order"),
    "every second": (lambda: {"w": ones(4)[::2]}, ValueError, "parameter 'w' must be C-contiguous"),
    "reversed": (lambda: {"w": ones(4)[::-1]}, ValueError, "parameter 'w' must be C-contiguous"),
    "Fortran order": (lambda: {"w": np.asfortranarray(ones(2, 3))}, ValueError, r"'w' .* strides \(4, 8\)"),
    "broadcast": (
        lambda: {"w": np.broadcast_to(ones(1), (3,))},
        ValueError,
        "parameter 'w' must be C-contiguous",
    ),
    "misaligned": (lambda: {"w": misaligned()}, ValueError, "parameter 'w' must be aligned"),
    "read-only": (lambda: {"w": read_only(ones())}, ValueError, "parameter 'w' is read-only"),
    "second is bad": (lambda: {"w": ones(), "x": ones(dtype=int)}, TypeError, "parameter 'x'"),
    "twice": (lambda: [W, W], ValueError, "'param_1' is given twice, also as 'param_0'"),
    "twice by two names": (lambda: {"w": W, "x": W}, ValueError, "'x' is given twice, also as 'w'"),
    "one name twice": (lambda: [("w", ones()), ("w", ones())], ValueError, "two parameters are named 'w'"),
    "a name that numbering gives": (lambda: [("param_1", ones()), ones()], ValueError, "named 'param_1'"),
    "two views of one": (lambda: {"w": BUFFER[:4], "x": BUFFER[:4]}, ValueError, "'w' and 'x' share memory"),
    "overlapping": (lambda: {"w": BUFFER[:5], "x": BUFFER[4:]}, ValueError, "'w' and 'x' share memory"),
    "one inside another": (lambda: {"w": BUFFER, "x": BUFFER[3:4]}, ValueError, "'w' and 'x' share memory"),
    "reshaped": (lambda: {"w": BUFFER, "x": BUFFER.reshape(2, 4)}, ValueError, "'w' and 'x' share memory"),
    "one of other dtype": (
        lambda: {"w": BUFFER, "x": BUFFER.view("f8")},
        ValueError,
        "'w' and 'x' share memory",
    ),
    "arrays and groups": (lambda: [ones(), {"params": [ones()]}], TypeError, "either arrays or group dicts"),
    "a group without its list": (lambda: {"params": [ones()], "lr": 0.1}, TypeError, "'params'"),
    "empty group": (lambda: [{"params": []}], ValueError, "'params' of group 0 is empty"),
    "used iterator": (
        lambda: [{"params": iter(())}],
        ValueError,
        "'params' of group 0 is empty; an iterator",
    ),
    "group of None": (lambda: [{"params": None}], ValueError, "'params' of group 0 .* not None"),
    "group of an array": (lambda: [{"params": ones()}], TypeError, "'params' of group 0 .* not ndarray"),
    "group of a string": (lambda: [{"params": [ones(), "x"]}], TypeError, "entry 1 of 'params' of group 0"),
    "group without params": (
        lambda: [{"params": [ones()]}, {"lr": 0.1}],
        KeyError,
        "group 1 has no 'params'",
    ),
    "unknown key": (
        lambda: [{"params": [ones()], "beta_1": 0.9}],
        KeyError,
        "group 0 has the unknown key 'beta_1'",
    ),
    "in two groups": (lambda: [{"params": [W]}, {"params": [W]}], RuntimeError, "'param_1' is given twice"),
    "twice in a group": (
        lambda: [{"params": {"w": W, "x": W}}],
        RuntimeError,
        "'x' is given twice, also as 'w'",
    ),
    "one name in two groups": (
        lambda: [{"params": {"w": ones()}}, {"params": {"w": ones()}}],
        ValueError,
        "two parameters are named 'w'",
    ),
    "views in two groups": (
        lambda: [{"params": {"w": BUFFER}}, {"params": {"x": BUFFER[1:2]}}],
        ValueError,
        "'w' and 'x' share memory",
    ),
    "centralization of a dense layer": (
        lambda: [{"params": {"conv": ones(2, 2, 2), "dense": ones(2, 2)}, "grad_centralization": True}],
        ValueError,
        "grad_centralization of group 0 .* 'dense'",
    ),
    "order alone": (lambda: [{"order_params": ["w"]}], ValueError, "at least one group"),
    "order too short": (
        lambda: [{"params": [W, BUFFER]}, {"order_params": [W]}],
        ValueError,
        "has 1 entries for 2",
    ),
    "order too long": (
        lambda: [{"params": [W]}, {"order_params": [W, W]}],
        ValueError,
        "has 2 entries for 1",
    ),
    "order twice": (
        lambda: [{"params": [W, BUFFER]}, {"order_params": [W, W]}],
        ValueError,
        "'param_0' twice",
    ),
    "order of strangers": (
        lambda: [{"params": [W]}, {"order_params": [ones()]}],
        ValueError,
        "entry 0 .* no group",
    ),
    "order of unknown names": (
        lambda: [{"params": {"w": W}}, {"order_params": ["x"]}],
        ValueError,
        "'x' .* no group",
    ),
    "order of a number": (
        lambda: [{"params": [W]}, {"order_params": 3}],
        TypeError,
        "'order_params' .* not int",
    ),
    "order of a string": (lambda: [{"params": {"w": W}}, {"order_params": "w"}], TypeError, "not str"),
    "order with another key": (
        lambda: [{"params": [W], "order_params": [W]}],
        ValueError,
        "no other key.*'params'",
    ),
    "two tables of rates": (
        lambda: [{"params": [W], "lr": [0.1, 0.2]}, {"params": [BUFFER], "lr": [0.1]}],
        ValueError,
        "group 0 has 2 values and group 1 has 1",
    ),
}


@pytest.mark.parametrize(("params", "error", "match"), PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_refused(params, error, match):
    with pytest.raises(error, match=match) as caught:
        nl.Lamb(params(), 0.1)
    assert caught.type is error
    assert frozen([W, BUFFER]) == frozen([ones(), ones(8)])


def test_neighbours_in_one_buffer_do_not_overlap():
    buffer = ones(8)
    opt = nl.Lamb({"x": buffer[4:], "none": buffer[2:2], "w": buffer[:4]}, 0.1)
    opt.step([ones(4), ones(0), ones(4)])
    assert (buffer < 1).all()


# -- the other arguments -----------------------------------------------------------------------------------------

ARGUMENTS = {
    "eps that float32 takes for 0": ({"eps": 1e-60}, ValueError, "eps .*float32"),
    "eps that float32 takes for infinity": ({"eps": 1e60}, ValueError, "eps .*float32"),
    "weight_decay 2-D": ({"weight_decay": np.ones((1, 1))}, ValueError, "weight_decay .* 2"),
    "num_threads 0": ({"num_threads": 0}, ValueError, "num_threads must be between 1 and .* not 0"),
    "num_threads float": ({"num_threads": 1.0}, TypeError, "num_threads must be an int or None, not float"),
    "num_threads bool": ({"num_threads": True}, TypeError, "num_threads must be an int or None, not bool"),
    "unknown": ({"amsgrad": True}, TypeError, "amsgrad"),
}


@pytest.mark.parametrize(("arguments", "error", "match"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_refused(arguments, error, match):
    with pytest.raises(error, match=match) as caught:
        nl.Lamb({"w": W}, 0.1, **arguments)
    assert caught.type is error


def test_learning_rate_has_no_default():
    with pytest.raises(TypeError, match="learning_rate"):
        nl.Lamb({"w": W})


@pytest.mark.parametrize("name", ["decay_filter", "adapt_filter"])
def test_a_filter_that_fails_is_heard(name):
    with pytest.raises(LookupError, match="no rate at"):
        nl.Lamb({"w": W}, 0.1, **{name: raising})


# -- refusals of an optimizer at work ----------------------------------------------------------------------------


class Pair:
    """An optimizer at work and its twin, which sees only what is accepted."""

    def __init__(self, **options):
        self.opt, self.twin = self.make(**options), self.make(**options)
        self.gradients = {
            "w": np.array([0.5, -0.25], np.float32),
            "x": np.array([1.0, 2.0, 3.0], np.float32),
            "y": np.array([[0.5], [0.125]]),
            "conv": np.arange(12, dtype=np.float32).reshape(2, 2, 3),
        }
        self.step_both()

    def make(self, **options):
        return nl.Lamb(
            [
                {"params": {"w": ones(), "x": ones(3)}},
                {"params": {"y": ones(2, 1, dtype=np.float64)}, "lr": 0.25, "weight_decay": 0.5},
                {"params": {"conv": ones(2, 2, 3)}, "grad_centralization": True},
            ],
            0.125,
            weight_decay=0.0625,
            **options,
        )

    def step_both(self):
        self.opt.step(self.gradients)
        self.twin.step(self.gradients)

    def refuses(self, error, match, action):
        before = snapshot(self.opt)
        with pytest.raises(error, match=match) as caught:
            action(self.opt)
        assert caught.type is error
        assert snapshot(self.opt) == before

    def goes_on_as_the_twin(self):
        self.step_both()
        found, expected = snapshot(self.opt), snapshot(self.twin)
        for key in ("params", "state", "stats", "layers"):
            assert found[key] == expected[key]


@pytest.fixture
def pair():
    return Pair()


def put(name, gradient):
    """The pair's gradients with one replaced; `gradient` may be a function of the optimizer."""

    def change(opt, gradients):
        value = gradient(opt) if callable(gradient) else gradient
        return {**gradients, name: value}

    return change


GRADIENTS = {
    "None": (lambda opt, given: None, TypeError, "gradients must be a sequence .* not NoneType"),
    "a number": (lambda opt, given: 0.5, TypeError, "gradients must be a sequence .* not float"),
    "an array": (
        lambda opt, given: ones(4, 2),
        TypeError,
        "gradients must be a sequence .* not numpy.ndarray",
    ),
    "a string": (lambda opt, given: "wxyz", TypeError, "gradients must be a sequence .* not str"),
    "too few": (lambda opt, given: [ones()], ValueError, "gradients has 1 entries for 4 parameters"),
    "none": (lambda opt, given: (), ValueError, "gradients has 0 entries for 4 parameters"),
    "too many": (lambda opt, given: [*given.values(), None], ValueError, "has 5 entries for 4 parameters"),
    "unknown name": (lambda opt, given: {**given, "v": ones()}, KeyError, "no parameter is named 'v'"),
    "unknown None": (lambda opt, given: {**given, "v": None}, KeyError, "no parameter is named 'v'"),
    "missing name": (
        lambda opt, given: {"w": given["w"]},
        KeyError,
        "no gradient for parameter 'x'; give None",
    ),
    "empty mapping": (lambda opt, given: {}, KeyError, "no gradient for parameter 'w'"),
    "list": (put("x", [1.0, 2.0, 3.0]), TypeError, "gradient of 'x' must be a numpy.ndarray, got list"),
    "scalar": (put("x", 0.0), TypeError, "gradient of 'x' .* got float"),
    "masked": (put("x", np.ma.array(ones(3))), TypeError, "gradient of 'x' .*MaskedArray"),
    **({"torch": (put("x", torch.ones(3)), TypeError, "gradient of 'x' .* torch.Tensor")} if torch else {}),
    **({"jax": (put("x", jax.numpy.ones(3)), TypeError, "gradient of 'x' .* jax")} if jax else {}),
    "int": (put("x", ones(3, dtype=int)), TypeError, "gradient of 'x' .* got dtype\\('int64'\\)"),
    "byte order": (put("x", ones(3, dtype=">f4")), TypeError, "gradient of 'x' .* got dtype\\('>f4'\\)"),
    "shape": (put("x", ones(4)), ValueError, r"gradient of 'x' .* shape \(3,\), got \(4,\)"),
    "dimensions": (
        put("y", ones(2, dtype=np.float64)),
        ValueError,
        r"gradient of 'y' .* \(2, 1\), got \(2,\)",
    ),
    "empty": (put("x", ones(0)), ValueError, r"gradient of 'x' .* got \(0,\)"),
    "every second": (put("x", ones(6)[::2]), ValueError, "gradient of 'x' must be C-contiguous"),
    "one value broadcast": (
        put("x", np.broadcast_to(ones(1), (3,))),
        ValueError,
        "gradient of 'x' .* contiguous",
    ),
    "Fortran order": (
        put("conv", np.asfortranarray(ones(2, 2, 3))),
        ValueError,
        "gradient of 'conv' .* contiguous",
    ),
    "misaligned": (put("x", misaligned(3)), ValueError, "gradient of 'x' must be aligned"),
    "the parameter": (
        put("x", lambda opt: opt.params["x"]),
        ValueError,
        "'x' shares memory with parameter 'x'",
    ),
    "a view of it": (
        put("x", lambda opt: opt.params["x"][:]),
        ValueError,
        "'x' shares memory with parameter 'x'",
    ),
    "a part of another": (
        put("x", lambda opt: opt.params["conv"].reshape(-1)[5:8]),
        ValueError,
        "gradient of 'x' shares memory with parameter 'conv'",
    ),
    "infinite": (
        put("x", np.array([1, np.inf, -np.inf], np.float32)),
        FloatingPointError,
        "gradient of 'x' has 2 values that are infinite or NaN",
    ),
    "NaN in float64": (
        put("y", np.array([[0.5], [np.nan]])),
        FloatingPointError,
        "gradient of 'y' has 1 values",
    ),
    "NaN in the last": (
        put("conv", np.full((2, 2, 3), np.nan, np.float32)),
        FloatingPointError,
        "'conv' has 12",
    ),
}


@pytest.mark.parametrize("call", [lambda opt, g: opt.step(g), lambda opt, g: opt(g)], ids=["step", "call"])
@pytest.mark.parametrize(("change", "error", "match"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_refused(pair, change, error, match, call):
    pair.refuses(error, match, lambda opt: call(opt, change(opt, pair.gradients)))
    pair.goes_on_as_the_twin()


def test_a_refusal_after_new_arrays_were_seen(pair):
    fresh = [gradient.copy() for gradient in pair.gradients.values()]
    unfit = [*fresh[:3], ones(1)]
    pair.refuses(ValueError, "gradient of 'conv'", lambda opt: opt.step(unfit))
    pair.refuses(ValueError, "gradient of 'x'", lambda opt: opt.step([None, ones(1), None, None]))
    fresh.clear()
    unfit.clear()
    pair.goes_on_as_the_twin()


def test_a_gradient_array_that_became_non_finite_in_place(pair):
    kept = pair.gradients["x"].copy()
    pair.gradients["x"][1] = np.nan
    pair.refuses(FloatingPointError, "gradient of 'x'", lambda opt: opt.step(pair.gradients))
    pair.gradients["x"][:] = kept
    pair.goes_on_as_the_twin()


BAD_RATES = {
    "negative": (-0.5, ValueError, "-0.5"),
    "NaN": (float("nan"), ValueError, "nan"),
    "infinite": (float("inf"), ValueError, "inf"),
    "negative 0-d array": (np.array(-0.5), ValueError, "-0.5"),
    "True": (True, TypeError, "bool"),
    "NumPy's True": (np.True_, TypeError, "bool"),
    "0-d True": (np.array(True), TypeError, "bool"),
    "complex": (0.5j, TypeError, "complex"),
    "0-d complex": (np.array(0.5j), TypeError, "complex"),
    "complex64": (np.complex64(0.5), TypeError, "complex"),
    "None": (None, TypeError, "NoneType"),
    "text": ("0.5", ValueError, "'0.5'"),
    "0-d text": (np.array("0.5"), TypeError, "str"),
    "bytes": (b"05", TypeError, "bytes"),
    "an object": (object(), TypeError, "object"),
    "a dict": ({0: 0.5}, TypeError, "dict"),
    "a set": ({0.5}, TypeError, "set"),
    "two dimensions": (np.ones((2, 2)), ValueError, "2"),
    "beyond floats": (10**400, ValueError, "finite"),
    "a schedule's class": (WarmUpLR, TypeError, "class"),
}
"""What is no rate at all, however it is given."""

BAD_VALUES = {
    "negative": (-0.5, ValueError, "-0.5"),
    "NaN": (float("nan"), ValueError, "nan"),
    "infinite": (np.float32("inf"), ValueError, "inf"),
    "True": (True, TypeError, "bool"),
    "NumPy's True": (np.True_, TypeError, "bool"),
    "text": ("0.5", TypeError, "str"),
    "bytes": (b"0", TypeError, "bytes"),
    "None": (None, TypeError, "NoneType"),
    "complex": (0.5j, TypeError, "complex"),
    "complex64": (np.complex64(0.5), TypeError, "complex"),
    "a list": ([0.5], TypeError, "list"),
    "an array of one": (np.array([0.5]), TypeError, "array"),
    "an array of two": (np.array([0.5, 0.5]), TypeError, "array"),
    "beyond floats": (10**400, ValueError, "finite"),
}
"""What a schedule must not return, nor a table hold."""


@pytest.mark.parametrize(("rate", "error", "match"), BAD_RATES.values(), ids=BAD_RATES)
def test_rates_refused_at_construction(rate, error, match):
    for name in ("learning_rate", "weight_decay"):
        with pytest.raises(error, match=f"(?s){name}.*{re.escape(match)}") as caught:
            nl.Lamb({"w": W}, **{"learning_rate": 0.1, name: rate})
        assert caught.type is error


@pytest.mark.parametrize(("rate", "error", "match"), BAD_RATES.values(), ids=BAD_RATES)
def test_rates_refused_when_assigned(pair, rate, error, match):
    pair.refuses(
        error, f"(?s)learning_rate.*{re.escape(match)}", lambda opt: setattr(opt, "learning_rate", rate)
    )
    pair.goes_on_as_the_twin()


@pytest.mark.parametrize(("rate", "error", "match"), BAD_RATES.values(), ids=BAD_RATES)
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_rates_refused_in_a_live_group(pair, key, rate, error, match):
    kept = pair.opt.param_groups[1][key]
    pair.opt.param_groups[1][key] = rate
    params, layers = frozen(dict(pair.opt.params)), pair.opt.stats()
    for act in (
        lambda: pair.opt.step(pair.gradients),
        lambda: pair.opt.get_lr() and pair.opt.get_weight_decay(),
    ):
        with pytest.raises(error, match=f"(?s){key} of group 1.*{re.escape(match)}") as caught:
            act()
        assert caught.type is error
    assert (frozen(dict(pair.opt.params)), pair.opt.stats(), pair.opt.global_step) == (params, layers, 1)
    pair.opt.param_groups[1][key] = kept
    pair.goes_on_as_the_twin()


SOURCES = {
    "callable": lambda value: lambda step: value,
    "list": lambda value: [0.5, value],
    "tuple": lambda value: (0.5, value),
    "generator": lambda value: (entry for entry in [0.5, value]),
}


@pytest.mark.parametrize(("value", "error", "match"), BAD_VALUES.values(), ids=BAD_VALUES)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_values_refused_at_the_step_that_uses_them(pair, key, source, value, error, match):
    kept = pair.opt.param_groups[1][key]
    pair.opt.param_groups[1][key] = source(value)
    params, stats = frozen(dict(pair.opt.params)), pair.opt.stats()
    with pytest.raises(error, match=f"(?s){key} of group 1 at step 1 .*{re.escape(match)}") as caught:
        pair.opt.step(pair.gradients)
    assert caught.type is error
    assert (frozen(dict(pair.opt.params)), pair.opt.stats(), pair.opt.global_step) == (params, stats, 1)
    pair.opt.param_groups[1][key] = kept
    pair.goes_on_as_the_twin()


@pytest.mark.parametrize(
    "table",
    [[0.5], (0.5,), np.array([0.5]), iter([0.5]), [], iter(())],
    ids=["list", "tuple", "array", "iterator", "empty list", "empty iterator"],
)
def test_a_table_past_its_end_names_its_length_and_the_step(pair, table):
    count = len(table) if hasattr(table, "__len__") else table.__length_hint__()
    pair.opt.learning_rate = table
    match = f"learning_rate is a table of {count} values and has none for step 1 .*hold_last"
    pair.refuses(IndexError, match, lambda opt: opt.step(pair.gradients))
    pair.opt.learning_rate = 0.125
    pair.goes_on_as_the_twin()


def test_a_schedule_that_raises_is_heard(pair):
    pair.opt.learning_rate = raising
    with pytest.raises(LookupError, match="no rate at 1"):
        pair.opt.step(pair.gradients)
    pair.opt.learning_rate = 0.125
    pair.goes_on_as_the_twin()


def test_a_decay_that_float32_takes_for_infinity(pair):
    pair.opt.param_groups[0]["weight_decay"] = 1e60
    with pytest.raises(ValueError, match=r"weight_decay of group 0.*float32"):
        pair.opt.step(pair.gradients)
    pair.opt.param_groups[0]["weight_decay"] = 0.0625
    pair.goes_on_as_the_twin()


# -- live groups -------------------------------------------------------------------------------------------------


def unknown_key(opt):
    opt.param_groups[0]["beta_1"] = 0.5


def missing_key(opt):
    del opt.param_groups[0]["lr"]


def centralize_dense(opt):
    opt.param_groups[0]["grad_centralization"] = True


def append_group(opt):
    opt.param_groups.append({**opt.param_groups[0], "params": [ones()]})


def remove_group(opt):
    opt.param_groups.pop()


LIVE = {
    "unknown key": (unknown_key, KeyError, "group 0 has the unknown key 'beta_1'"),
    "missing key": (missing_key, KeyError, "group 0 has no 'lr'"),
    "centralization of a dense layer": (
        centralize_dense,
        ValueError,
        "grad_centralization of group 0 .* 'w'",
    ),
    "a group appended": (append_group, ValueError, "add_param_group"),
    "a group removed": (remove_group, ValueError, "param_groups"),
}


@pytest.mark.parametrize(("damage", "error", "match"), LIVE.values(), ids=LIVE)
def test_live_groups_are_checked_at_the_step(pair, damage, error, match):
    kept = [dict(group) for group in pair.opt.param_groups]
    damage(pair.opt)
    params, stats = frozen(dict(pair.opt.params)), pair.opt.stats()
    with pytest.raises(error, match=match) as caught:
        pair.opt.step(pair.gradients)
    assert caught.type is error
    assert (frozen(dict(pair.opt.params)), pair.opt.stats(), pair.opt.global_step) == (params, stats, 1)
    pair.opt.param_groups[:] = kept
    pair.goes_on_as_the_twin()


# -- add_param_group ---------------------------------------------------------------------------------------------

ADDED = {
    "no dict": (lambda opt: [ones()], TypeError, "a parameter group must be a dict, not list"),
    "no params": (lambda opt: {"lr": 0.1}, KeyError, "group 3 has no 'params'"),
    "unknown key": (
        lambda opt: {"params": [ones()], "epsilon": 0.1},
        KeyError,
        "group 3 has the unknown key 'epsilon'; did you mean 'eps'?",
    ),
    "order": (lambda opt: {"order_params": ["w"]}, KeyError, "order_params"),
    "empty": (lambda opt: {"params": {}}, ValueError, "'params' of group 3 is empty"),
    "bad array": (lambda opt: {"params": {"z": ones(dtype=int)}}, TypeError, "parameter 'z' .*int64"),
    "here already": (lambda opt: {"params": [opt.params["x"]]}, RuntimeError, "given twice, also as 'x'"),
    "name taken": (lambda opt: {"params": {"x": ones()}}, ValueError, "two parameters are named 'x'"),
    "a view": (lambda opt: {"params": {"z": opt.params["x"][1:]}}, ValueError, "share memory"),
    "centralization": (
        lambda opt: {"params": {"good": ones(2, 2, 2), "z": ones()}, "grad_centralization": True},
        ValueError,
        "grad_centralization of group 3 .* 'z'",
    ),
    "centralization no bool": (
        lambda opt: {"params": [ones(2, 2, 2)], "grad_centralization": None},
        TypeError,
        "grad_centralization of group 3 must be a bool",
    ),
    "iterator that raises": (lambda opt: {"params": map(raising, [7])}, LookupError, "no rate at 7"),
}


@pytest.mark.parametrize(("group", "error", "match"), ADDED.values(), ids=ADDED)
def test_groups_refused_when_added(pair, group, error, match):
    pair.refuses(error, match, lambda opt: opt.add_param_group(group(opt)))
    pair.goes_on_as_the_twin()


def test_a_group_can_be_added_after_one_was_refused(pair):
    rates = iter([0.5, 0.25, 0.125])
    pair.refuses(
        ValueError,
        "share memory",
        lambda opt: opt.add_param_group({"params": {"z": opt.params["x"][1:]}, "lr": rates}),
    )
    for opt, values in ((pair.opt, rates), (pair.twin, iter([0.5, 0.25, 0.125]))):
        opt.add_param_group({"params": {"z": ones()}, "lr": values})
    pair.gradients["z"] = ones()
    pair.goes_on_as_the_twin()


def test_tables_of_rates_have_one_length_however_they_come():
    opt = nl.Lamb([{"params": {"w": ones()}, "lr": [0.5, 0.25]}, {"params": {"x": ones()}}], 0.125)
    before = snapshot(opt)
    with pytest.raises(ValueError, match="group 0 has 2 values and group 2 has 3"):
        opt.add_param_group({"params": [ones()], "lr": [0.1, 0.1, 0.1]})
    with pytest.raises(ValueError, match="group 0 has 2 values and group 1 has 3"):
        opt.learning_rate = [0.1, 0.1, 0.1]
    assert snapshot(opt) == before


@pytest.mark.parametrize("name", ["decay_filter", "adapt_filter"])
def test_a_filter_that_fails_for_the_added_layer_changes_nothing(name):
    def fails_for_z(layer):
        if layer.name == "z":
            raise LookupError("z is unknown")
        return True

    pair = Pair(**{name: fails_for_z})
    pair.refuses(LookupError, "z is unknown", lambda opt: opt.add_param_group({"params": {"z": ones()}}))
    pair.goes_on_as_the_twin()


# -- load_state_dict ---------------------------------------------------------------------------------------------


def change(*path, to):
    """Set the entry of a state at `path`; without a value, remove it."""

    def damage(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = to

    return damage


def remove(*path):
    def damage(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return damage


STATES = {
    "format version": (change("format_version", to=3), "format_version"),
    "no format version": (remove("format_version"), "format_version"),
    "another optimizer": (change("optimizer", to="Momentum"), "optimizer"),
    "no layers": (remove("layers"), "layers"),
    "layers no dict": (change("layers", to=[]), "layers"),
    "a layer missing": (remove("layers", "y"), "'y'"),
    "a layer more": (change("layers", "z", to={}), "'z'"),
    "no step": (remove("layers", "y", "step"), "step"),
    "negative step": (change("layers", "y", "step", to=-1), "step"),
    "step True": (change("layers", "y", "step", to=True), "step"),
    "step 1.0": (change("layers", "y", "step", to=1.0), "step"),
    "huge step": (change("layers", "y", "step", to=2**70), "step"),
    "the last step": (
        change("layers", "y", "step", to=2**63 - 1),
        r"'step'\] must be an int >= 0 and <= 2\*\*62, not 9",
    ),
    "global_step huge": (change("global_step", to=2**62 + 1), "global_step"),
    "skipped_steps huge": (change("skipped_steps", to=2**63 - 1), "skipped_steps"),
    "a buffer missing": (remove("layers", "y", "v"), "'v'"),
    "a buffer more": (change("layers", "y", "u", to=ones()), "'u'"),
    "shape": (change("layers", "x", "m", to=ones(4)), r"'x'.*'m'.*float32.*\(3,\).*\(4,\)"),
    "dtype": (change("layers", "x", "m", to=ones(3, dtype=np.float64)), "'x'.*'m'.*float32.*float64"),
    "a list": (change("layers", "x", "m", to=[0.0, 0.0, 0.0]), "'x'.*'m'"),
    "global_step text": (change("global_step", to="1"), "global_step"),
    "global_step negative": (change("global_step", to=-1), "global_step"),
    "skipped_steps": (change("skipped_steps", to=None), "skipped_steps"),
    "an option missing": (remove("groups", 1, "eps"), r"state\['groups'\]\[1\] has no 'eps'"),
    "an option more": (change("groups", 1, "epsilon", to=0.5), r"\[1\] has an unexpected key 'epsilon'"),
    "a number more": (
        change("numbers", "beta1", to=0.5),
        r"state\['numbers'\] has an unexpected key 'beta1'",
    ),
    "a group no dict": (change("groups", 1, to=[]), r"state\['groups'\]\[1\] must be a dict, not list"),
    "rate negative": (change("groups", 1, "lr", to=-0.5), "lr"),
    "rate text": (change("groups", 1, "lr", to="0.5"), "lr"),
    "decay NaN": (change("groups", 1, "weight_decay", to=float("nan")), "weight_decay"),
    "too few groups": (remove("groups", 0), "groups.* 3 "),
    "groups a dict": (change("groups", to={}), "groups"),
}


@pytest.mark.parametrize(("damage", "match"), STATES.values(), ids=STATES)
def test_states_refused(pair, damage, match):
    # All that is not damaged differs from what the optimizer has, so that a partial load is seen.
    source = Pair()
    source.gradients = {name: -gradient for name, gradient in source.gradients.items()}
    source.step_both()
    source.opt.param_groups[0]["lr"] = 0.75
    state = source.opt.state_dict()
    state["groups"][1]["beta2"] = 0.5
    damage(state)
    kept = copy.deepcopy(state)
    pair.refuses(ValueError, match, lambda opt: opt.load_state_dict(state))
    assert frozen(state) == frozen(kept)
    pair.goes_on_as_the_twin()


def test_the_largest_count_goes_on(pair):
    state = pair.opt.state_dict()
    for layer in state["layers"].values():
        layer["step"] = 2**62
    state["global_step"] = state["skipped_steps"] = 2**62
    pair.opt.load_state_dict(state)
    pair.opt.step(pair.gradients)
    assert pair.opt.global_step == 2**62 + 1
    assert {layer["step"] for layer in pair.opt.state_dict()["layers"].values()} == {2**62 + 1}
    assert all(np.isfinite(array).all() for array in pair.opt.params.values())


@pytest.mark.parametrize("state", [None, [], "state", 3], ids=repr)
def test_what_is_no_state_is_refused(pair, state):
    pair.refuses(ValueError, "state must be a dict", lambda opt: opt.load_state_dict(state))


def test_a_state_of_another_model_is_refused(pair):
    other = nl.Lamb({"w": ones(), "x": ones(3), "y": ones(2, 1), "conv": ones(2, 2, 3)}, 0.125)
    pair.refuses(ValueError, "groups", lambda opt: opt.load_state_dict(other.state_dict()))
    momentum = nl.Momentum({"w": ones()}, 0.125, 0.9)
    pair.refuses(ValueError, "state", lambda opt: opt.load_state_dict(momentum.state_dict()))


# -- how messages read -------------------------------------------------------------------------------------------


def test_key_errors_read_well_in_a_traceback(pair):
    for action in (
        lambda: pair.opt.step({**pair.gradients, "v": ones()}),
        lambda: pair.opt.step({"w": ones()}),
        lambda: nl.Lamb([{"params": [ones()], "beta_1": 0.9}], 0.1),
    ):
        with pytest.raises(KeyError) as caught:
            action()
        shown = traceback.format_exception_only(caught.value)[-1]
        assert "\\" not in shown
        assert len(shown) < 200


def test_a_long_list_of_names_is_cut():
    opt = nl.Lamb({f"layer{k}": ones() for k in range(300)}, 0.1)
    with pytest.raises(KeyError, match="'layer4' and 295 more"):
        opt.step({"other": ones()})


@pytest.mark.parametrize("start", range(9))
def test_gradients_beside_a_parameter_are_taken_and_overlapping_ones_not(start):
    buffer = ones(12)
    opt = nl.Lamb({"w": buffer[4:8], "far": ones(4)}, 0.1)
    if start in (0, 8):
        opt.step([ones(4), buffer[start : start + 4]])
        assert opt.global_step == 1
    else:
        with pytest.raises(ValueError, match="gradient of 'far' shares memory with parameter 'w'"):
            opt.step([ones(4), buffer[start : start + 4]])
        assert buffer.tolist() == [1] * 12


def test_a_state_whose_options_the_parameters_cannot_hold_changes_nothing(pair):
    state = pair.opt.state_dict()
    state["groups"][0]["eps"] = 1e-60
    state["layers"]["w"]["m"][:] = 7
    state["global_step"] = 9
    pair.refuses(ValueError, "eps .*float32", lambda opt: opt.load_state_dict(state))
    pair.goes_on_as_the_twin()
