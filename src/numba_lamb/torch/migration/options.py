"""Options of a parameter group, from the names and formulas of other optimizers to those of this package."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numba_lamb.methods.table import METHODS
from numba_lamb.torch.migration import sources
from numba_lamb.torch.migration.filters import no_layer, two_or_more_dimensions
from numba_lamb.torch.migration.sources import Source

GROUP_OPTIONS = {name: frozenset(method.names) for name, method in METHODS.items()}
"""What a group of each class has."""
_OURS_ALONE = ("maximize", "max_grad_norm", "grad_centralization", "weight_norm_bounds", "nonfinite")
_OF_FORMULA = {
    name: tuple(option.name for option in method.options if option.in_variant)
    for name, method in METHODS.items()
}
"""What a variant sets, where it is None."""


@dataclass(frozen=True)
class Context:
    """What is known besides the group that is being translated.

    Attributes
    ----------
    source : Source
        Whose group it is.
    where : str
        Which group, for messages.
    outside : mapping
        Settings that the source keeps outside its groups, as far as they can be seen.
    ours : mapping
        Our optimizer's settings, for what cannot be seen.
    given : mapping
        Options that the caller has given, which stand in place of the source's.
    """

    source: Source
    where: str
    outside: Mapping[str, Any]
    ours: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    def refuse(self, condition: Any, key: str, value: Any, reason: str) -> None:
        """Raise a `ValueError` under `condition`, unless the caller has given the option or the formula."""
        if condition and key not in self.given and "variant" not in self.given:
            raise ValueError(f"{self.where} of {self.source.name} has {key}={value!r}: {reason}")

    def maximize(self) -> bool:
        """Return whether to maximize where groups do not say: the source's setting, or ours if it is not seen."""
        return bool(self.outside.get("maximize", self.ours.get("maximize", False)))

    def limit(self) -> float | None:
        """Return Apex's and timm's limit of the gradients' norm, one for all groups."""
        limit = self.outside["max_grad_norm"]
        self.refuse(
            limit == 0,
            "max_grad_norm",
            limit,
            "every gradient becomes 0; only None and numbers > 0 can be continued",
        )
        return None if limit is None else float(limit)


