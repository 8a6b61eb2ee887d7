"""Checkpoints: they come back as they were, are written whole or not at all, and hold data alone."""

import json
import math
import os
import pickle
import stat
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from numba_lamb import checkpoint
from tests.helpers import frozen

names = st.text(max_size=5) | st.sampled_from(["array", "dict", "header", "a0", "tree", "format_version"])
dtypes = (
    nps.floating_dtypes(endianness="?")
    | nps.integer_dtypes(endianness="?")
    | nps.unsigned_integer_dtypes()
    | nps.boolean_dtypes()
    | nps.complex_number_dtypes()
    | nps.unicode_string_dtypes(max_len=3)
)
arrays = nps.arrays(dtypes, nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | arrays
nodes = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
trees = st.dictionaries(names, nodes, max_size=4)

TREE = {
    "step": 3,
    "layers": [{"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, None],
    "rate": 0.5,
    "on": True,
}


@pytest.mark.slow
@given(trees)
def test_what_is_saved_comes_back(tree):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.npz"
        checkpoint.save(file, tree)
        found = checkpoint.load(file)
        assert os.listdir(folder) == ["state.npz"]
    assert frozen(found) == frozen(tree)
    assert list(found) == list(tree)


ARRAYS = {
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(10.0)[::-3],
    "read-only": np.broadcast_to(np.float32(1), (2, 2)),
    "records": np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
    "dates": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "NaN with a payload": np.array([0x7FC12345], np.uint32).view(np.float32),
}


@pytest.mark.parametrize("given_array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_of_all_kinds_keep_their_bits(tmp_path, given_array):
    checkpoint.save(tmp_path / "a", {"x": given_array})
    assert frozen(checkpoint.load(tmp_path / "a")["x"]) == frozen(given_array)


@pytest.mark.parametrize(
    "number", [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, math.nan, 2**100, -1]
)
def test_numbers_keep_their_bits(tmp_path, number):
    checkpoint.save(tmp_path / "a", {"x": number})
    found = checkpoint.load(tmp_path / "a")["x"]
    assert repr(found) == repr(number)


def test_the_arrays_that_come_back_are_free(tmp_path):
    checkpoint.save(tmp_path / "a", TREE)
    found = checkpoint.load(tmp_path / "a")
    found["layers"][0]["w"][...] = 7
    checkpoint.save(tmp_path / "a", found)
    assert checkpoint.load(tmp_path / "a")["layers"][0]["w"].tolist() == [[7, 7, 7]] * 2


@pytest.mark.parametrize("as_path", [str, Path, os.fspath], ids=["str", "Path", "fspath"])
def test_the_file_has_the_very_name_that_was_given(tmp_path, as_path):
    file = as_path(tmp_path / "without ending")
    checkpoint.save(file, TREE)
    assert os.listdir(tmp_path) == ["without ending"]
    assert frozen(checkpoint.load(file)) == frozen(TREE)


def test_a_bare_name_is_written_where_we_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("a.npz", TREE)
    assert frozen(checkpoint.load("a.npz")) == frozen(TREE)


def test_a_long_name_is_as_good(tmp_path):
    file = tmp_path / ("x" * 255)
    checkpoint.save(file, TREE)
    assert frozen(checkpoint.load(file)) == frozen(TREE)


def test_a_file_is_readable_as_other_new_files_are(tmp_path):
    (tmp_path / "plain").touch()
    checkpoint.save(tmp_path / "a", TREE)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a")]
    assert modes[0] == modes[1]


# -- what cannot be saved ----------------------------------------------------------------------------------------

UNFIT = {
    "tuple": ({"x": (1, 2)}, r"tree\['x'\] is a tuple"),
    "NumPy scalar": ({"x": np.float64(1)}, r"tree\['x'\] is a float64"),
    "bytes": ({"x": b"1"}, r"tree\['x'\] is a bytes"),
    "complex": ({"x": 1j}, r"tree\['x'\] is a complex"),
    "function": ({"x": [1, {"y": len}]}, r"tree\['x'\]\[1\]\['y'\] is a builtin"),
    "object array": ({"x": np.array([None])}, r"tree\['x'\] is an array of Python objects"),
    "records of objects": ({"x": np.zeros(1, [("a", "O")])}, r"tree\['x'\] is an array of Python objects"),
    "masked array": ({"x": np.ma.array([1, 2], mask=[True, False])}, r"tree\['x'\] is a MaskedArray"),
    "int key": ({"x": {1: 2}}, r"keys of tree\['x'\] must be str, not int"),
    "root key": ({None: 2}, "keys of tree must be str, not NoneType"),
    "no dict": ([1, 2], "tree must be a dict, not list"),
}


@pytest.mark.parametrize(("tree", "match"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_held_is_refused_before_writing(tmp_path, tree, match):
    checkpoint.save(tmp_path / "a", TREE)
    before = (tmp_path / "a").read_bytes()
    for name in ("a", "b"):
        with pytest.raises(TypeError, match=match):
            checkpoint.save(tmp_path / name, tree)
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == before


def test_a_tree_without_end_is_refused(tmp_path):
    tree = {}
    tree["self"] = tree
    with pytest.raises((RecursionError, ValueError)):
        checkpoint.save(tmp_path / "a", tree)
    assert os.listdir(tmp_path) == []


# -- whole or not at all -----------------------------------------------------------------------------------------


def half_written(file, **given_arrays):
    file.write(b"PK\x03\x04 half")
    raise OSError(28, "No space left on device")


def fails(*arguments):
    raise OSError(5, "Input/output error")


def interrupted(*arguments, **keywords):
    raise KeyboardInterrupt


FAILURES = {
    "disk full": ("numba_lamb.checkpoint.np.savez", half_written, OSError),
    "interrupted while writing": ("numba_lamb.checkpoint.np.savez", interrupted, KeyboardInterrupt),
    "flush to disk fails": ("numba_lamb.checkpoint.os.fsync", fails, OSError),
    "renaming fails": ("numba_lamb.checkpoint.os.replace", fails, OSError),
    "interrupted at the renaming": ("numba_lamb.checkpoint.os.replace", interrupted, KeyboardInterrupt),
}


@pytest.mark.parametrize("there", [True, False], ids=["over an old file", "as a new file"])
@pytest.mark.parametrize(("place", "failure", "error"), FAILURES.values(), ids=FAILURES)
def test_a_write_that_fails_changes_nothing(tmp_path, monkeypatch, place, failure, error, there):
    if there:
        checkpoint.save(tmp_path / "a", TREE)
    with monkeypatch.context() as patch:
        patch.setattr(place, failure)
        with pytest.raises(error):
            checkpoint.save(tmp_path / "a", {"other": 1})
    assert os.listdir(tmp_path) == (["a"] if there else [])
    if there:
        assert frozen(checkpoint.load(tmp_path / "a")) == frozen(TREE)


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "a", TREE)
    events = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        events.append(("fsync", checkpoint.load(tmp_path / "a")["step"]))
        fsync(descriptor)

    def watched_replace(source, target):
        events.append(("replace", checkpoint.load(source)["step"], Path(source).parent == tmp_path))
        replace(source, target)

    monkeypatch.setattr("numba_lamb.checkpoint.os.fsync", watched_fsync)
    monkeypatch.setattr("numba_lamb.checkpoint.os.replace", watched_replace)
    checkpoint.save(tmp_path / "a", {"step": 4})
    assert events[:2] == [("fsync", 3), ("replace", 4, True)]
    assert checkpoint.load(tmp_path / "a") == {"step": 4}


def test_no_folder_is_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.save(tmp_path / "missing" / "a", TREE)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        checkpoint.save(tmp_path / "a", TREE)
    assert os.listdir(tmp_path) == ["a"]


# -- what cannot be loaded ---------------------------------------------------------------------------------------


def test_a_missing_file_is_called_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing here"):
        checkpoint.load(tmp_path / "nothing here")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(OSError, match="directory"):
        checkpoint.load(tmp_path)


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def with_header(file, header, **given_arrays):
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    with open(file, "wb") as opened:
        np.savez(opened, header=np.frombuffer(header, np.uint8), **given_arrays)


def empty_archive(file):
    zipfile.ZipFile(file, "w").close()


def plain_npy(file):
    with open(file, "wb") as opened:
        np.save(opened, np.ones(2))


def foreign_npz(file):
    with open(file, "wb") as opened:
        np.savez(opened, weights=np.ones(2))


def foreign_zip(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.npy", b"hello")


FOREIGN = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("not a checkpoint"),
    "npy": plain_npy,
    "npz": foreign_npz,
    "zip": foreign_zip,
    "empty zip": empty_archive,
    "header no JSON": lambda file: with_header(file, b"{"),
    "header no text": lambda file: with_header(file, b"\xff\xfe"),
    "header a number": lambda file: with_header(file, 1),
    "header a list": lambda file: with_header(file, [1]),
    "header null": lambda file: with_header(file, None),
    "header without version": lambda file: with_header(file, {"tree": {"dict": {}}}),
    "header without tree": lambda file: with_header(file, {"format_version": 1}),
    "header too deep": lambda file: with_header(file, b"[" * 100_000),
    "tree no dict": lambda file: with_header(file, {"format_version": 1, "tree": [1]}),
    "unknown node": lambda file: with_header(file, {"format_version": 1, "tree": {"tuple": []}}),
    "dict no dict": lambda file: with_header(file, {"format_version": 1, "tree": {"dict": [1]}}),
    "array missing": lambda file: with_header(
        file, {"format_version": 1, "tree": {"dict": {"x": {"array": "a0"}}}}
    ),
    "array no name": lambda file: with_header(
        file, {"format_version": 1, "tree": {"dict": {"x": {"array": []}}}}
    ),
    "version 2": lambda file: with_header(file, {"format_version": 2, "tree": "anything"}),
    "version true": lambda file: with_header(file, {"format_version": True, "tree": {"dict": {}}}),
    "version null": lambda file: with_header(file, {"format_version": None, "tree": {"dict": {}}}),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_checkpoint_is_a_value_error_with_the_file_name(tmp_path, write):
    file = tmp_path / "state.npz"
    write(file)
    with pytest.raises(ValueError, match=r"state\.npz") as caught:
        checkpoint.load(file)
    assert type(caught.value) is ValueError


def test_a_newer_file_says_which_version_it_has(tmp_path):
    with_header(tmp_path / "a", {"format_version": 7, "tree": "anything"})
    with pytest.raises(ValueError, match="has format_version 7; this numba-lamb reads version 1"):
        checkpoint.load(tmp_path / "a")


def test_nothing_is_unpickled(tmp_path):
    mark = str(tmp_path / "mark")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Trap(mark)))
    objects = np.empty(1, object)
    objects[0] = Trap(mark)
    with open(tmp_path / "npz", "wb") as file:
        np.savez(file, header=objects)
    header = {"format_version": 1, "tree": {"dict": {"x": {"array": "a0"}}}}
    with_header(tmp_path / "hidden", header, a0=objects)
    for name in ("pickle", "npz", "hidden"):
        with pytest.raises(ValueError, match=name):
            checkpoint.load(tmp_path / name)
    assert not os.path.exists(mark)
    pickle.loads(pickle.dumps(Trap(mark)))
    assert os.path.exists(mark)


def saved(folder):
    file = folder / "state.npz"
    checkpoint.save(file, TREE)
    return file, file.read_bytes()


def test_a_file_cut_anywhere_is_damaged(tmp_path):
    file, whole = saved(tmp_path)
    for length in range(0, len(whole), 3):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"state\.npz"):
            checkpoint.load(file)


def test_one_flipped_bit_is_harmless_or_told(tmp_path):
    file, whole = saved(tmp_path)
    told = []
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            found = checkpoint.load(file)
        except ValueError as error:
            told.append(str(error))
        else:
            assert frozen(found) == frozen(TREE)
    assert len(told) > len(whole) // 2
    assert all("state.npz" in message for message in told)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.npz"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.npz"):
            checkpoint.load(file)


def test_files_are_closed_after_a_failed_load(tmp_path):
    file, whole = saved(tmp_path)
    file.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"state\.npz"):
        checkpoint.load(file)
    if os.path.isdir("/proc/self/fd"):
        links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        assert str(file) not in links
