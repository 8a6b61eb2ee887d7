"""NumPy arrays that are not what they were at the step before: every one is looked at in every step."""

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.kernels.cpu.object_reader import UNUSUAL
from numba_lamb.memory import array_reader
from numba_lamb.memory.array_reader import READABLE, WRITABLE, ArrayReader, fields_are_known
from tests.helpers import frozen, snapshot

MAKERS: dict[str, Callable[..., Any]] = {
    "lamb": lambda params: nl.Lamb(params, 0.1),
    "lans": lambda params: nl.Lans(params, 0.1),
    "momentum": lambda params: nl.Momentum(params, 0.1, 0.9),
    "lars": lambda params: nl.Lars(nl.Momentum(params, 0.1, 0.9), coefficient=0.1),
}


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype=dtype)


@pytest.fixture(params=[True, False], ids=["structs", "attributes"], autouse=True)
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of looking at arrays must find the same."""
    monkeypatch.setattr(array_reader, "fields_are_known", lambda: request.param)
    return bool(request.param)


# What a user can do to an array, and what the next step says of it, if it must refuse.
def resized(array: np.ndarray) -> None:
    array.resize(10, refcheck=False)


def cut(array: np.ndarray) -> None:
    array.resize(2, refcheck=False)


def restored(array: np.ndarray) -> None:
    array.__setstate__(((3,), np.dtype(np.float32), False, np.zeros(3, np.float32).tobytes()))


def restored_as_complex(array: np.ndarray) -> None:
    array.__setstate__(((4,), np.dtype(np.complex64), False, np.zeros(4, np.complex64).tobytes()))


def retyped(array: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        array.dtype = np.int32


def reshaped(array: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        array.shape = (2, 2)


def strided(array: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        array.strides = (0,)


CHANGES = {
    "resized": (resized, r"\(10,\)"),
    "cut": (cut, r"\(2,\)"),
    "restored": (restored, r"\(3,\)"),
    "restored as complex": (restored_as_complex, "complex64"),
    "retyped": (retyped, "int32"),
    "reshaped": (reshaped, r"\(2, 2\)"),
    "strided": (strided, "strides"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("whose", ["parameter", "gradient"])
@pytest.mark.parametrize("kind", MAKERS)
def test_an_array_that_is_no_longer_what_it_was_is_refused_by_name(
    kind: str, whose: str, change: str
) -> None:
    first, second, gradient = ones(4), ones(4), ones(4)
    opt = MAKERS[kind]({"first": first, "second": second})
    for _ in range(2):
        opt.step({"first": ones(4), "second": gradient})
    changed, says = CHANGES[change]
    changed(second if whose == "parameter" else gradient)
    before = snapshot(opt)
    with pytest.raises((TypeError, ValueError), match=rf"{whose}.*'second'.*{says}"):
        opt.step({"first": ones(4), "second": gradient})
    assert snapshot(opt) == before


@pytest.mark.parametrize("kind", MAKERS)
def test_a_parameter_that_got_other_memory_is_updated_there(kind: str) -> None:
    w, beside, twin = ones(5), ones(5), ones(5)
    opt, other = MAKERS[kind]([w]), MAKERS[kind]([twin])
    places: set[int] = set()
    fillers = []
    for _ in range(40):
        if len(places) > 2:
            break
        places.add(w.ctypes.data)
        opt.step([np.arange(5, dtype=np.float32)])
        other.step([np.arange(5, dtype=np.float32)])
        assert w.tobytes() == twin.tobytes()
        w.resize(100_000, refcheck=False)
        # In the place that it left.
        fillers.append(ones(5))
        w.resize(5, refcheck=False)
    assert len(places) > 1
    with pytest.raises(ValueError, match="gradient of 'param_0' shares memory with parameter 'param_0'"):
        opt.step([w])
    assert beside.tolist() == [1] * 5


def test_the_gradient_list_may_be_emptied_while_it_is_used() -> None:
    gradients: list[np.ndarray] = [ones(4)]

    def emptied(step: int) -> float:
        gradients.clear()
        return 0.1

    w, twin = ones(4), ones(4)
    opt = nl.Lamb([w], emptied)
    with pytest.raises(ValueError, match="gradients has 0 entries for 1 parameters"):
        opt.step(gradients)
    gradients.append(ones(4))
    stop = threading.Event()

    def spoil() -> None:
        while not stop.is_set():
            kept = gradients.copy()
            gradients.clear()
            gradients.extend(kept)

    opt, other = nl.Lamb([w], 0.1), nl.Lamb([twin], 0.1)
    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        for _ in range(300):
            try:
                opt.step(gradients)
            except ValueError:  # it was empty
                pass
            else:
                other.step([ones(4)])
    finally:
        stop.set()
        thread.join()
    assert w.tobytes() == twin.tobytes()


class Fickle(list):
    """A list that gives other things than it holds."""

    def __init__(self, *rounds: list[Any]) -> None:
        super().__init__(rounds[0])
        self.rounds = list(rounds)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rounds.pop(0) if self.rounds else [])


def test_a_list_with_an_iterator_of_its_own_is_asked_once() -> None:
    w = ones(4)
    opt = nl.Momentum([w], 0.1, 0.0)
    opt.step(Fickle([ones(4)], [None], [ones(3)]))
    assert w.tolist() == pytest.approx([0.9] * 4)


class Liar(np.ndarray):
    """An array that says that it lies elsewhere, is smaller, and is of another dtype."""

    elsewhere = np.zeros(4, dtype=np.float32)

    @property
    def __array_interface__(self) -> Any:  # type: ignore[override]
        return {"shape": (1,), "typestr": "<f8", "data": (self.elsewhere.ctypes.data, False), "version": 3}

    @property
    def ctypes(self) -> Any:
        return self.elsewhere.ctypes

    @property
    def flags(self) -> Any:
        return self.elsewhere[::2].flags


def test_what_an_array_is_counts_and_not_what_its_class_says() -> None:
    w, gradient = ones(4).view(Liar), np.arange(4, dtype=np.float32).view(Liar)
    opt = nl.Momentum({"w": w}, 0.1, 0.0)
    for _ in range(2):
        opt.step({"w": gradient})
    assert np.asarray(w, dtype=np.float64).tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4])
    assert Liar.elsewhere.tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"gradient of 'w'.*\(3,\)"):
        opt.step({"w": ones(3).view(Liar)})


EVENTS = st.lists(
    st.tuples(st.sampled_from([*CHANGES, "new", "same", "none"]), st.integers(0, 2)), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_any_sequence_of_changes_gives_the_step_of_the_arrays_as_they_are(events: Any) -> None:
    """Gradients change at random; a step is that of an optimizer that never saw them before, or is refused."""
    params, twins = [ones(4) for _ in range(3)], [ones(4) for _ in range(3)]
    opt, other = nl.Momentum(params, 0.1, 0.5), nl.Momentum(twins, 0.1, 0.5)
    gradients: list[Any] = [np.full(4, k, dtype=np.float32) for k in range(3)]
    for event, k in events:
        if event == "new":
            gradients[k] = np.full(4, 5, dtype=np.float32)
        elif event == "none":
            gradients[k] = None
        elif event != "same" and gradients[k] is not None:
            try:
                CHANGES[event][0](gradients[k])
            except (ValueError, TypeError):
                continue  # what was done before does not allow it
        fits = all(
            g is None or (g.dtype == np.float32 and g.shape == (4,) and g.flags.c_contiguous)
            for g in gradients
        )
        if not fits:
            before = frozen(opt.state_dict())
            with pytest.raises((TypeError, ValueError)):
                opt.step(gradients)
            assert frozen(opt.state_dict()) == before
            gradients[k] = np.full(4, 2, dtype=np.float32)
        opt.step(gradients)
        other.step([None if g is None else g.copy() for g in gradients])
        assert frozen(params) == frozen(twins)


def test_structs_are_read_on_this_interpreter(reading: bool) -> None:
    """The reading that the figures are of is not given up unnoticed."""
    fields_are_known.cache_clear()
    assert fields_are_known()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_read_is_what_attributes_tell(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=5)))
    dtype = np.dtype(data.draw(st.sampled_from(["f4", "f8", "i4", ">f4", "f2", "?"])))
    offset, step = data.draw(st.integers(0, 3)), data.draw(st.sampled_from([1, 1, 1, 2]))
    wanted = data.draw(st.sampled_from([shape, shape, (*shape, 1), (3,)]))
    size = int(np.prod(shape, dtype=np.int64))
    raw = np.zeros(size * dtype.itemsize * step + offset, dtype=np.uint8)[offset:]
    array = raw.view(dtype)[::step][:size].reshape(shape)
    array.flags.writeable = data.draw(st.booleans())
    for flags in (READABLE, WRITABLE):
        reader = ArrayReader([wanted], [np.dtype(np.float32)], flags, trusted=True)
        (found,), _ = reader.read((array,))
        kept = (
            array.flags.c_contiguous and array.flags.aligned and (array.flags.writeable or flags == READABLE)
        )
        fits = kept and array.dtype == np.float32 and array.shape == wanted
        assert found == (UNUSUAL if not fits else array.ctypes.data if array.size else 16)
