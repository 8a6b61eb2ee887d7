"""Reading the ``.npz`` files that ``np.savez`` writes, in no more memory than the file is long.

`numpy.load` believes what a file says of itself: it inflates deflated members, and makes an array of whatever
size its header promises. Here all sizes are compared before anything is allocated.
"""

import ast
import math
import os
import zipfile
from typing import IO, Any

import numpy as np
from numpy.lib.format import descr_to_dtype
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY"
_SUFFIX = ".npy"
_LONGEST_HEADER = 10_000  # NumPy's own limit
_BLOCK = 1 << 20


def read_arrays(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    """Return the arrays of an uncompressed archive by name.

    Raises
    ------
    ValueError, OSError, zipfile.BadZipFile and others
        If it is damaged, has compressed members or such that are no arrays, or holds Python objects.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise ValueError(f"its member {member.filename} is compressed")
            if not member.filename.endswith(_SUFFIX):
                raise ValueError(f"its member {member.filename} is no array")
        if len({member.filename for member in members}) != len(members):
            raise ValueError("two of its members have one name")
        # Members that overlap could each be as large as the file.
        if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
            raise ValueError("its members are larger than the file")
        return {
            member.filename.removesuffix(_SUFFIX): _array(_content(archive, member), member.filename)
            for member in members
        }


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[np.uint8]:
    """Return a member's bytes, once they agree with their checksum."""
    content = np.empty(member.file_size, np.uint8)
    at = 0
    with archive.open(member) as source:
        # Up to an empty read, which is when the checksum is looked at.
        while block := source.read(_BLOCK):
            content[at : at + len(block)] = np.frombuffer(block, np.uint8)
            at += len(block)
    if at != len(content):
        raise ValueError(f"its member {member.filename} has another length")
    return content


def _array(content: NDArray[np.uint8], name: str) -> NDArray[Any]:
    """Return the array that the bytes of an ``.npy`` file describe, over those bytes."""
    start = bytes(content[:12])
    if start[:6] != _MAGIC or start[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError(f"its member {name} is no array")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its member {name} has a header of {length} bytes")
    begin = 8 + width + length
    header = ast.literal_eval(
        bytes(content[8 + width : begin]).decode("utf-8" if start[6] == 3 else "latin1")
    )
    shape, dtype = header["shape"], descr_to_dtype(header["descr"])
    if not all(type(extent) is int and extent >= 0 for extent in shape) or dtype.subdtype is not None:
        raise ValueError(f"its member {name} has shape {shape} and dtype {dtype}")
    if dtype.hasobject:
        raise ValueError(f"its member {name} holds Python objects")
    if math.prod(shape) * dtype.itemsize != len(content) - begin:
        raise ValueError(
            f"its member {name} promises {shape} of {dtype}, and has {len(content) - begin} bytes"
        )
    return np.ndarray(shape, dtype, content[begin:], order="F" if header["fortran_order"] is True else "C")
