"""Checkpoints as files: hostile and damaged ones, modes, links, leftovers, savers that meet, deep trees."""

import io
import os
import stat
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from numba_lamb import checkpoint
from tests.core.test_checkpoint import TREE, with_header
from tests.helpers import frozen

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")


def npy(array, promised=None):
    """Return the bytes of an ``.npy`` file, whose header promises another shape where that is given."""
    file = io.BytesIO()
    np.save(file, array)
    content = file.getvalue()
    if promised is None:
        return content
    shape = repr(array.shape).encode()
    cut = content.index(b"\n") + 1
    changed = content[:cut].replace(shape, repr(promised).encode()).rstrip(b" \n")
    return changed.ljust(cut - 1) + b"\n" + content[cut:]


def archive_of(file, members, **options):
    header = npy(np.frombuffer(b'{"format_version": 1, "tree": {"dict": {"x": {"array": "a0"}}}}', np.uint8))
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in {"header.npy": header, **members}.items():
            archive.writestr(name, content)


def overlapping(file):
    """Many entries of the directory for one member."""
    archive_of(file, {"a0.npy": npy(np.zeros(1_000_000))})
    with zipfile.ZipFile(file, "a") as archive:
        (member,) = (one for one in archive.infolist() if one.filename == "a0.npy")
        for k in range(1, 50):
            twin = zipfile.ZipInfo(f"a{k}.npy")
            for field in ("header_offset", "compress_size", "file_size", "CRC"):
                setattr(twin, field, getattr(member, field))
            archive.filelist.append(twin)
        archive._didModify = True


ZEROS = np.zeros(4_000_000)
HOSTILE = {
    "deflated": lambda file: archive_of(file, {"a0.npy": npy(ZEROS)}, compression=zipfile.ZIP_DEFLATED),
    "bzip2": lambda file: archive_of(file, {"a0.npy": npy(ZEROS)}, compression=zipfile.ZIP_BZIP2),
    "header promises more": lambda file: archive_of(file, {"a0.npy": npy(np.zeros(2), (4_000_000,))}),
    "header promises far more": lambda file: archive_of(file, {"a0.npy": npy(np.zeros(2), (10**18, 10**18))}),
    "header promises less": lambda file: archive_of(file, {"a0.npy": npy(np.zeros(9), (2,))}),
    "negative shape": lambda file: archive_of(file, {"a0.npy": npy(np.zeros(4), (-2, -2))}),
    "no array": lambda file: archive_of(file, {"a0.npy": b"hello"}),
    "no array, another name": lambda file: archive_of(file, {"a0": npy(np.zeros(2))}),
    "overlapping members": overlapping,
}


@pytest.mark.parametrize("write", HOSTILE.values(), ids=HOSTILE)
def test_a_file_takes_no_more_memory_than_it_has_bytes(tmp_path, write):
    file = tmp_path / "state.npz"
    write(file)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"state\.npz"):
            checkpoint.load(file)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_two_members_of_one_name_are_refused(tmp_path):
    archive_of(tmp_path / "a", {"a0.npy": npy(np.zeros(2))})
    with zipfile.ZipFile(tmp_path / "a", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a0.npy", npy(np.ones(2)))
    with pytest.raises(ValueError, match="one name"):
        checkpoint.load(tmp_path / "a")


def test_messages_do_not_repeat_long_content(tmp_path):
    with_header(tmp_path / "kind", {"format_version": 1, "tree": {"x" * 100_000: 1}})
    with_header(tmp_path / "version", {"format_version": "x" * 100_000, "tree": 1})
    for name in ("kind", "version"):
        with pytest.raises(ValueError, match=name) as caught:
            checkpoint.load(tmp_path / name)
        assert len(str(caught.value)) < 1000


def test_any_damage_is_told_or_harmless(tmp_path):
    file = tmp_path / "state.npz"
    checkpoint.save(file, TREE)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    told = []
    for k in range(400):
        content = bytearray(whole)
        start, length = int(rng.integers(len(whole))), int(rng.integers(1, 200))
        end = min(start + length, len(whole))
        match k % 5:
            case 0:
                for _ in range(3):
                    content[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
            case 1:
                content[start:end] = bytes(end - start)
            case 2:
                content[start:end] = rng.bytes(end - start)
            case 3:
                del content[start:end]
            case 4:
                content[start:start] = content[start:end]
        file.write_bytes(content)
        try:
            found = checkpoint.load(file)
        except ValueError as error:
            told.append(error)
        else:
            assert frozen(found) == frozen(TREE)
    assert len(told) > 300
    assert all(type(error) is ValueError and "state.npz" in str(error) for error in told)


# Modes, links and names


@POSIX
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o444, 0o664])
def test_a_file_that_is_replaced_hands_on_its_mode(tmp_path, mode):
    checkpoint.save(tmp_path / "a", {"old": 1})
    (tmp_path / "a").chmod(mode)
    before = os.umask(0o077)
    try:
        checkpoint.save(tmp_path / "a", TREE)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert frozen(checkpoint.load(tmp_path / "a")) == frozen(TREE)


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_files_mode_follows_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        checkpoint.save(tmp_path / "a", TREE)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_owner_and_group_stay(tmp_path):
    checkpoint.save(tmp_path / "a", {"old": 1})
    os.chown(tmp_path / "a", 12345, 23456)
    checkpoint.save(tmp_path / "a", TREE)
    found = (tmp_path / "a").stat()
    assert (found.st_uid, found.st_gid) == (12345, 23456)


