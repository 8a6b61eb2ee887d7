"""Files that are replaced in one step: there whole or not at all, with the mode they had.

The new content is written beside the file under a name made from the file's own, locked (`flock`) as long as it
is being written, flushed to disk and renamed. The system drops the lock of a process that ends, however it ends:
so what can be locked is left over from a killed one, and the next replacement of the same file removes it.
"""

import errno
import hashlib
import importlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

fcntl: Any = None
with suppress(ImportError):  # on Windows, where leftovers stay
    fcntl = importlib.import_module("fcntl")

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that stands in the place of `path` once the block has ended without an error.

    Where `path` is a symbolic link, the file that it points to is replaced. Mode and, where permitted, owner are
    those of the file that is replaced; a new file's mode follows the umask.

    Raises
    ------
    OSError
        If it cannot be written; nothing has changed then.
    """
    place = os.path.realpath(path)
    if os.path.islink(place):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    folder, name = os.path.split(place)
    prefix = f".numba-lamb-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}-"
    _remove_leftovers(folder, prefix)
    replaced = _stat(place)
    descriptor, beside = _create(folder, prefix, 0o666 if replaced is None else 0o600)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            if replaced is not None:
                _take_over(file.fileno(), beside, replaced)
            os.fsync(file.fileno())
            if fcntl is not None:
                # Before the lock is gone with the file's closing.
                os.replace(beside, place)
        if fcntl is None:
            os.replace(beside, place)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _create(folder: str, prefix: str, mode: int) -> tuple[int, str]:
    while True:
        beside = os.path.join(folder, f"{prefix}{uuid.uuid4().hex[:12]}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(beside, flags, mode)
        # Another saver may take the file for a leftover before it is locked, and remove it.
        if _lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return descriptor, beside
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock a file; False if another holds it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _take_over(descriptor: int, beside: str, replaced: os.stat_result) -> None:
    """Give the new file the mode and owner of the one it replaces."""
    mode = stat.S_IMODE(replaced.st_mode) & 0o777
    if fcntl is not None:
        with suppress(OSError):
            os.fchown(descriptor, -1, replaced.st_gid)
        with suppress(OSError):
            os.fchown(descriptor, replaced.st_uid, -1)
        if os.fstat(descriptor).st_gid != replaced.st_gid:
            # What its group may do was not meant for ours.
            mode &= ~0o070
        os.fchmod(descriptor, mode)
    else:
        os.chmod(beside, mode)


def _remove_leftovers(folder: str, prefix: str) -> None:
    if fcntl is None:
        return
    try:
        names = [name for name in os.listdir(folder) if name.startswith(prefix)]
    except OSError:
        return
    for name in names:
        with suppress(OSError):
            leftover = os.path.join(folder, name)
            descriptor = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _lock(descriptor):
                    os.unlink(leftover)
            finally:
                os.close(descriptor)
