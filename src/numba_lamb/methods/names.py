"""The names of all options, of either API, and which one a misplaced or misspelt name stands for."""

from collections.abc import Collection

from numba_lamb.methods.table import METHODS

_DECLARED = [option for method in METHODS.values() for option in method.options]
NUMPY_OPTIONS = frozenset(name for option in _DECLARED for name in option.numpy_names) | {
    "lr",
    "loss_scale",
    "lars_filter",
    "num_threads",
    "capture_steps",
    "comm",
}
"""Options of constructors and groups of the NumPy API."""
TORCH_OPTIONS = frozenset(option.name for option in _DECLARED) | {"fused_amp"}
"""Options of constructors and groups for PyTorch."""
OPTIONS = NUMPY_OPTIONS | TORCH_OPTIONS
_ONE_THING = [
    *dict.fromkeys((option.name, *option.alias) for option in _DECLARED if option.alias),
    ("adapt_filter", "lars_filter"),
]
"""Names of one option."""


_FUSED = "every step is one kernel over all parameters"
_ANYWHERE = {
    "fused": _FUSED,
    "foreach": _FUSED,
    "amsgrad": "no maximum of second moments is kept",
    "differentiable": "a step cannot be differentiated",
    "dampening": "gradients enter the momentum buffer whole",
    "nesterov": "Momentum and Lars have it",
    "use_nesterov": "Momentum and Lars have it",
    **dict.fromkeys(("betas", "beta1", "beta2"), "its one decay rate is momentum"),
}
_NUMPY_WAYS = {
    **_ANYWHERE,
    "fused_amp": "numba_lamb.torch has it",
    "process_group": "comm takes ranks",
    "trust_coefficient": "Lars has it",
    "coefficient": "Lars has it",
    "lars_filter": "Lars has it",
    "momentum": "its decay rates are beta1 and beta2",
    "capturable": "capture_steps=N lets a CUDA graph capture steps",
    "loss_scale": "give gradients divided by it",
}
TORCH_WAYS = {
    **_ANYWHERE,
    "momentum": "its decay rates are betas",
    "num_threads": "torch.set_num_threads sets the number",
    "loss_scale": "torch.amp.GradScaler divides gradients by one",
    "capture_steps": "the NumPy API has it",
    "comm": "ShardedLamb and its like average over a process_group",
    "capturable": "the NumPy API has capture_steps",
    "decoupled_weight_decay": "decoupled_decay=True or variant='adamw' decays as AdamW does",
}
"""What to do about names that are no options of a class for PyTorch."""


def instead_of(name: str, own: Collection[str], for_torch: bool) -> str | None:
    """Return what to write in place of an option `name`, which is none of the class with the options `own`."""
    if name == "betas" and "beta1" in own:
        return "betas=(a, b) is beta1=a, beta2=b here"
    if name in ("beta1", "beta2") and "betas" in own:
        return "beta1=a, beta2=b is betas=(a, b) here"
    right = meant(name, own)
    if right is not None:
        return f"did you mean {right!r}?"
    return (TORCH_WAYS if for_torch else _NUMPY_WAYS).get(name)


def meant(name: str, own: Collection[str]) -> str | None:
    """Return which of its `own` options a class is asked for by `name`, if that is not one of them.

    That is the option's name in the other API, or one edit from `name`: a letter inserted, left out, replaced, or
    two exchanged. Case and hyphens do not count.
    """
    plain = name.lower().replace("-", "_")
    for names in _ONE_THING:
        if plain in names:
            twin = next((other for other in names if other in own), None)
            if twin is not None:
                return twin
    # One letter is near too many.
    near = (option for option in sorted(own) if len(name) > 1 and is_one_edit(plain, option))
    return next(near, None)


def is_one_edit(one: str, other: str) -> bool:
    """Return whether at most one letter must be inserted, left out, replaced or exchanged with its neighbour."""
    start = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if start is None:
        return abs(len(one) - len(other)) <= 1
    tail, rest = one[start:], other[start:]
    return (
        tail[1:] == rest
        or tail == rest[1:]
        or tail[1:] == rest[1:]
        or (tail[1::-1] == rest[:2] and tail[2:] == rest[2:])
    )
