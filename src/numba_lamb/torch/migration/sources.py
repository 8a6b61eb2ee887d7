"""Whose optimizer or state dict it is: told by names of classes and by keys, without importing any package."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from numba_lamb.methods.table import METHODS

_LAMB = "step exp_avg exp_avg_sq"
_NORMS = "weight_norm adam_norm trust_ratio"
_EIGHT_BIT = ("qmap", "absmax", "max1", "max2", "new_max", "__bnb_optimizer")


@dataclass(frozen=True)
class Source:
    """One optimizer of another package.

    Attributes
    ----------
    name : str
        What messages call it.
    kind : str
        The class of ours that continues it.
    packages : frozenset of str
        Top packages that its class comes from.
    classes : frozenset of str
        Names of its class.
    keys : frozenset of str
        Group keys that are always there.
    others : frozenset of str
        Group keys of its own that have no use here, or another name.
    state : frozenset of str
        What an entry of its state may hold.
    """

    name: str
    kind: str
    packages: frozenset[str]
    classes: frozenset[str]
    keys: frozenset[str]
    others: frozenset[str]
    state: frozenset[str]


def _source(
    name: str, kind: str, packages: str, classes: str, *, keys: str, others: str = "", state: str = _LAMB
) -> Source:
    sets = (frozenset(names.split()) for names in (packages, classes, keys, others, state))
    return Source(name, kind, *sets)


APEX = _source(
    "apex.optimizers.FusedLAMB",
    "Lamb",
    "apex",
    "FusedLAMB FusedMixedPrecisionLamb",
    keys="lr betas eps weight_decay bias_correction grad_averaging max_grad_norm",
    others="adam_w_mode amsgrad set_grad_none step use_nvlamb",
)
TIMM_LAMB = _source(
    "timm.optim.Lamb",
    "Lamb",
    "timm",
    "Lamb",
    keys="lr betas eps weight_decay bias_correction grad_averaging max_grad_norm trust_clip always_adapt",
    others="caution corrected_weight_decay decoupled_decay foreach max_lr_snapshot step",
)
DEEPSPEED = _source(
    "deepspeed.ops.lamb.FusedLamb",
    "Lamb",
    "deepspeed",
    "FusedLamb",
    keys="lr betas eps weight_decay bias_correction max_grad_norm max_coeff min_coeff",
)
PYTORCH_OPTIMIZER_LAMB = _source(
    "pytorch_optimizer.Lamb",
    "Lamb",
    "pytorch_optimizer",
    "Lamb",
    keys="lr betas eps weight_decay weight_decouple fixed_decay rectify grad_averaging max_grad_norm adam",
    others="adam_debias adanorm adanorm_r foreach step",
    state=f"{_LAMB} {_NORMS} exp_grad_adanorm",
)
ADAM = _source(
    "torch.optim.Adam or AdamW",
    "Lamb",
    "torch",
    "Adam AdamW",
    keys="lr betas eps weight_decay amsgrad",
    others="capturable decoupled_weight_decay differentiable foreach fused",
    state=f"{_LAMB} max_exp_avg_sq",
)
TORCH_OPTIMIZER = _source(
    "torch_optimizer.Lamb",
    "Lamb",
    "torch_optimizer pytorch_lamb",
    "Lamb",
    keys="lr betas eps weight_decay",
    state=f"{_LAMB} {_NORMS}",
)
BITSANDBYTES = _source(
    "bitsandbytes.optim.LAMB",
    "Lamb",
    "bitsandbytes",
    "LAMB LAMB32bit LAMB8bit",
    keys="lr betas eps weight_decay",
    others="alpha t_alpha t_beta3",
    state="step state1 state2 unorm_vec gnorm_vec",
)
TIMM_LARS = _source(
    "timm.optim.Lars",
    "Lars",
    "timm",
    "Lars",
    keys="lr momentum dampening weight_decay nesterov trust_coeff eps trust_clip always_adapt",
    others="foreach",
    state="momentum_buffer",
)
PYTORCH_OPTIMIZER_LARS = _source(
    "pytorch_optimizer.LARS",
    "Lars",
    "pytorch_optimizer",
    "LARS",
    keys="lr momentum dampening weight_decay nesterov trust_coefficient",
    others="foreach step",
    state="momentum_buffer",
)
SGD = _source(
    "torch.optim.SGD",
    "Momentum",
    "torch",
    "SGD",
    keys="lr momentum dampening weight_decay nesterov maximize",
    others="differentiable foreach fused",
    state="momentum_buffer",
)

SOURCES = (
    *(DEEPSPEED, PYTORCH_OPTIMIZER_LAMB, TIMM_LAMB, APEX, ADAM, TORCH_OPTIMIZER, BITSANDBYTES),
    *(TIMM_LARS, PYTORCH_OPTIMIZER_LARS, SGD),
)
"""In the order a state dict is compared with them: what an earlier one has, a later one may lack."""

_FORMULAS = frozenset(
    {
        *("adam_debias", "ams_bound", "bias_correction", "caution", "coeff_beta", "corrected_weight_decay"),
        *("delta", "eps", "fixed_decay", "grad_averaging", "max_coeff", "momentum_decay", "nesterov"),
        *("rectify", "trust_clip", "trust_coeff", "trust_coefficient", "wd_ratio", "weight_decouple"),
    }
)
"""Group keys that stand for a formula: where a source has no such key, it is not the source."""

_OURS = tuple(METHODS)
"""The classes of this package."""


def known() -> str:
    """Return the names of all sources, each with the class that continues it."""
    return ", ".join(f"{source.name} ({source.kind})" for source in SOURCES)


def ours(groups: Sequence[Mapping[str, Any]]) -> str | None:
    """Return which class of this package wrote `groups`, or None."""
    if not any("variant" in group or "nonfinite" in group for group in groups):
        return None
    # Groups of an older version may lack options, and one class may have all of another's.
    own = {kind: {*METHODS[kind].names} for kind in _OURS}
    return max(_OURS, key=lambda kind: (len(own[kind] & groups[0].keys()), -len(own[kind])))


def our_class(other: torch.optim.Optimizer) -> str | None:
    """Return which class of this package `other` is of, or None."""
    for cls in type(other).__mro__:
        if cls.__module__.partition(".")[0] == "numba_lamb" and cls.__name__ in _OURS:
            return cls.__name__
    return None


def source_of_dict(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any]) -> Source:
    """Return the source that wrote `groups` and `state`; a `ValueError` where none did."""
    held = frozenset(str(key) for entry in state.values() if isinstance(entry, Mapping) for key in entry)
    for source in SOURCES:
        if all(_wrote(source, group, held) for group in groups):
            return source
    keys = ", ".join(sorted({str(key) for group in groups for key in group} - {"params"}))
    raise ValueError(
        f"state_dict comes from no optimizer that is known here: its groups have the keys {keys}; its state holds "
        f"{', '.join(sorted(held)) or 'nothing'}. Known are {known()}"
    )


def _wrote(source: Source, group: Mapping[str, Any], held: frozenset[str]) -> bool:
    if not source.keys <= group.keys() or _FORMULAS & group.keys() - source.keys - source.others:
        return False
    if source is TORCH_OPTIMIZER and "trust_ratio" not in held:
        return False
    if source is BITSANDBYTES:
        return "state1" in held
    return held <= source.state


def is_eight_bit(entry: Mapping[Any, Any]) -> bool:
    """Return whether `entry`, a parameter's state by bitsandbytes, is quantised."""
    moments = (entry.get("state1"), entry.get("state2"))
    return any(str(key).startswith(_EIGHT_BIT) for key in entry) or any(
        isinstance(moment, torch.Tensor) and moment.dtype is torch.uint8 for moment in moments
    )


def source_of_class(other: torch.optim.Optimizer) -> Source:
    """Return the source whose class that of `other` is; a `TypeError` where there is none."""
    cls = type(other)
    package = cls.__module__.partition(".")[0]
    for source in SOURCES:
        if package in source.packages and cls.__name__ in source.classes:
            return source
    raise TypeError(
        f"other is a {cls.__module__}.{cls.__qualname__}, which is not known here. Known are {known()}"
    )


def check_kind(kind: str, found: str, name: str) -> None:
    """Raise a `ValueError` where `kind` is to continue `name`, which the class `found` does."""
    if kind not in _OURS:
        raise ValueError(f"kind must be one of {', '.join(_OURS)}, not {kind!r}")
    if kind != found:
        raise ValueError(f"{kind} cannot continue {name}, which {found} continues")
