"""How long each formula's first step is, beside the paper's: what changing the variant changes at once."""

import math
from typing import Literal, NamedTuple

import numpy as np

from numba_lamb.numerics import reference, rules
from numba_lamb.numerics.variants import LAMB_VARIANTS, LARS_VARIANTS, LambVariant


class FixedLayer(NamedTuple):
    """A layer whose first step is measured: its shape, the norm it starts with, and whether it is decayed."""

    shape: tuple[int, ...]
    norm: float
    decayed: bool


LAYERS = {
    "weight": FixedLayer((64, 64), 3.2, True),
    "heavy weight": FixedLayer((64, 64), 1280.0, True),
    "light weight": FixedLayer((64, 64), 3.2e-4, True),
    "bias": FixedLayer((64,), 0.8, False),
    "bias from 0": FixedLayer((64,), 0.0, False),
}
"""The layout: weights as they are initialised and at both ends, and what is exempt from decay."""
_RATES = {"lamb": 0.01, "lars": 1.0}
_DECAYS = {"lamb": 0.01, "lars": 1e-4}
_COEFFICIENT = 1e-3
_CORRECTIONS = {rules.UNCORRECTED: "none", rules.BY_FIRST: "first", rules.BY_BOTH: "both"}
_NORMS = {
    rules.DIRECTION: "direction",
    rules.EPS_IN_ROOT: "eps in root",
    rules.EPS_IN_ROOT_GUARDED: "eps in root, guarded",
    rules.UNDECAYED: "undecayed",
}


def formula_of(variant: LambVariant, eps: float) -> reference.Formula:
    """Return what the specification is told of a variant with its defaults."""
    return reference.Formula(
        bias_correction=variant.bias_correction,
        rate_correction=_CORRECTIONS[variant.rate_correction],
        decoupled_decay=variant.decoupled_decay,
        weight_limit=variant.weight_limit,
        ratio_epsilon=eps if variant.epsilon_in_ratio else 0.0,
        least=variant.least,
        most=variant.most,
        weight_floor=variant.weight_floor,
        norm_of=_NORMS[variant.norm_of],
    )


def first_step_lengths(method: Literal["lamb", "lars"]) -> dict[str, dict[str, float]]:
    r"""Return the length of each variant's first step over that of ``"paper"``.

    .. math:: \lVert \Delta w_\text{variant} \rVert / \lVert \Delta w_\text{paper} \rVert

    in float64, on the layers of `LAYERS` with normal gradients of size 0.01: rate 0.01 and decay 0.01 for LAMB,
    rate 1, decay 1e-4 and coefficient 1e-3 for LARS.

    Parameters
    ----------
    method : {"lamb", "lars"}
        Whose variants.

    Returns
    -------
    dict of str to dict of str to float
        By variant and layer; infinite where the paper's formula does not move the layer.

    Examples
    --------
    >>> lengths = first_step_lengths("lamb")
    >>> round(lengths["deepspeed"]["weight"], 3), round(lengths["apex"]["bias"], 3)
    (0.316, 9.995)
    >>> first_step_lengths("lars")["optax"]["bias from 0"]
    inf
    """
    names = LAMB_VARIANTS if method == "lamb" else LARS_VARIANTS
    moved = {name: {layer: _length(method, name, layer) for layer in LAYERS} for name in names}
    return {
        name: {layer: _over(own[layer], moved["paper"][layer]) for layer in LAYERS}
        for name, own in moved.items()
    }


def layer_and_gradient(name: str) -> tuple[reference.Float64, reference.Float64]:
    """Return the weights that a layer of `LAYERS` starts with, and its first gradient."""
    layer = LAYERS[name]
    random = np.random.default_rng([*map(ord, name)])
    w, g = random.standard_normal(layer.shape), 0.01 * random.standard_normal(layer.shape)
    return layer.norm / float(np.linalg.norm(w)) * w, g


def _length(method: Literal["lamb", "lars"], name: str, layer: str) -> float:
    w, g = layer_and_gradient(layer)
    zeros = np.zeros_like(w)
    decay = _DECAYS[method] if LAYERS[layer].decayed else 0.0
    rate = _RATES[method]
    if method == "lamb":
        formula = LAMB_VARIANTS[name]
        adapts = formula.adapts and (formula.always_adapt or decay > 0)
        eps = 1e-6
        after = reference.lamb(
            *(w, g, zeros, zeros, 1),
            learning_rate=rate,
            eps=eps,
            weight_decay=decay,
            adapt=adapts,
            formula=formula_of(formula, eps),
        ).w
    else:
        variant = LARS_VARIANTS[name]
        adapts = variant.always_adapt or decay > 0
        trust = reference.Trust(name, _COEFFICIENT, variant.eps, variant.trust_clip)
        after = reference.momentum(
            *(w, g, zeros),
            learning_rate=rate,
            momentum=0.9,
            weight_decay=decay,
            trust=trust if adapts else None,
        ).w
    return float(np.linalg.norm(after - w))


def _over(own: float, papers: float) -> float:
    if papers == 0:
        return 1.0 if own == 0 else math.inf
    return own / papers
