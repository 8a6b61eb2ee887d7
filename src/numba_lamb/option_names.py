"""The names of all options, of either API, and which one a misplaced or misspelt name stands for."""

from collections.abc import Collection


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


NUMPY_OPTIONS = _words(
    "learning_rate beta1 beta2 eps weight_decay decay_filter adapt_filter max_grad_norm nonfinite num_threads "
    "capture_steps momentum loss_scale use_nesterov epsilon coefficient use_clip lars_filter variant lr "
    "grad_centralization"
)
"""Options of constructors and groups of the NumPy API."""
TORCH_OPTIONS = _words(
    "lr betas eps weight_decay variant always_adapt bias_correction grad_averaging trust_clip decoupled_decay "
    "maximize max_grad_norm decay_filter adapt_filter nonfinite fused_amp momentum nesterov "
    "trust_coefficient"
)
"""Options of constructors and groups for PyTorch."""
OPTIONS = NUMPY_OPTIONS | TORCH_OPTIONS
_ONE_THING = (
    ("lr", "learning_rate"),
    ("betas", "beta1", "beta2"),
    ("nesterov", "use_nesterov"),
    ("eps", "epsilon"),
    ("trust_coefficient", "coefficient"),
    ("trust_clip", "use_clip"),
    ("adapt_filter", "lars_filter"),
)
"""Names of one option."""


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
