"""What a rate may be, and its value at a step."""

from array import array
from collections import deque
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_lamb.rates import Rate, RateCache
from tests.helpers import installed

jax, torch = installed("jax"), installed("torch")

rates = st.floats(0, 1e300, allow_nan=False)
tables = st.lists(rates, max_size=8)


@given(rates)
def test_a_number_is_the_same_at_every_step(number):
    rate = Rate(number, "rate")
    assert rate(0) == rate(10**12) == rate.number == number
    assert rate.given is number
    assert rate.length is None


NUMBERS = {
    "int": 2,
    "fraction": Fraction(1, 4),
    "float16": np.float16(0.25),
    "float32": np.float32(0.25),
    "longdouble": np.longdouble(0.25),
    "uint8": np.uint8(2),
    "0-d array": np.array(0.25),
    "0-d float32": np.array(0.25, np.float32),
    "0-d int": np.array(2),
    **({"0-d torch": torch.tensor(0.25)} if torch else {}),
    **({"0-d jax": jax.numpy.array(0.25)} if jax else {}),
}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_real_numbers_of_any_kind_become_floats(number):
    value = Rate(number, "rate")(3)
    assert type(value) is float
    assert value == float(number)


SEQUENCES = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "array.array": lambda values: array("d", values),
    "array": np.array,
    "float32 array": lambda values: np.array(values, np.float32),
    "object array": lambda values: np.array(values, object),
    "strided": lambda values: np.repeat(values, 3)[::3],
    **({"torch": torch.tensor} if torch else {}),
    **({"jax": jax.numpy.array} if jax else {}),
}
ITERABLES = {
    "iterator": iter,
    "generator": lambda values: (value for value in values),
    "map": lambda values: map(float, values),
    "dict values": lambda values: dict(enumerate(values)).values(),
}
VALUES = [0.5, 0.25, 0.0, 0.125]


@pytest.mark.parametrize("make", {**SEQUENCES, **ITERABLES}.values(), ids=[*SEQUENCES, *ITERABLES])
@pytest.mark.parametrize("steps", [[0, 1, 2, 3], [3, 0, 2, 2, 1]], ids=["in order", "in any order"])
def test_tables_have_one_value_per_step(make, steps):
    rate = Rate(make(VALUES), "rate")
    found = [rate(step) for step in steps]
    assert found == [VALUES[step] for step in steps]
    assert all(type(value) is float for value in found)
    for _ in range(2):
        with pytest.raises(
            IndexError, match=r"rate is a table of 4 values and has none for step 4 .*hold_last"
        ):
            rate(4)
    assert rate(0) == 0.5


@pytest.mark.parametrize("make", SEQUENCES.values(), ids=SEQUENCES)
def test_sequences_know_their_length_and_have_no_number(make):
    rate = Rate(make(VALUES), "rate")
    assert rate.length == 4
    assert rate.number is None


def test_a_range_is_a_table():
    assert [Rate(range(3), "rate")(step) for step in range(3)] == [0, 1, 2]


@given(tables, st.lists(st.integers(0, 9), max_size=12))
def test_a_list_and_a_generator_answer_alike(table, steps):
    listed, pulled = Rate(table, "rate"), Rate((value for value in table), "rate")
    for step in steps:
        assert answer(listed, step) == answer(pulled, step)


def answer(rate, step):
    try:
        return rate(step)
    except IndexError as error:
        return str(error)


def test_iterators_are_pulled_as_far_as_needed():
    pulled = []

    def endless():
        while True:
            pulled.append(0.5)
            yield 0.5

    rate = Rate(endless(), "rate")
    assert len(pulled) == 0
    rate(2)
    assert len(pulled) == 3
    rate(1)
    assert len(pulled) == 3


@pytest.mark.parametrize("error", [LookupError("lost"), KeyboardInterrupt()], ids=repr)
def test_an_iterator_that_raises_is_heard_and_keeps_what_it_gave(error):
    def fails_after_one():
        yield 0.5
        raise error

    rate = Rate(fails_after_one(), "rate")
    assert rate(0) == 0.5
    with pytest.raises(type(error)) as first:
        rate(1)
    assert first.value is error
    for step in (1, 2, 1):
        message = (
            f"^rate is an iterator that raised {type(error).__name__} at step 1 and gives no more values; "
        )
        with pytest.raises(RuntimeError, match=message) as later:
            rate(step)
        assert later.value.__cause__ is error
    assert rate(0) == 0.5


def test_an_iterator_that_can_go_on_does():
    class Flaky:
        calls = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.calls += 1
            if self.calls == 2:
                raise OSError("try again")
            if self.calls == 4:
                raise StopIteration
            return 0.5

    rate = Rate(Flaky(), "rate")
    with pytest.raises(OSError, match="try again"):
        rate(1)
    assert rate(1) == 0.5
    with pytest.raises(IndexError, match="a table of 2 values"):
        rate(2)


ROUNDED = [-5e-324, -2.96e-20, -1e-15, -1e-12, Fraction(-1, 10**13), np.float32(-1e-13), np.float64(-1e-16)]


@pytest.mark.parametrize("value", ROUNDED, ids=repr)
def test_a_rate_below_0_by_rounding_is_0(value):
    forms = [
        value,
        [value],
        np.array([float(value)]),
        np.array(float(value)),
        iter([value]),
        lambda step: value,
    ]
    assert [Rate(form, "rate")(0) for form in forms] == [0.0] * len(forms)


