"""Cache entries that hold machine code: written whole, and read only where no other user can have written them.

An entry is the SHA-256 of its name and content, then the content. The digest tells damage and entries under a
wrong name; it is no signature, so who may have written a file is asked of the operating system.
"""

import hashlib
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

LARGEST = 1 << 28
"""Bytes of the largest entry that is read; compiled kernels have less than a thousandth of it."""

_DIGEST = hashlib.sha256().digest_size
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_HAS_OWNERS = hasattr(os, "geteuid") and os.open in os.supports_dir_fd


def make_folder(folder: str) -> None:
    """Make `folder`, for this user alone, where it is not there; the folders above it must be.

    Raises
    ------
    OSError
        If it cannot be made.
    PermissionError
        If another user could write into it; the message says why.
    """
    with suppress(FileExistsError):
        # 0700, so that a umask that lets a group write does not make the cache useless.
        os.mkdir(folder, 0o700)
    if _HAS_OWNERS:
        os.close(_open_folder(folder))


def read(path: str | os.PathLike[str]) -> bytes | None:
    """Return what `write` put there; None if nothing is there, it is damaged, or others may have written it."""
    folder, name = os.path.split(os.fspath(path))
    try:
        content = _read_owned(folder, name) if _HAS_OWNERS else Path(path).read_bytes()
    except OSError:
        return None
    digest, payload = content[:_DIGEST], content[_DIGEST:]
    return payload if _digest(name, payload) == digest else None


def write(path: str | os.PathLike[str], payload: bytes) -> None:
    """Write an entry, whole or not at all; its folder is made where it is not there.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind then.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    make_folder(str(path.parent))
    try:
        # With these rights before there is anything in it, whatever the umask.
        beside.touch(mode=0o600, exist_ok=False)
        beside.write_bytes(_digest(path.name, payload) + payload)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _digest(name: str, payload: bytes) -> bytes:
    return hashlib.sha256(os.fsencode(name) + b"\0" + payload).digest()


def _read_owned(folder: str, name: str) -> bytes:
    # Every question is asked of an open descriptor: what a path names may change between two calls.
    inside = _open_folder(folder)
    try:
        # No link is followed; a named pipe must not keep us waiting.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
    finally:
        os.close(inside)
    with open(file, "rb") as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            raise OSError(f"{name} is no entry")
        _require_ours(found, name)
        return opened.read(LARGEST)


def _open_folder(folder: str) -> int:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _require_ours(os.fstat(opened), folder)
    except BaseException:
        os.close(opened)
        raise
    return opened


def _require_ours(found: os.stat_result, name: str) -> None:
    way_out = "remove it, or set NUMBA_CACHE_DIR to a folder of your own"
    if found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{name} must belong to this user or root, got user {found.st_uid}; {way_out}")
    if found.st_mode & _OTHERS_WRITE:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise PermissionError(f"{name} must be writable by its owner alone, got mode {mode}; {way_out}")
