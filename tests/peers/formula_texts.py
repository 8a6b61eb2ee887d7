"""Steps of other packages on one layer, in float64 NumPy, in the order that their sources take them.

Each function is ``(w, g, state, t, lr, decay) -> w``; `state` is the layer's own dict, `t` counts from 1.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Step = Callable[[Any, Any, dict[str, Any], int, float, float], Any]
BETA1, BETA2, EPS, MOMENTUM, COEFFICIENT = 0.9, 0.999, 1e-6, 0.9, 0.02


def norm(x: Any) -> float:
    return float(np.sqrt(np.square(x).sum()))


def moments(g: Any, state: dict[str, Any]) -> tuple[Any, Any]:
    state["m"] = BETA1 * state.get("m", 0.0) + (1 - BETA1) * g
    state["v"] = BETA2 * state.get("v", 0.0) + (1 - BETA2) * g * g
    return state["m"], state["v"]


def corrected(g: Any, state: dict[str, Any], t: int) -> tuple[Any, Any]:
    m, v = moments(g, state)
    return m / (1 - BETA1**t), v / (1 - BETA2**t)


def quotient(above: float, below: float) -> float:
    return above / below if above > 0 and below > 0 else 1.0


# -- LAMB ----------------------------------------------------------------------------------------------------


def tensorflow_addons(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    m, v = corrected(g, state, t)
    update = m / (np.sqrt(v) + EPS) + decay * w
    return w - quotient(norm(w), norm(update)) * lr * update


def paddle(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    """So does Apex without use_nvlamb: no ratio without decay."""
    m, v = corrected(g, state, t)
    update = m / (np.sqrt(v) + EPS) + decay * w
    return w - (quotient(norm(w), norm(update)) if decay != 0 else 1.0) * lr * update


def keras(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    w = w - w * decay * lr
    m, v = corrected(g, state, t)
    update = m / (np.sqrt(v) + EPS)
    return w - quotient(norm(w), norm(update)) * lr * update


def fastai(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    w = w * (1 - lr * decay)
    m, v = corrected(g, state, t)
    step = m / (np.sqrt(v) + EPS)
    r1, r2 = np.sqrt(np.square(w).mean()), np.sqrt(np.square(step).mean())
    return w - lr * (1.0 if r1 == 0 or r2 == 0 else min(r1 / r2, 10.0)) * step


def bounded(most: float) -> Step:
    def step(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
        m, v = corrected(g, state, t)
        update = m / (np.sqrt(v) + EPS) + decay * w
        r = min(norm(w) / norm(update), most) if norm(w) > 0 and norm(update) > 0 else 1.0
        return w - lr * r * update

    return step


def albert(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    m, v = moments(g, state)
    update = m / (np.sqrt(v) + EPS) + decay * w
    return w - quotient(norm(w), norm(update)) * lr * update


def mxnet_lamb(lower: float, upper: float, corrects: bool) -> Step:
    def step(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
        m, v = corrected(g, state, t) if corrects else moments(g, state)
        r1 = min(max(norm(w), lower), upper)
        update = m / (np.sqrt(v) + EPS) + decay * w
        r2 = norm(update)
        return w - lr * (1.0 if r1 == 0 or r2 == 0 else r1 / r2) * update

    return step


def mindspore(guarded: bool) -> Step:
    def step(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
        m, v = corrected(g, state, t)
        update = m / (np.sqrt(v) + EPS) + decay * w
        r = quotient(norm(w), norm(m / np.sqrt(v + EPS) + decay * w))
        if guarded and norm(g) == 0:
            r = 1.0
        return w - min(r, 10.0) * lr * update

    return step


def oneflow(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    m, v = corrected(g, state, t)
    update = m / (np.sqrt(v) + EPS)
    return w - lr * quotient(norm(w), norm(update)) * (update + decay * w)


LAMB: dict[str, Step] = {
    "paper-v1": bounded(10.0),
    "lambc": bounded(1.0),
    "nvlamb": tensorflow_addons,
    "tfa": tensorflow_addons,
    "tf-models": tensorflow_addons,
    "apex": paddle,
    "paddle": paddle,
    "keras": keras,
    "fastai": fastai,
    "albert": albert,
    "colossalai": albert,
    "mindspore": tensorflow_addons,
    "mindspore-gpu": mindspore(False),
    "mindspore-1x": mindspore(True),
    "mxnet": mxnet_lamb(0.0, np.inf, True),
    "gluonnlp": mxnet_lamb(1e-3, 10.0, False),
    "oneflow": oneflow,
}

# -- LARS ----------------------------------------------------------------------------------------------------


def buffer_without_rate(d: Any, state: Any) -> Any:
    state["mu"] = MOMENTUM * state.get("mu", 0.0) + d
    return state["mu"]


def barlowtwins(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    d = g + decay * w
    q = COEFFICIENT * norm(w) / norm(d) if norm(w) > 0 and norm(d) > 0 else 1.0
    return w - lr * buffer_without_rate(q * d, state)


def simclr(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    d = g + decay * w
    trust = COEFFICIENT * norm(w) / norm(d) if norm(w) > 0 and norm(d) > 0 else 1.0
    return w - buffer_without_rate(lr * trust * d, state)


def larc(clips: bool) -> Step:
    def step(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
        if norm(w) != 0 and norm(g) != 0:
            rate = COEFFICIENT * norm(w) / (norm(g) + norm(w) * decay + 1e-8)
            g = (g + decay * w) * (min(rate / lr, 1.0) if clips else rate)
        return w - lr * buffer_without_rate(g, state)

    return step


def lightning_bolts(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    return (larc(False) if decay != 0 else plain)(w, g, state, t, lr, decay)


def plain(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    return w - lr * buffer_without_rate(g, state)


def tensorflow_mlperf(epsilon: float) -> Step:
    def step(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
        trust = 1.0
        if norm(w) > 0 and norm(g) > 0:
            trust = COEFFICIENT * norm(w) / (norm(g) + decay * norm(w) + epsilon)
        state["mom"] = state.get("mom", 0.0) * MOMENTUM - (g + decay * w) * lr * trust
        return w + state["mom"]

    return step


def ipex(w: Any, g: Any, state: Any, t: int, lr: float, decay: float) -> Any:
    trust = COEFFICIENT * norm(w) / (norm(g) + decay * norm(w)) if norm(w) > 0 and norm(g) > 0 else 1.0
    return w - lr * trust * buffer_without_rate(g + decay * w, state)


LARS: dict[str, Step] = {
    "simclr": simclr,
    "tf-models": simclr,
    **dict.fromkeys(("barlowtwins", "vicreg", "dino", "moco-v3", "mae"), barlowtwins),
    "larc": larc(True),
    "larc-scale": larc(False),
    "solo-learn": larc(False),
    "lightning-bolts": lightning_bolts,
    "lightly": lightning_bolts,
    "mlperf": tensorflow_mlperf(1e-7),
    "mxnet": tensorflow_mlperf(1e-8),
    "ipex": ipex,
}
