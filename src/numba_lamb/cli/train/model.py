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
_WEIGHTS, _BIASES = ([f"{name} {kind}" for name in LAYERS] for kind in ("weight", "bias"))
for _weight, _bias, (_inputs, _outputs) in zip(_WEIGHTS, _BIASES, pairwise(WIDTHS), strict=True):
    SHAPES[_weight] = _inputs, _outputs
    SHAPES[_bias] = (_outputs,)
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
    for name, (inputs, outputs) in zip(_WEIGHTS, pairwise(WIDTHS), strict=True):
        params[name][...] = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
    return flat


def logits(params: Params, inputs: NDArray[Any]) -> NDArray[Any]:
    """Return the unnormalised log-probabilities of the digits."""
    for k, (weight, bias) in enumerate(zip(_WEIGHTS, _BIASES, strict=True)):
        if k:
            inputs = np.maximum(inputs, 0)
        inputs = inputs @ params[weight] + params[bias]
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
        # NumPy's maximum of two rows takes half the time of that of a row and a number.
        self._zeros = [np.zeros(width, np.float32) for width in WIDTHS[1:-1]]

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
        for k, output in enumerate(outputs):
            np.dot(below, params[_WEIGHTS[k]], out=output)
            output += params[_BIASES[k]]
            if k < len(self._zeros):
                np.maximum(output, self._zeros[k], out=output)
            below = output
        scores = outputs[-1]
        # The copy has a row for each digit: NumPy takes maxima of ten rows far faster than of ten columns.
        scores -= scores.T.copy().max(axis=0)[:, np.newaxis]
        right = np.einsum("ij,ij->i", scores, targets)
        np.exp(scores, out=scores)
        totals = scores.sum(axis=1, keepdims=True)
        loss = float((np.log(totals[:, 0]) - right).sum() / count)
        # The loss by the scores: softmax minus target.
        delta = scores
        delta /= totals
        delta -= targets
        delta /= np.float32(count)
        for k in reversed(range(len(LAYERS))):
            below = outputs[k - 1] if k else inputs
            np.dot(below.T, delta, out=gradients[_WEIGHTS[k]])
            delta.sum(axis=0, out=gradients[_BIASES[k]])
            if k:
                behind, active = self._deltas[k - 1][:count], self._active[k - 1][:count]
                np.dot(delta, params[_WEIGHTS[k]].T, out=behind)
                np.greater(below, 0, out=active)
                behind *= active
                delta = behind
        return loss


def accuracy(params: Params, task: Task) -> float:
    """Return the share of held-out samples that are classified correctly; no finite answer is a wrong one."""
    scores = logits(params, task.held_out_inputs)
    right = np.isfinite(scores).all(axis=1) & (scores.argmax(axis=1) == task.held_out_labels)
    return float(right.mean())
