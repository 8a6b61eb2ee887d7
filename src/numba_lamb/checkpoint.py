"""Versioned checkpoints: nested dicts and lists of arrays and plain values in one ``.npz``, without pickle.

The tree's structure is JSON beside the arrays, so that a file holds data alone and loads with
``allow_pickle=False``. A file is written beside its place, flushed to disk, and renamed: it is there whole or
not at all.
"""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1


def save(path: str | os.PathLike[str], tree: dict[str, Any]) -> None:
    """Write `tree` to `path`, replacing what was there in one step.

    Parameters
    ----------
    path : str or path-like
        The file, by custom ``*.npz``. Its folder must exist.
    tree : dict
        Nested dicts with str keys and lists, whose leaves are NumPy arrays (no object dtype), int, float,
        str, bool or None.

    Raises
    ------
    TypeError
        If the tree holds anything else; nothing is written.

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
    structure = _strip(tree, arrays, "tree")
    header = json.dumps({"format_version": FORMAT_VERSION, "tree": structure})
    arrays["header"] = np.frombuffer(header.encode(), dtype=np.uint8)
    path = Path(path)
    beside = path.with_name(f".numba-lamb-{uuid.uuid4().hex[:12]}")
    try:
        with open(beside, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tree that `save` wrote to `path`.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is not a numba-lamb checkpoint, is damaged, or has another format version.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            header = json.loads(arrays.pop("header").tobytes())
            version = header["format_version"]
            tree: dict[str, Any] = _restore(header["tree"], arrays) if _is_current(version) else {}
            if not isinstance(tree, dict):
                raise TypeError("its tree is no dict")
        except Exception as error:  # damage shows in many ways, all of which mean this one thing
            raise ValueError(
                f"{os.fspath(path)} is not a numba-lamb checkpoint, or is damaged ({error!r})"
            ) from error
    if not _is_current(version):
        raise ValueError(
            f"{os.fspath(path)} has format_version {version!r}; this numba-lamb reads version {FORMAT_VERSION}"
        )
    return tree


def _is_current(version: object) -> bool:
    return type(version) is int and version == FORMAT_VERSION


def _strip(node: Any, arrays: dict[str, Any], where: str) -> Any:
    """Move the arrays of `node` into `arrays` and return what is left as JSON values."""
    if isinstance(node, np.ndarray) and not isinstance(node, np.ma.MaskedArray):
        if node.dtype.hasobject:
            raise TypeError(f"{where} is an array of Python objects, which a checkpoint cannot hold")
        key = f"a{len(arrays)}"
        arrays[key] = node
        return {"array": key}
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str):
                raise TypeError(f"keys of {where} must be str, not {type(key).__name__}")
        return {"dict": {key: _strip(value, arrays, f"{where}[{key!r}]") for key, value in node.items()}}
    if isinstance(node, list):
        return [_strip(value, arrays, f"{where}[{k}]") for k, value in enumerate(node)]
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise TypeError(f"{where} is a {type(node).__name__}, which a checkpoint cannot hold")


def _restore(node: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_restore(value, arrays) for value in node]
    if isinstance(node, dict):
        ((kind, value),) = node.items()
        if kind == "array":
            return arrays[value]
        if kind != "dict":
            raise ValueError(f"its tree has a node of unknown kind {kind!r}")
        return {key: _restore(child, arrays) for key, child in value.items()}
    return node