def group_options(kind: str, group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Return the options of a group of our class `kind` that continues `group`, without ``params``."""
    source = context.source
    # What no source has: as the loading optimizer has it.
    options: dict[str, Any] = {
        option.name: context.ours.get(option.name, option.default)
        for option in METHODS[kind].options
        if option.name in _OURS_ALONE
    }
    options |= {"lr": float(group["lr"]), "weight_decay": float(group["weight_decay"])}
    if kind == "Lamb":
        first, second = group["betas"]
        options |= {"betas": (float(first), float(second)), "eps": float(group["eps"])}
    else:
        options |= {"momentum": float(group["momentum"]), "nesterov": bool(group["nesterov"])}
    options |= _TRANSLATORS[source.name](group, context)
    if "variant" in context.given:
        options |= dict.fromkeys(_OF_FORMULA[kind])
        options.pop("adapt_filter", None)
    options |= {key: value for key, value in context.given.items() if key in GROUP_OPTIONS[kind]}
    own = source.keys | source.others | options.keys() | {"params"}
    return options | {key: copy.deepcopy(value) for key, value in group.items() if key not in own}


def _adam(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    refuse = context.refuse
    refuse(group["amsgrad"], "amsgrad", True, "it is not supported; only amsgrad=False can be continued")
    refuse(
        group.get("differentiable"),
        "differentiable",
        True,
        "it is not supported; only differentiable=False can be continued",
    )
    decoupled = group.get("decoupled_weight_decay", context.outside.get("decoupled"))
    reason = (
        "it may be Adam's, which adds it to the gradient, or AdamW's. If it is AdamW's, set "
        "'decoupled_weight_decay' of the group to True"
        if decoupled is None
        else "Adam adds it to the gradient, Lamb does not; only weight_decay=0, or AdamW's, can be continued"
    )
    refuse(group["weight_decay"] != 0 and not decoupled, "weight_decay", group["weight_decay"], reason)
    return _lamb("adamw", maximize=bool(group.get("maximize", context.maximize())))


def _lamb(variant: str, **options: Any) -> dict[str, Any]:
    return {
        "variant": variant,
        "always_adapt": None,
        "bias_correction": None,
        "grad_averaging": True,
        "trust_clip": False,
        "decoupled_decay": None,
        **options,
    }


def _clamped(limit: float) -> dict[str, Any]:
    """Return the option that stands for a limit of the weight norm, where it is not the variant's."""
    return {} if limit == 10 else {"weight_norm_bounds": (0.0, float(limit))}


def _apex(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    decoupled = group.get("adam_w_mode", context.outside.get("adam_w_mode", True))
    context.refuse(
        not decoupled and group["weight_decay"] != 0,
        "adam_w_mode",
        decoupled,
        f"it adds the weight decay of {group['weight_decay']} to the gradient; only adam_w_mode=True, or no "
        "decay, can be continued",
    )
    return _lamb(
        "apex",
        always_adapt=group.get(
            "use_nvlamb", context.outside.get("use_nvlamb", context.ours.get("always_adapt"))
        ),
        bias_correction=bool(group["bias_correction"]),
        grad_averaging=bool(group["grad_averaging"]),
        max_grad_norm=context.limit(),
    )


def _timm_lamb(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    decoupled = bool(group.get("decoupled_decay", False))
    corrected = group.get("corrected_weight_decay", False)
    context.refuse(
        group.get("caution"), "caution", True, "updates are not masked; only caution=False can be continued"
    )
    context.refuse(
        corrected and decoupled and group["weight_decay"] != 0,
        "corrected_weight_decay",
        True,
        "decay is not multiplied by lr/max_lr; only corrected_weight_decay=False can be continued",
    )
    return _lamb(
        "timm",
        always_adapt=bool(group["always_adapt"]),
        bias_correction=bool(group["bias_correction"]),
        grad_averaging=bool(group["grad_averaging"]),
        trust_clip=bool(group["trust_clip"]),
        decoupled_decay=decoupled,
        max_grad_norm=context.limit(),
    )


def _deepspeed(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    refuse = context.refuse
    coefficients = (float(group["min_coeff"]), float(group["max_coeff"]))
    refuse(
        not group["bias_correction"],
        "bias_correction",
        False,
        "the rate is corrected; only bias_correction=True can be continued",
    )
    refuse(
        group["max_grad_norm"] > 0,
        "max_grad_norm",
        group["max_grad_norm"],
        "its norm comes from DeepSpeed's engine; only max_grad_norm=0 can be continued; Lamb(max_grad_norm=...) "
        "clips",
    )
    inside = context.outside.get("eps_inside_sqrt", False)
    refuse(
        inside,
        "eps_inside_sqrt",
        True,
        "eps is added to the root; only eps_inside_sqrt=False can be continued",
    )
    return _lamb("deepspeed", trust_clip=False if coefficients == (0.01, 10.0) else coefficients)


def _torch_optimizer(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    if "clamp_value" not in context.outside:
        # Its dict tells neither 'adam' nor 'clamp_value': whoever made our optimizer may have said so.
        variant = str(context.ours.get("variant"))
        said = variant in ("adamw", "paper") and context.ours.get("bias_correction") is False
        return _lamb(variant, bias_correction=False) if said else _lamb("torch_optimizer")
    context.refuse(
        context.outside["debias"],
        "debias",
        True,
        "it corrects the rate alone, which is not supported; only debias=False can be continued",
    )
    if context.outside["adam"]:
        return _lamb("adamw", bias_correction=False)
    clamp = context.outside["clamp_value"]
    if clamp == math.inf:
        return _lamb("paper", bias_correction=False)
    return _lamb("torch_optimizer", **_clamped(clamp))


def _pytorch_optimizer_lamb(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    refuse = context.refuse
    for key in ("rectify", "adanorm", "adam_debias"):
        refuse(group.get(key), key, True, f"it is not supported; only {key}=False can be continued")
    refuse(
        group["fixed_decay"] and group["weight_decouple"] and group["weight_decay"] != 0,
        "fixed_decay",
        True,
        "decay is multiplied by the rate; only fixed_decay=False can be continued",
    )
    options = _lamb(
        "pytorch_optimizer",
        grad_averaging=bool(group["grad_averaging"]),
        decoupled_decay=bool(group["weight_decouple"]),
        maximize=context.maximize(),
        **_clamped(context.outside.get("clamp", 10)),
    )
    if "pre_norm" in context.outside:
        limit = context.outside["max_grad_norm"]
        options["max_grad_norm"] = float(limit) if context.outside["pre_norm"] and limit != 0 else None
    if group["adam"]:
        options["adapt_filter"] = no_layer
    return options


def _bitsandbytes(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    context.refuse(
        "variant" not in context.ours,
        "formula",
        "min(1, max_unorm*|w|/|u|)",
        "it only ever shortens the update, as no variant does; give the one to go on with, as in variant='paper'",
    )
    return {key: context.ours.get(key, value) for key, value in _lamb("paper").items()}


def _check_dampening(group: Mapping[str, Any], context: Context) -> None:
    context.refuse(
        group["dampening"] != 0 and group["momentum"] != 0,
        "dampening",
        group["dampening"],
        "gradients enter the buffer whole; only dampening=0 can be continued",
    )


def _timm_lars(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    _check_dampening(group, context)
    return {
        "trust_coefficient": float(group["trust_coeff"]),
        "eps": float(group["eps"]),
        "variant": "timm",
        "always_adapt": bool(group["always_adapt"]),
        "trust_clip": bool(group["trust_clip"]),
    }


def _pytorch_optimizer_lars(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    _check_dampening(group, context)
    return {
        "trust_coefficient": float(group["trust_coefficient"]),
        "eps": None,
        "variant": "pytorch_optimizer",
        "always_adapt": None,
        "trust_clip": False,
        "maximize": context.maximize(),
        "decay_filter": two_or_more_dimensions,
        "adapt_filter": two_or_more_dimensions,
    }


def _sgd(group: Mapping[str, Any], context: Context) -> dict[str, Any]:
    _check_dampening(group, context)
    differentiable = group.get("differentiable")
    context.refuse(
        differentiable,
        "differentiable",
        True,
        "it is not supported; only differentiable=False can be continued",
    )
    return {"maximize": bool(group["maximize"])}


_TRANSLATORS: dict[str, Callable[[Mapping[str, Any], Context], dict[str, Any]]] = {
    sources.ADAM.name: _adam,
    sources.APEX.name: _apex,
    sources.TIMM_LAMB.name: _timm_lamb,
    sources.DEEPSPEED.name: _deepspeed,
    sources.TORCH_OPTIMIZER.name: _torch_optimizer,
    sources.PYTORCH_OPTIMIZER_LAMB.name: _pytorch_optimizer_lamb,
    sources.BITSANDBYTES.name: _bitsandbytes,
    sources.TIMM_LARS.name: _timm_lars,
    sources.PYTORCH_OPTIMIZER_LARS.name: _pytorch_optimizer_lars,
    sources.SGD.name: _sgd,
}
