"""A multilayer perceptron in float32, differentiated by `autograd`."""

from itertools import pairwise
from typing import Any, TypeAlias

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from numpy.typing import NDArray

from numba_lamb.cli.train.data import CLASSES, Task

Params: TypeAlias = dict[str, NDArray[np.float32]]

WIDTHS = (64, 128, 128, CLASSES)
LAYERS = ("hidden 1", "hidden 2", "output")


def initial(seed: int) -> Params:
    """Return fresh parameters: weights after He et al. (2015), biases zero."""
    rng = np.random.default_rng([seed, 1])
    params: Params = {}
    for name, (inputs, outputs) in zip(LAYERS, pairwise(WIDTHS), strict=True):
        weights = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        params[f"{name} weight"] = weights.astype(np.float32)
        params[f"{name} bias"] = np.zeros(outputs, np.float32)
    return params


def logits(params: Params, inputs: NDArray[np.float32]) -> Any:
    """Return the unnormalised log-probabilities of the digits."""
    for name in LAYERS:
        if name != LAYERS[0]:
            inputs = anp.maximum(inputs, 0)
        inputs = anp.dot(inputs, params[f"{name} weight"]) + params[f"{name} bias"]
    return inputs


def cross_entropy(params: Params, inputs: NDArray[np.float32], targets: NDArray[np.float32]) -> Any:
    """Return the mean cross-entropy; `targets` are one-hot."""
    scores = logits(params, inputs)
    scores = scores - anp.max(scores, axis=1, keepdims=True)
    log_total = anp.log(anp.sum(anp.exp(scores), axis=1))
    return anp.mean(log_total - anp.sum(scores * targets, axis=1))


loss_and_gradients = value_and_grad(cross_entropy)
"""``loss_and_gradients(params, inputs, targets)``: the cross-entropy, and its gradients by name."""


def accuracy(params: Params, task: Task) -> float:
    """Return the share of held-out samples that are classified correctly; no finite answer is a wrong one."""
    scores = logits(params, task.held_out_inputs)
    right = np.isfinite(scores).all(axis=1) & (scores.argmax(axis=1) == task.held_out_labels)
    return float(right.mean())
