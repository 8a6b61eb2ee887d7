"""Cache entries: any damage is a miss, and what another user may have written is never read."""

import os
import pickle
import stat
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.serialize import dumps

from numba_lamb import _cache, _private
from tests.helpers import run_python

PAYLOAD = bytes(range(256)) * 8
POSIX = pytest.mark.skipif(not _private._HAS_OWNERS, reason="files have no owners here")
ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)


@pytest.fixture(name="entry")
def written_entry(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "kernel.nbc"
    _private.write(path, PAYLOAD)
    assert _private.read(path) == PAYLOAD
    return path


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """Return `whole` with a bit flipped, a block zeroed or of noise, cut, empty, or with a piece twice."""
    content = bytearray(whole)
    start, length = int(rng.integers(len(whole))), int(rng.integers(1, 512))
    match rng.integers(6):
        case 0:
            content[start] ^= 1 << int(rng.integers(8))
        case 1:
            content[start : start + length] = bytes(len(content[start : start + length]))
        case 2:
            content[start : start + length] = rng.bytes(len(content[start : start + length]))
        case 3:
            del content[start:]
        case 4:
            content.clear()
        case 5:
            content[start:start] = content[start : start + length]
    return bytes(content)


def test_any_damage_is_a_miss(entry: Path) -> None:
    whole = entry.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(500):
        content = damaged(whole, rng)
        entry.write_bytes(content)
        assert _private.read(entry) == (PAYLOAD if content == whole else None)


def test_an_entry_under_another_name_is_a_miss(entry: Path) -> None:
    other = entry.with_name("other.nbc")
    entry.rename(other)
    assert _private.read(other) is None


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o000, 0o077])
def test_the_folder_and_its_files_are_this_users_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        _private.write(tmp_path / "cache" / "kernel.nbc", PAYLOAD)
    finally:
        os.umask(before)
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cache", tmp_path / "cache" / "kernel.nbc")
    ]
    assert modes == [0o700, 0o600]
    assert _private.read(tmp_path / "cache" / "kernel.nbc") == PAYLOAD


@POSIX
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_not_read(entry: Path, mode: int) -> None:
    entry.parent.chmod(mode)
    assert _private.read(entry) is None
    with pytest.raises(PermissionError, match=f"must be writable by its owner alone, got mode {mode:04o}"):
        _private.write(entry, PAYLOAD)
    assert [path.name for path in entry.parent.iterdir()] == ["kernel.nbc"]


@POSIX
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_not_read_and_is_written_anew(entry: Path, mode: int) -> None:
    entry.chmod(mode)
    assert _private.read(entry) is None
    _private.write(entry, PAYLOAD)
    assert _private.read(entry) == PAYLOAD


@ROOT
@pytest.mark.parametrize("whose", ["file", "folder"])
def test_another_users_files_are_not_read(entry: Path, whose: str) -> None:
    os.chown(entry if whose == "file" else entry.parent, 12345, -1)
    assert _private.read(entry) is None


@POSIX
def test_links_pipes_and_folders_are_misses_and_do_not_keep_us_waiting(entry: Path) -> None:
    content = entry.read_bytes()
    elsewhere = entry.parent.parent / "kernel.nbc"
    elsewhere.write_bytes(content)
    entry.unlink()
    entry.symlink_to(elsewhere)
    assert _private.read(entry) is None
    _private.write(entry, PAYLOAD)
    assert _private.read(entry) == PAYLOAD
    entry.unlink()
    os.mkfifo(entry)
    assert _private.read(entry) is None
    entry.unlink()
    entry.mkdir()
    assert _private.read(entry) is None
    linked = entry.parent.parent / "linked"
    linked.symlink_to(entry.parent)
    assert _private.read(linked / "kernel.nbc") is None


def add_one(x: int) -> int:
    return x + 1


def compiled() -> tuple[int, int]:
    """Compile `add_one` as kernels are; return where its code came from."""
    dispatcher = numba.njit(add_one)
    dispatcher._cache = _cache.KernelCache(add_one, {}, "0123456789abcdef")
    assert dispatcher(1) == 2
    return sum(dispatcher.stats.cache_hits.values()), sum(dispatcher.stats.cache_misses.values())


@pytest.fixture(name="kernel")
def cached_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))
    assert compiled() == (0, 1)
    (entry,) = tmp_path.rglob("*.nbc")
    assert compiled() == (1, 0)
    return entry


def test_an_entry_that_holds_something_else_is_written_anew(kernel: Path) -> None:
    payload = _private.read(kernel)
    assert payload is not None
    real = pickle.loads(payload)
    wrong = [(), None, 1, real[:-1], real[::-1], (None, *real[1:]), [*real, real], {"a": 1}]
    for content in (b"", b"no pickle", payload[:100], payload[:-1], *map(dumps, wrong)):
        _private.write(kernel, content)
        assert compiled() == (0, 1)
        assert compiled() == (1, 0)


def test_a_kernel_damaged_anywhere_is_compiled_or_loaded(kernel: Path) -> None:
    whole = kernel.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(300):
        content = damaged(whole, rng)
        kernel.write_bytes(content)
        found = _private.read(kernel)
        assert found is None or content == whole
    assert compiled() == (0, 1)
    assert compiled() == (1, 0)


@pytest.mark.slow
@POSIX
def test_a_folder_that_others_can_write_means_no_cache_and_a_reason(tmp_path: Path) -> None:
    code = """
from numba_lamb import _compile
from numba_lamb.kernels.cpu import passes
print(_compile.cache_state.folder, type(passes.lamb_advance.serial._cache).__name__, _compile.cache_state.reason)
"""
    folder = Path(run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split()[0])
    folder.chmod(0o777)
    said = run_python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert said.startswith(f"None NullCache {folder} must be writable by its owner alone, got mode 0777; ")
    assert list(folder.iterdir()) == []
