"""From an optimizer of another package, or its state dict, to what a class of ours is made with or loads."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from numba_lamb.methods.options import FILTERS
from numba_lamb.torch.migration import sources
from numba_lamb.torch.migration.options import GROUP_OPTIONS, Context, group_options
from numba_lamb.torch.migration.sources import (
    Source,
    check_kind,
    our_class,
    ours,
    source_of_class,
    source_of_dict,
)
from numba_lamb.torch.migration.state import master_states, parameter_states

_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    sources.APEX.name: ("adam_w_mode", "use_nvlamb"),
    sources.TORCH_OPTIMIZER.name: ("clamp_value", "adam", "debias"),
    sources.PYTORCH_OPTIMIZER_LAMB.name: ("maximize", "pre_norm", "clamp"),
    sources.PYTORCH_OPTIMIZER_LARS.name: ("maximize",),
}
"""Settings that are attributes of an optimizer, not in its groups."""
_CYBERTRONAI = {"clamp_value": 10, "adam": False, "debias": False}
"""What cybertronai's Lamb, of which torch_optimizer's is a copy, has fixed."""


def adopt_state_dict(
    kind: str, state_dict: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return `state_dict` in the form of our class `kind`.

    Parameters
    ----------
    kind : {"Lamb", "Lars", "Momentum"}
        The class that is to load it.
    state_dict : mapping
        What ``state_dict()`` of an optimizer returned. One of our own is returned as it is.
    defaults : mapping
        The loading optimizer's settings, for what a state dict does not tell.

    Returns
    -------
    mapping
        ``state`` and ``param_groups``, of copies.

    Raises
    ------
    TypeError
        If `state_dict` is not a mapping, or a moment is not a tensor.
    ValueError
        If it comes from an optimizer that is not known or that another class continues, or asks for something that
        has no counterpart.
    """
    groups, state = _buckets(state_dict)
    own = ours(groups)
    if own is not None:
        check_kind(kind, own, f"numba_lamb.torch.{own}")
        return state_dict
    if not groups:
        return state_dict
    source = source_of_dict(groups, state)
    check_kind(kind, source.kind, source.name)
    outside = _limit_of(source, groups)
    context = [Context(source, f"group {k}", outside, defaults) for k in range(len(groups))]
    translated = [group_options(kind, group, context[k]) for k, group in enumerate(groups)]
    _check_cap(source, translated, groups, state)
    for options in translated:
        _take_filters(source, options, defaults)
    return {
        "state": parameter_states(source, state, groups),
        "param_groups": [
            {**options, "params": list(group["params"])}
            for options, group in zip(translated, groups, strict=True)
        ],
    }


