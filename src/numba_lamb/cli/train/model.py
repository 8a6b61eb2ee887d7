"""A multilayer perceptron in float32, with its backward pass written out."""

import math
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from numba_lamb.cli.train.data import CLASSES, Task

Params: TypeAlias = dict[str, NDArray[np.float32]]

WIDTHS = (64, 128, 128, CLASSES)
LAYERS = ("hidden 1", "hidden 2", "output")
SHAPES: dict[str, tuple[int, ...]] = {}
for _name, (_inputs, _outputs) in zip(LAYERS, pairwise(WIDTHS), strict=True):
    SHAPES[f"{_name} weight"] = _inputs, _outputs
    SHAPES[f"{_name} bias"] = (_outputs,)
SIZE = sum(math.prod(shape) for shape in SHAPES.values())


def views(flat: NDArray[np.float32]) -> Params:
    """Return the parameters, or their gradients, by name: pieces of one flat array of all of them."""
    ends = np.cumsum([math.prod(shape) for shape in SHAPES.values()])
    pieces = np.split(flat, ends[:-1])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(SHAPES.items(), pieces, strict=True)}


def initial(seed: int) -> NDArray[np.float32]:
    """Return fresh parameters as one flat array: weights after He et al. (2015), biases zero."""
    rng = np.random.default_rng([seed, 1])
    flat = np.zeros(SIZE, np.float32)
    params = views(flat)
    for name, (inputs, outputs) in zip(LAYERS, pairwise(WIDTHS), strict=True):
        params[f"{name} weight"][...] = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
    return flat


def logits(params: Params, inputs: NDArray[Any]) -> NDArray[Any]:
    """Return the unnormalised log-probabilities of the digits."""
    for name in LAYERS:
        if name != LAYERS[0]:
            inputs = np.maximum(inputs, 0)
        inputs = inputs @ params[f"{name} weight"] + params[f"{name} bias"]
    return inputs


class Backpropagation:
    """The loss and its gradients, with every array made once: fresh ones would cost more than the arithmetic.

    Parameters
    ----------
    rows : int
        The most samples in a batch.
    """

    def __init__(self, rows: int) -> None:
        self._outputs = [np.empty((rows, width), np.float32) for width in WIDTHS[1:]]
        self._deltas = [np.empty((rows, width), np.float32) for width in WIDTHS[1:-1]]
        self._active = [np.empty((rows, width), np.bool_) for width in WIDTHS[1:-1]]

    def loss_and_gradients(
        self, params: Params, inputs: NDArray[np.float32], targets: NDArray[np.float32], gradients: Params
    ) -> float:
        """Return the mean cross-entropy of a batch, and write its gradients over `gradients`.

        Parameters
        ----------
        params, gradients : dict of str to numpy.ndarray
            As `views` returns them.
        inputs, targets : numpy.ndarray
            One row for each sample; targets are one-hot.
        """
        count = len(inputs)
        outputs = [array[:count] for array in self._outputs]
        below = inputs
        for name, output in zip(LAYERS, outputs, strict=True):
            np.dot(below, params[f"{name} weight"], out=output)
            output += params[f"{name} bias"]
            if name != LAYERS[-1]:
                np.maximum(output, 0, out=output)
            below = output
        scores = outputs[-1]
        scores -= scores.max(axis=1, keepdims=True)
        right = (scores * targets).sum(axis=1)
        np.exp(scores, out=scores)
        totals = scores.sum(axis=1, keepdims=True)
        loss = float((np.log(totals[:, 0]) - right).mean())
        # The loss by the scores: softmax minus target.
        delta = scores
        delta /= totals
        delta -= targets
        delta /= np.float32(count)
        for k in reversed(range(len(LAYERS))):
            below = outputs[k - 1] if k else inputs
            np.dot(below.T, delta, out=gradients[f"{LAYERS[k]} weight"])
            delta.sum(axis=0, out=gradients[f"{LAYERS[k]} bias"])
            if k:
                behind, active = self._deltas[k - 1][:count], self._active[k - 1][:count]
                np.dot(delta, params[f"{LAYERS[k]} weight"].T, out=behind)
                np.greater(below, 0, out=active)
                behind *= active
                delta = behind
        return loss


def accuracy(params: Params, task: Task) -> float:
    """Return the share of held-out samples that are classified correctly; no finite answer is a wrong one."""
    scores = logits(params, task.held_out_inputs)
    right = np.isfinite(scores).all(axis=1) & (scores.argmax(axis=1) == task.held_out_labels)
    return float(right.mean())
