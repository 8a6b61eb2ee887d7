"""Whether what a checkpoint holds fits the run that is to go on from it, told before it is taken over."""

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from numba_lamb._text import shorten

__all__ = ["check_keys", "check_losses", "check_ratio_list", "check_same", "check_steps", "digest", "require"]


def require(holds: bool, where: str, allowed: str, given: object) -> None:
    """Raise ValueError unless `holds`."""
    if not holds:
        raise ValueError(f"{shorten(where)} must be {shorten(allowed)}, got {shorten(_described(given))}")


def check_keys(tree: Any, keys: Collection[str], where: str) -> None:
    """Raise ValueError unless `tree` is a dict that has these keys and no other."""
    require(isinstance(tree, dict), where, "a dict", tree)
    require(tree.keys() == set(keys), where, f"a dict of {', '.join(keys)}", ", ".join(tree))


def check_same(given: Any, own: Any, where: str) -> None:
    """Raise ValueError unless `given` is what `own` is, but for the values in arrays, which must not be NaN.

    Infinity is a value that a run which diverges may have.
    """
    if isinstance(own, Mapping):
        check_keys(given, own.keys(), where)
        for key, value in own.items():
            check_same(given[key], value, f"{where}[{key!r}]")
    elif isinstance(own, list):
        require(isinstance(given, list) and len(given) == len(own), where, f"a list of {len(own)}", given)
        for k, value in enumerate(own):
            check_same(given[k], value, f"{where}[{k}]")
    elif isinstance(own, np.ndarray):
        fits = isinstance(given, np.ndarray) and (given.dtype, given.shape) == (own.dtype, own.shape)
        require(fits, where, _described(own), given)
        require(not np.isnan(given).any(), where, "without NaN", given)
    else:
        require(type(given) is type(own) and given == own, where, repr(own), given)


def check_losses(given: Any, epochs: int, stopped: Any, where: str, *, finished: bool) -> None:
    """Raise ValueError unless `given` may be the losses of a run's epochs, all of them if it is finished."""
    require(isinstance(stopped, bool), f"{where}['stopped']", "True or False", stopped)
    where = f"{where}['losses']"
    require(isinstance(given, list), where, "a list", given)
    for k, loss in enumerate(given):
        fits = type(loss) is float and math.isfinite(loss) and loss >= 0
        require(fits, f"{where}[{k}]", "a finite float >= 0", loss)
    if stopped:
        require(len(given) < epochs, where, f"a list of fewer than {epochs}", given)
    else:
        fits = len(given) == epochs if finished else len(given) <= epochs
        require(fits, where, f"a list of {'' if finished else 'at most '}{epochs}", given)


def check_steps(given: Any, epochs_done: int, per_epoch: int, stopped: bool, where: str) -> None:
    """Raise ValueError unless so many steps go with so many epochs; a run that is stopped may be within one."""
    low = epochs_done * per_epoch
    fits = type(given) is int and low <= given <= (low + per_epoch - 1 if stopped else low)
    require(fits, where, f"{low}, the steps of {epochs_done} epochs", given)


def check_ratio_list(given: Any, steps: int, layers: int, where: str) -> None:
    """Raise ValueError unless `given` may be the trust ratios of so many steps and layers."""
    require(isinstance(given, list) and len(given) == steps, where, f"a list of {steps} steps", given)
    for k, ratios in enumerate(given):
        require(
            isinstance(ratios, list) and len(ratios) == layers, f"{where}[{k}]", f"a list of {layers}", ratios
        )
        for i, ratio in enumerate(ratios):
            fits = type(ratio) is float and math.isfinite(ratio) and ratio > 0
            require(fits, f"{where}[{k}][{i}]", "a finite float > 0", ratio)


def digest(tree: Any) -> str:
    """Return the SHA-256 of everything in a tree."""
    hasher = hashlib.sha256()
    _feed(tree, hasher)
    return hasher.hexdigest()


def _feed(node: Any, hasher: Any) -> None:
    if isinstance(node, np.ndarray):
        hasher.update(f"{node.dtype.str} {node.shape}\n".encode() + node.tobytes())
    elif isinstance(node, dict | list):
        entries = list(node.items()) if isinstance(node, dict) else [(None, value) for value in node]
        hasher.update(f"{type(node).__name__} {len(entries)}\n".encode())
        for key, value in entries:
            hasher.update(f"{key!r}\n".encode())
            _feed(value, hasher)
    else:
        hasher.update(f"{type(node).__name__} {node!r}\n".encode())


def _described(given: object) -> str:
    if isinstance(given, np.ndarray):
        return f"{given.dtype} of shape {given.shape}"
    if isinstance(given, list):
        return f"a list of {len(given)}"
    return "a dict" if isinstance(given, dict) else repr(given)