def options_of(
    kind: str, other: torch.optim.Optimizer, overrides: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what our class `kind` is constructed with to continue `other`.

    Parameters
    ----------
    kind : {"Lamb", "Lars", "Momentum"}
        The class that is to continue `other`.
    other : torch.optim.Optimizer
        The optimizer so far; left as it is.
    overrides : mapping, optional
        Options that stand in place of the ones of `other`, in every group. With a ``variant`` among them the
        formula is that variant's, and only hyper-parameters are taken from `other`.

    Returns
    -------
    defaults : dict
        Keyword arguments for the constructor.
    groups : list of dict
        Groups with ``params``, and every option of their own.

    Raises
    ------
    TypeError
        If `other` is not known.
    ValueError
        If another class continues `other`, or it does something that has no counterpart.
    """
    given = dict(overrides or {})
    own = our_class(other)
    if own is not None:
        check_kind(kind, own, f"numba_lamb.torch.{own}")
        changed = {key: value for key, value in given.items() if key in GROUP_OPTIONS[kind]}
        kept = {key: value for key, value in other.defaults.items() if key in GROUP_OPTIONS[kind]}
        kept["fused_amp"] = other._step_supports_amp_scaling  # type: ignore[attr-defined]
        return {**kept, **given}, [{**_copied(group), **changed} for group in other.param_groups]
    source = source_of_class(other)
    check_kind(kind, source.kind, source.name)
    outside = _settings_of(source, other)
    keywords = group_options(kind, other.defaults, Context(source, "defaults", outside, given=given))
    defaults = {key: value for key, value in keywords.items() if key in GROUP_OPTIONS[kind]}
    groups = []
    for k, group in enumerate(other.param_groups):
        options = group_options(kind, group, Context(source, f"group {k}", outside, given=given))
        groups.append({"params": list(group["params"]), **options})
    return {**defaults, **given}, groups


def state_dict_of(kind: str, other: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Return the state of `other` for an optimizer of the `groups` that `options_of` gave: a dict for it to load.

    `adopt_state_dict` of ``other.state_dict()`` would lose what `other` keeps outside its groups.
    """
    saved = other.state_dict()
    source = None if our_class(other) is not None else source_of_class(other)
    state: dict[Any, Any] = (
        {index: _copied(entry) for index, entry in saved["state"].items()}
        if source is None
        else parameter_states(source, saved["state"], saved["param_groups"])
    )
    for index, rest in master_states(other).items():
        if index in state:
            state[index].update(rest)
    new_groups = [
        {**{key: value for key, value in group.items() if key not in FILTERS}, "params": list(old["params"])}
        for group, old in zip(groups, saved["param_groups"], strict=True)
    ]
    return {"state": state, "param_groups": new_groups}


def _copied(entry: Mapping[str, Any]) -> dict[str, Any]:
    copied = {key: copy.deepcopy(value) for key, value in entry.items() if key not in ("params", *FILTERS)}
    if "params" in entry:
        copied["params"] = list(entry["params"])
    return copied | {key: entry[key] for key in FILTERS if key in entry}


def _buckets(state_dict: Any) -> tuple[list[Mapping[str, Any]], Mapping[Any, Any]]:
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, not a {type(state_dict).__name__}")
    if "fp32_m" in state_dict or "fp32_v" in state_dict:
        raise ValueError(
            "state_dict is that of apex.contrib DistributedFusedLAMB: 'fp32_m' and 'fp32_v' are one rank's flat "
            "piece, without the parameters' bounds; allowed are dicts with 'state' and 'param_groups'"
        )
    for key, wanted in (("state", Mapping), ("param_groups", list)):
        if not isinstance(state_dict.get(key), wanted):
            raise ValueError(
                f"state_dict must have 'state', a mapping, and 'param_groups', a list; its keys are "
                f"{', '.join(map(repr, state_dict)) or 'none'}, and {key!r} is "
                f"{type(state_dict.get(key)).__name__ if key in state_dict else 'missing'}"
            )
    return list(state_dict["param_groups"]), state_dict["state"]


def _limit_of(source: Source, groups: list[Mapping[str, Any]]) -> dict[str, Any]:
    if source not in (sources.APEX, sources.TIMM_LAMB):
        return {}
    limits = {group["max_grad_norm"] for group in groups}
    if len(limits) > 1:
        raise ValueError(
            f"groups of {source.name} have max_grad_norm of {', '.join(map(str, sorted(limits, key=str)))}; it "
            "clips by the one of its constructor, which its state_dict does not tell; from_optimizer sees it"
        )
    return {"max_grad_norm": limits.pop()}


def _settings_of(source: Source, other: torch.optim.Optimizer) -> dict[str, Any]:
    hyper64: dict[str, Any] = {}
    if "max_grad_norm" in other.defaults:
        hyper64["max_grad_norm"] = other.defaults["max_grad_norm"]
    if source is sources.ADAM:
        hyper64["decoupled"] = type(other).__name__ == "AdamW"
    if source is sources.DEEPSPEED:
        # Its eps_mode is 0 where eps is inside the root.
        hyper64["eps_inside_sqrt"] = getattr(other, "eps_mode", 1) == 0
    if source is sources.TORCH_OPTIMIZER:
        hyper64 |= _CYBERTRONAI
    return hyper64 | {
        key: getattr(other, key) for key in _ATTRIBUTES.get(source.name, ()) if hasattr(other, key)
    }


def _check_cap(
    source: Source,
    translated: list[dict[str, Any]],
    groups: list[Mapping[str, Any]],
    state: Mapping[Any, Any],
) -> None:
    if source is not sources.TORCH_OPTIMIZER:
        return
    for options, group in zip(translated, groups, strict=True):
        for index in group["params"]:
            norm = float(state.get(index, {}).get("weight_norm", 0.0))
            bounds = options["weight_norm_bounds"] or (0.0, 10.0)
            if options["variant"] == "torch_optimizer" and norm > bounds[1]:
                raise ValueError(
                    f"clamp_value of {source.name} must be 10 where weight_norm_bounds says nothing, got a "
                    f"weight norm of {norm} for parameter {index}; give weight_norm_bounds=(0, clamp_value)"
                )


def _take_filters(source: Source, options: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for name in FILTERS:
        needed = options.pop(name, None)
        if needed is not None and defaults.get(name) is None:
            raise ValueError(
                f"{source.name} treats parameters differently, for which {name} must be "
                f"{needed.__module__}.{needed.__name__}, and a state_dict holds no functions: "
                "construct the optimizer that loads it with that, or use from_optimizer"
            )