@POSIX
def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    for name, target in {"absolute": tmp_path / "disk" / "a", "relative": Path("disk", "b")}.items():
        (tmp_path / name).symlink_to(target)
        for tree in ({"old": 1}, TREE):
            checkpoint.save(tmp_path / name, tree)
            assert (tmp_path / name).is_symlink()
            assert frozen(checkpoint.load(tmp_path / name)) == frozen(tree)
    assert sorted(os.listdir(tmp_path)) == ["absolute", "disk", "relative"]
    assert sorted(os.listdir(tmp_path / "disk")) == ["a", "b"]
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"):
        checkpoint.save(tmp_path / "round", TREE)


def test_a_path_may_be_bytes(tmp_path):
    file = os.fsencode(tmp_path / "a")
    checkpoint.save(file, TREE)
    assert frozen(checkpoint.load(file)) == frozen(TREE)
    assert os.listdir(tmp_path) == ["a"]


# Leftovers

SAVER = """
import os, sys, time
import numpy as np
from numba_lamb import checkpoint
def held(file, **arrays):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
    file.write(b" and whole")
checkpoint.np.savez = held
checkpoint.save(sys.argv[1], {"x": 1})
"""


@pytest.fixture(name="saver")
def saver_in_another_process(tmp_path):
    started = []

    def start(name):
        command = [sys.executable, "-c", SAVER, str(tmp_path / name)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
@POSIX
def test_leftovers_of_killed_savers_go_and_those_of_living_ones_stay(tmp_path, saver):
    alive, killed, elsewhere = saver("a"), saver("a"), saver("b")
    killed.kill()
    killed.wait()
    elsewhere.kill()
    elsewhere.wait()
    assert len(os.listdir(tmp_path)) == 3
    checkpoint.save(tmp_path / "a", TREE)
    assert len(os.listdir(tmp_path)) == 3, "a, what is being written for it, and what was left of b"
    checkpoint.save(tmp_path / "b", TREE)
    assert len(os.listdir(tmp_path)) == 3, "a, b, and what is being written for a"
    alive.communicate("go on\n")
    assert alive.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == b"half and whole"


RACER = """
import sys
import numpy as np
from numba_lamb import checkpoint
for k in range(150):
    checkpoint.save(sys.argv[1], {"x": np.full(500, k)})
    assert len(set(checkpoint.load(sys.argv[1])["x"].tolist())) == 1
"""


@pytest.mark.slow
@POSIX
def test_savers_that_meet_do_not_remove_each_others_files(tmp_path):
    command = [sys.executable, "-c", RACER, str(tmp_path / "a")]
    racing = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in racing[1:]:
        assert (process.communicate()[1], process.returncode) == ("", 0)
    racing[0].communicate()
    assert racing[0].returncode == 0
    assert os.listdir(tmp_path) == ["a"]


# Trees without end


def nested(levels, step):
    tree = {}
    for _ in range(levels):
        tree = step(tree)
    return {"root": tree}


@pytest.mark.parametrize("step", [lambda tree: {"x": tree}, lambda tree: [tree]], ids=["dicts", "lists"])
def test_a_tree_may_be_deep_but_not_too_deep(tmp_path, step):
    deepest = nested(checkpoint.MAX_DEPTH - 2, step)
    checkpoint.save(tmp_path / "a", deepest)
    assert checkpoint.load(tmp_path / "a") == deepest
    for levels in (checkpoint.MAX_DEPTH - 1, 100_000):
        with pytest.raises(
            ValueError, match="at most 200 levels and not contain itself, got more at tree"
        ) as caught:
            checkpoint.save(tmp_path / "b", nested(levels, step))
        assert len(str(caught.value)) < 400
    assert os.listdir(tmp_path) == ["a"]


def test_trees_that_contain_themselves(tmp_path):
    of_dicts, of_lists = {}, []
    of_dicts["self"] = of_dicts
    of_lists += [of_lists, of_lists]
    for tree in (of_dicts, {"x": of_lists}):
        with pytest.raises(ValueError, match="not contain itself"):
            checkpoint.save(tmp_path / "a", tree)
    assert os.listdir(tmp_path) == []
