"""State of optax's transformations, read by attribute: neither optax nor jax is imported."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from numba_lamb.numerics.variants import LARS_VARIANTS

_MASKED = "MaskedNode"
_WANTED = {
    "Lamb": ("ScaleByAdamState", {"exp_avg": "mu", "exp_avg_sq": "nu"}),
    "Lars": ("TraceState", {"momentum_buffer": "trace"}),
    "Momentum": ("TraceState", {"momentum_buffer": "trace"}),
}
_RATE_INSIDE = tuple(name for name, variant in LARS_VARIANTS.items() if variant.rate_inside)
_Path = tuple[Any, ...]


class _Found(NamedTuple):
    state: Any
    is_last: bool


def optax_state_dict(
    kind: str, opt_state: Any, names: Sequence[str] | None, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return a state dict for `optimizer` with the moments and the step of an optax state.

    Parameters
    ----------
    kind : {"Lamb", "Lars", "Momentum"}
        The class of `optimizer`.
    opt_state
        The state of an ``optax`` transformation: for Lamb with a ``ScaleByAdamState`` in it (``optax.lamb``,
        ``optax.adamw``), for Lars that of ``optax.lars``, for Momentum that of ``optax.sgd``.
    names : sequence of str or None
        For each leaf, in the order of ``jax.tree.leaves``, the name of the parameter it belongs to. None: the
        dotted paths of the leaves are the names.
    optimizer : torch.optim.Optimizer
        Whose parameters, names and options it is for; left as it is.

    Returns
    -------
    dict
        ``state`` and ``param_groups``.

    Raises
    ------
    ValueError
        If there is no such state, or a name, a shape or the number of leaves differs. Nothing is transposed.
    """
    if kind not in _WANTED:
        raise ValueError(f"kind must be one of {', '.join(_WANTED)}, not {kind!r}")
    wanted, moments = _WANTED[kind]
    found = [one for one in _states(opt_state, False) if type(one.state).__name__ == wanted]
    if not found:
        seen = sorted({type(one.state).__name__ for one in _states(opt_state, False)})
        raise ValueError(
            f"opt_state has no {wanted}, which {kind} needs; it has {', '.join(seen) or 'no states'}"
        )
    if kind != "Lamb":
        _check_rates(kind, found, optimizer)
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, attribute in moments.items():
        leaves: dict[_Path, tuple[Any, float]] = {}
        for one in found:
            # A tuple has a method of that name: a trace counts nothing.
            step = float(np.asarray(one.state.count)) if kind == "Lamb" else 0.0
            _merge(leaves, _leaves(getattr(one.state, attribute)), step, attribute)
        for name, (leaf, step) in _named(leaves, names, parameters).items():
            index, tensor = parameters[name]
            if leaf is not None:
                entry = state.setdefault(index, {"step": torch.tensor(step, dtype=torch.float32)})
                entry[key] = _tensor(name, leaf, tensor, negative=kind == "Lars")
    groups = optimizer.state_dict()["param_groups"]
    return {"state": dict(sorted(state.items())), "param_groups": [dict(group) for group in groups]}


def _states(node: Any, is_last: bool) -> Iterator[_Found]:
    """Yield the states in nested tuples and mappings, each with whether it is the last of a chain of several."""
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _states(value, is_last)
    elif hasattr(node, "_fields"):
        yield _Found(node, is_last)
        for value in node:
            yield from _states(value, is_last)
    elif isinstance(node, tuple | list):
        for k, value in enumerate(node):
            yield from _states(value, is_last=k > 0 and k == len(node) - 1)


def _check_rates(kind: str, found: list[_Found], optimizer: torch.optim.Optimizer) -> None:
    if kind == "Momentum" and any(one.is_last for one in found):
        raise ValueError(
            "opt_state has a TraceState at the end, as optax.lars: its buffer holds rates; Momentum continues "
            "optax.sgd, where the rate comes after it"
        )
    if kind == "Lars":
        if not all(one.is_last for one in found):
            raise ValueError(
                "opt_state has a TraceState before others, as optax.sgd, which Momentum continues; Lars continues "
                "optax.lars, where it is at the end"
            )
        for k, group in enumerate(optimizer.param_groups):
            if group["variant"] not in _RATE_INSIDE:
                raise ValueError(
                    f"the buffer of optax.lars holds rates, that of group {k} with variant {group['variant']!r} "
                    f"does not; allowed are {', '.join(map(repr, _RATE_INSIDE))}"
                )


def _leaves(node: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Yield paths and leaves as ``jax.tree.leaves`` orders them; a masked leaf as None."""
    if isinstance(node, Mapping):
        for key in sorted(node):
            yield from _leaves(node[key], (*path, key))
    elif type(node).__name__ == _MASKED:
        yield path, None
    elif isinstance(node, tuple | list):
        for k, value in enumerate(node):
            yield from _leaves(value, (*path, k))
    elif node is not None:
        yield path, node


def _merge(
    leaves: dict[_Path, tuple[Any, float]], more: Iterator[tuple[_Path, Any]], step: float, attribute: str
) -> None:
    for path, leaf in more:
        if leaves.get(path, (None,))[0] is None:
            leaves[path] = (leaf, step)
        elif leaf is not None:
            raise ValueError(f"opt_state has two leaves {_dotted(path)!r} of {attribute}")


def _dotted(path: _Path) -> str:
    return ".".join(map(str, path))


def _named(
    leaves: dict[_Path, tuple[Any, float]], names: Sequence[str] | None, parameters: Mapping[str, Any]
) -> dict[str, tuple[Any, float]]:
    paths = sorted(leaves)
    if names is None:
        named = {_dotted(path): leaves[path] for path in paths}
        what = "paths of the leaves, which must be the parameters' names unless names are given"
    else:
        if isinstance(names, str) or len(set(names)) != len(names) or len(names) != len(paths):
            raise ValueError(
                f"names must be one name for each of the {len(paths)} leaves, none twice, not {names!r}"
            )
        named = {name: leaves[path] for name, path in zip(names, paths, strict=True)}
        what = "names, which must be the parameters' names"
    missing, unknown = parameters.keys() - named.keys(), named.keys() - parameters.keys()
    if missing or unknown:
        raise ValueError(
            f"the {what}, lack {', '.join(sorted(missing)) or 'none'} and have "
            f"{', '.join(sorted(unknown)) or 'none'} too many"
        )
    return named


def _parameters(optimizer: torch.optim.Optimizer) -> dict[str, tuple[int, torch.Tensor]]:
    found: dict[str, tuple[int, torch.Tensor]] = {}
    for group in optimizer.param_groups:
        first = len(found)
        numbered = [f"param_{first + k}" for k in range(len(group["params"]))]
        for name, tensor in zip(group.get("param_names", numbered), group["params"], strict=True):
            found[name] = (len(found), tensor)
    return found


def _tensor(name: str, leaf: Any, parameter: torch.Tensor, negative: bool) -> torch.Tensor:
    array = np.asarray(leaf)
    if array.shape != tuple(parameter.shape):
        raise ValueError(
            f"the leaf of {name!r} has the shape {array.shape}, and the parameter {tuple(parameter.shape)}; "
            "nothing is transposed here"
        )
    # By way of float64, which holds every value of the types that arrays of jax have.
    tensor = torch.from_numpy(np.array(array, dtype=np.float64)).to(parameter.dtype)
    return -tensor if negative else tensor