def test_tables_and_0d_arrays_are_read_live():
    table, number = [0.5], np.array(0.5)
    by_table, by_number = Rate(table, "rate"), Rate(number, "rate")
    table[0] = 0.25
    number[...] = 0.125
    assert (by_table(0), by_number(0)) == (0.25, 0.125)
    number[...] = -1
    with pytest.raises(ValueError, match=r"rate at step 7 must be a number >= 0 and finite, got -1.0"):
        by_number(7)


def test_a_callable_gets_the_step_as_an_int():
    seen = []
    rate = Rate(lambda step: seen.append(step) or 0.5, "rate")
    assert seen == []
    assert rate(3) == 0.5
    assert seen == [3]
    assert type(seen[0]) is int


def test_what_is_callable_and_iterable_is_called():
    assert Rate(np.poly1d([2.0, 1.0]), "rate")(3) == 7.0


def test_an_exception_of_a_callable_passes_through():
    def fails(step):
        raise ZeroDivisionError(f"at {step}")

    with pytest.raises(ZeroDivisionError, match="at 5"):
        Rate(fails, "rate")(5)


NO_RATES = {
    "negative": (-1, ValueError),
    "small negative": (-1.1e-12, ValueError),
    "NaN": (float("nan"), ValueError),
    "infinity": (float("inf"), ValueError),
    "negative fraction": (Fraction(-1, 3), ValueError),
    "beyond floats": (10**400, ValueError),
    "bool": (False, TypeError),
    "NumPy bool": (np.False_, TypeError),
    "0-d bool": (np.array(False), TypeError),
    "complex": (1j, TypeError),
    "complex64": (np.complex64(1), TypeError),
    "0-d complex": (np.array(1j), TypeError),
    "None": (None, TypeError),
    "0-d object": (np.array(None), TypeError),
    "object": (object(), TypeError),
    "text": ("0.1", ValueError),
    "0-d text": (np.array("0.1"), TypeError),
    "bytes": (b"0.1", TypeError),
    "bytearray": (bytearray(b"0.1"), TypeError),
    "dict": ({}, TypeError),
    "set": ({0.1}, TypeError),
    "frozenset": (frozenset([0.1]), TypeError),
    "matrix": (np.ones((1, 2)), ValueError),
    **({"torch matrix": (torch.ones(1, 2), ValueError)} if torch else {}),
    "date": (np.datetime64("2020-01-01"), TypeError),
}


@pytest.mark.parametrize(("value", "error"), NO_RATES.values(), ids=NO_RATES)
def test_refusals_name_the_argument(value, error):
    with pytest.raises(error, match=r"^lr of group 3 ") as caught:
        Rate(value, "lr of group 3")
    assert caught.type is error


NO_VALUES = {
    "negative": (-1.0, ValueError),
    "NaN": (np.float32("nan"), ValueError),
    "infinity": (float("inf"), ValueError),
    "beyond floats": (10**400, ValueError),
    "bool": (True, TypeError),
    "NumPy bool": (np.True_, TypeError),
    "text": ("0.1", TypeError),
    "NumPy text": (np.str_("0.1"), TypeError),
    "bytes": (b"1", TypeError),
    "None": (None, TypeError),
    "complex": (0j, TypeError),
    "complex64": (np.complex64(0), TypeError),
    "0-d complex": (np.array(0j), TypeError),
    "list": ([0.1], TypeError),
    "array of one": (np.array([0.1]), TypeError),
    **({"torch vector": (torch.ones(2), TypeError)} if torch else {}),
}


@pytest.mark.parametrize(("value", "error"), NO_VALUES.values(), ids=NO_VALUES)
def test_refusals_of_a_value_name_the_step(value, error):
    for given_rate in ([value], lambda step: value, iter([value])):
        with pytest.raises(error, match=r"^lr of group 3 at step 0 must be ") as caught:
            Rate(given_rate, "lr of group 3")(0)
        assert caught.type is error


@pytest.mark.parametrize(
    "table", [np.array([True]), np.array(["0.1"]), np.array([1j])], ids=["bool", "text", "complex"]
)
def test_arrays_of_what_is_no_number_are_refused(table):
    with pytest.raises(TypeError, match=r"^rate "):
        Rate(table, "rate")(0)


def test_a_masked_value_is_not_a_rate():
    rate = Rate(np.ma.array([0.5, 0.25], mask=[False, True]), "rate")
    assert rate(0) == 0.5
    with pytest.raises((TypeError, ValueError), match=r"^rate at step 1 "):
        rate(1)


# -- RateBook ----------------------------------------------------------------------------------------------------


def test_a_slot_keeps_its_rate_while_what_is_given_is_the_same_object():
    book = RateCache()
    table = [0.5]
    rate = book.get("a", table, "rate")
    assert book.get("a", table, "rate") is rate
    assert book.get("a", [0.5], "rate") is not rate


def test_one_generator_in_two_slots_is_pulled_once_per_step():
    book = RateCache()
    source = iter([0.5, 0.25])
    one, other = book.get("a", source, "rate a"), book.get("b", source, "rate b")
    assert (one(0), other(0), one(1), other(1)) == (0.5, 0.5, 0.25, 0.25)


def test_a_refused_rate_leaves_the_slot_as_it_was():
    book = RateCache()
    rate = book.get("a", 0.5, "rate")
    with pytest.raises(ValueError, match="rate"):
        book.get("a", -0.5, "rate")
    assert book.get("a", rate.given, "rate") is rate


@given(st.lists(st.tuples(st.sampled_from("ab"), rates), max_size=20))
def test_a_slot_has_what_was_given_last(entries):
    book = RateCache()
    for slot, number in entries:
        assert book.get(slot, number, "rate")(0) == number
