"""Parameters and optimizer in one file, and back in place: whole or not at all."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from numba_lamb import checkpoint
from numba_lamb._calls import run_in_order
from numba_lamb._text import shorten
from numba_lamb.loss_scale import DynamicLossScale
from numba_lamb.memory.arrays import check_parameter
from numba_lamb.optimizers.base import Optimizer

__all__ = ["load", "save"]

KIND = "numba-lamb training"
"""What tells such a file from other checkpoints."""


def save(path: checkpoint.Path, optimizer: Optimizer, loss_scale: DynamicLossScale | None = None) -> None:
    """Write an optimizer's parameters and state to one file, replacing what was there in one step.

    Where ranks share the state, each of them calls it, and the first one writes before any returns.

    Parameters
    ----------
    path : str, bytes or path-like
        The file, by custom ``*.npz``; as for `checkpoint.save`. It holds data alone, and no pickle.
    optimizer : Lamb, Lars or Momentum
        Of `numba_lamb`. On a GPU its steps are waited for, and values come to the host.
    loss_scale : DynamicLossScale, optional
        Its scale, to be saved too.

    Raises
    ------
    TypeError
        If `optimizer` is another, PyTorch's for example; nothing is written.
    OSError
        If the file cannot be written; what was there stays.

    Notes
    -----
    Schedules, tables of rates and filters belong to the program, which makes the optimizer anew and then loads the
    file; `Optimizer.state_dict` says what the state is.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> def make():
    ...     params = {"w": np.array([3.0, 4.0])}
    ...     return params, nl.Lamb(params, learning_rate=0.1)
    >>> gradient = {"w": np.array([0.5, -0.5])}
    >>> params, opt = make()
    >>> opt.step(gradient)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "training.npz")
    ...     nl.save(file, opt)
    ...     resumed, again = make()
    ...     nl.load(file, again)
    >>> opt.step(gradient)
    >>> again.step(gradient)
    >>> (params["w"] == resumed["w"]).all()
    np.True_
    """
    _check_optimizer(optimizer)
    with optimizer._lock:
        values = {
            parameter.name: optimizer._backend.values_of(parameter) for parameter in optimizer._parameters
        }
        tree = {"kind": KIND, "params": values, "optimizer": optimizer.state_dict()}
        if loss_scale is not None:
            tree["loss_scale"] = loss_scale.state_dict()
        optimizer._backend.on_one(partial(checkpoint.save, path, tree))


def load(path: checkpoint.Path, optimizer: Optimizer, loss_scale: DynamicLossScale | None = None) -> None:
    """Put back what `save` wrote: parameters, in place in the arrays of `optimizer`, and its state.

    All is checked before anything changes. Ctrl-C finds both as they were, or both as in the file; only on a GPU
    it may find some parameters written. Where ranks share the state, each of them calls it, with a file that any
    number of ranks wrote.

    Parameters
    ----------
    path : str, bytes or path-like
        The file.
    optimizer : Lamb, Lars or Momentum
        Made as the one that was saved: of the same class, for parameters of the same names, shapes and dtypes, in
        as many groups.
    loss_scale : DynamicLossScale, optional
        To be given if, and only if, one was saved.

    Raises
    ------
    OSError
        If the file cannot be opened.
    TypeError
        If `optimizer` is none of `numba_lamb`.
    ValueError
        If the file is none that `save` wrote, is damaged, or does not fit `optimizer`; the message says where.
        Nothing has changed then.
    """
    _check_optimizer(optimizer)
    tree = optimizer._backend.on_all(partial(checkpoint.load, path))
    if tree.get("kind") != KIND or {*tree} - {"loss_scale"} != {"kind", "params", "optimizer"}:
        way = "; load it with checkpoint.load and load_state_dict" if "optimizer" in tree else ""
        raise ValueError(
            f"{_shown(path)} must be a file of numba_lamb.save, with parameters and optimizer{way}"
        )
    if ("loss_scale" in tree) != (loss_scale is not None):
        found = "a loss scale" if loss_scale is None else "no loss scale"
        allowed = "a DynamicLossScale" if loss_scale is None else "None"
        raise ValueError(f"loss_scale must be {allowed} for {_shown(path)}, which has {found}")
    with optimizer._lock:
        saved = optimizer._backend.on_all(partial(_checked, path, tree["params"], optimizer))
        writes: list[Callable[[], Any]] = [
            optimizer._backend.writer(parameter, saved[parameter.name]) for parameter in optimizer._parameters
        ]
        before = optimizer.state_dict()
        written: list[bool] = []
        scale = None if loss_scale is None else loss_scale.state_dict()
        try:
            if loss_scale is not None:
                loss_scale.load_state_dict(tree["loss_scale"])
            optimizer.load_state_dict(tree["optimizer"])
            run_in_order([*writes, partial(written.append, True)])
        except (TypeError, ValueError) as error:
            # Refused, and nothing else has changed.
            if loss_scale is not None and scale is not None:
                loss_scale.load_state_dict(scale)
            raise ValueError(f"{_shown(path)} must fit the optimizer: {error}") from error
        except BaseException:
            if not written:
                optimizer.load_state_dict(before)
                if loss_scale is not None and scale is not None:
                    loss_scale.load_state_dict(scale)
            raise


def _check_optimizer(optimizer: Any) -> None:
    if isinstance(optimizer, Optimizer):
        return
    kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    way = ""
    if hasattr(optimizer, "state_dict"):
        way = "; for PyTorch: torch.save({'model': model.state_dict(), 'optimizer': opt.state_dict()}, path)"
    raise TypeError(f"optimizer must be a numba_lamb.Lamb, Lars or Momentum, got {kind}{way}")


def _checked(path: checkpoint.Path, saved: Any, optimizer: Optimizer) -> Mapping[str, Any]:
    """Return saved parameters that fit those of `optimizer`, or raise."""
    file = _shown(path)
    if not isinstance(saved, dict):
        raise ValueError(f"params of {file} must be a dict, got {type(saved).__name__}")
    own = {parameter.name: parameter for parameter in optimizer._parameters}
    for name in saved:
        if name not in own:
            raise ValueError(f"{file} has parameter {shorten(repr(name))}, which the optimizer has not")
    for name, parameter in own.items():
        if name not in saved:
            raise ValueError(f"{file} has no parameter {name!r}")
        # Its memory may have become read-only, or have moved, since the optimizer was made.
        storage, found = check_parameter(name, parameter.array), saved[name]
        wanted = f"{storage.dtype} of shape {storage.shape}"
        if (storage.shape, storage.dtype) != (parameter.storage.shape, parameter.storage.dtype):
            raise ValueError(
                f"parameter {name!r} must stay {parameter.storage.dtype} of shape {parameter.storage.shape}, as "
                f"the optimizer was made for, got {wanted}"
            )
        if not isinstance(found, np.ndarray) or (found.shape, found.dtype) != (storage.shape, storage.dtype):
            got = (
                f"{found.dtype} of shape {found.shape}"
                if isinstance(found, np.ndarray)
                else type(found).__name__
            )
            raise ValueError(f"parameter {name!r} in {file} must be {wanted}, got {got}")
    return saved


def _shown(path: checkpoint.Path) -> str:
    return os.fsdecode(path)
