"""Versioned checkpoints: nested dicts and lists of arrays and plain values in one ``.npz``, without pickle.

The tree's structure is JSON beside the arrays, so that a file holds data alone and loads with
``allow_pickle=False``. A file is written beside its place, flushed to disk, and renamed: it is there whole or
not at all. One that is loaded takes no more memory than its own size.
"""

import importlib
import json
import os
from typing import Any

import numpy as np

from numba_lamb._archive import read_arrays
from numba_lamb._replace import replacing
from numba_lamb._text import shorten

BFLOAT16 = "bfloat16"
FORMAT_VERSION = 1

MAX_DEPTH = 200
"""Levels of a tree, so that reading and writing it stay far from Python's recursion limit."""

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def save(path: Path, tree: dict[str, Any]) -> None:
    """Write `tree` to `path`, replacing what was there in one step.

    Parameters
    ----------
    path : str, bytes or path-like
        The file, by custom ``*.npz``. Its folder must exist. Of a symbolic link the file it points to is
        replaced. A file that is replaced hands on its mode; that of a new one follows the umask.
    tree : dict
        Nested dicts with str keys and lists, whose leaves are NumPy arrays (no object dtype), int, float,
        str, bool or None; at most 200 levels.

    Raises
    ------
    TypeError
        If the tree holds anything else; nothing is written.
    ValueError
        If it has more levels, as one that contains itself has; nothing is written.
    OSError
        If the file cannot be written; what was there stays.

    Notes
    -----
    What a killed process leaves beside the file (``.numba-lamb-*``) is removed by the next `save` to the same
    path. Files that another process is writing there at that moment are locked and stay (POSIX).

    Examples
    --------
    >>> import tempfile, os
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "state.npz")
    ...     save(file, {"step": 3, "layers": {"w": np.ones(2)}})
    ...     load(file)
    {'step': 3, 'layers': {'w': array([1., 1.])}}
    """
    if not isinstance(tree, dict):
        raise TypeError(f"tree must be a dict, not {type(tree).__name__}")
    arrays: dict[str, Any] = {}
    structure = _strip(tree, arrays, "tree", MAX_DEPTH)
    header = json.dumps({"format_version": FORMAT_VERSION, "tree": structure})
    arrays["header"] = np.frombuffer(header.encode(), dtype=np.uint8)
    with replacing(os.fsdecode(path)) as file:
        np.savez(file, **arrays)


def load(path: Path) -> dict[str, Any]:
    """Return the tree that `save` wrote to `path`.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is not a numba-lamb checkpoint, is damaged, or has another format version.
    """
    name = os.fsdecode(path)
    with open(name, "rb") as file:
        try:
            arrays = read_arrays(file)
            header = json.loads(arrays.pop("header").tobytes())
            version = header["format_version"]
            tree: dict[str, Any] = _restore(header["tree"], arrays) if _is_current(version) else {}
            if not isinstance(tree, dict):
                raise TypeError("its tree is no dict")
        except Exception as error:  # damage shows in many ways, all of which mean this one thing
            raise ValueError(
                f"{name} is not a numba-lamb checkpoint, or is damaged ({shorten(repr(error))})"
            ) from error
    if not _is_current(version):
        raise ValueError(
            f"{name} has format_version {shorten(repr(version))}; this numba-lamb reads version {FORMAT_VERSION}"
        )
    return tree


def bfloat16() -> np.dtype[Any]:
    """Return the dtype of ml_dtypes, which is imported only where there are such arrays."""
    try:
        found: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise ValueError("it has arrays of bfloat16, for which ml_dtypes must be installed") from None
    return found


def _is_current(version: object) -> bool:
    return type(version) is int and version == FORMAT_VERSION


def _strip(node: Any, arrays: dict[str, Any], where: str, levels: int) -> Any:
    """Move the arrays of `node` into `arrays` and return what is left as JSON values."""
    if isinstance(node, np.ndarray) and not isinstance(node, np.ma.MaskedArray):
        if node.dtype.hasobject:
            raise TypeError(f"{shorten(where)} is an array of Python objects, which a checkpoint cannot hold")
        key, kind = f"a{len(arrays)}", "array"
        if node.dtype.name == BFLOAT16:
            # NumPy's files do not tell it from any other 2 bytes.
            node, kind = node.view(np.uint16), BFLOAT16
        arrays[key] = node
        return {kind: key}
    if isinstance(node, dict | list) and levels == 0:
        raise ValueError(
            f"tree must have at most {MAX_DEPTH} levels and not contain itself, got more at {shorten(where)}"
        )
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str):
                raise TypeError(f"keys of {shorten(where)} must be str, not {type(key).__name__}")
        return {
            "dict": {
                key: _strip(value, arrays, f"{where}[{key!r}]", levels - 1) for key, value in node.items()
            }
        }
    if isinstance(node, list):
        return [_strip(value, arrays, f"{where}[{k}]", levels - 1) for k, value in enumerate(node)]
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise TypeError(f"{shorten(where)} is a {type(node).__name__}, which a checkpoint cannot hold")


def _restore(node: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_restore(value, arrays) for value in node]
    if isinstance(node, dict):
        ((kind, value),) = node.items()
        if kind == "array":
            return arrays[value]
        if kind == BFLOAT16:
            return arrays[value].view(bfloat16())
        if kind != "dict":
            raise ValueError(f"its tree has a node of unknown kind {kind!r}")
        return {key: _restore(child, arrays) for key, child in value.items()}
    return node
