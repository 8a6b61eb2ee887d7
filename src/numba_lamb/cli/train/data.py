"""The handwritten digits that come with the package (`digits.txt` says from where), split once and for all."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = 10
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Task:
    """What one run sees: samples to train on, and held-out samples to be judged by."""

    inputs: NDArray[np.float32]
    targets: NDArray[np.float32]
    held_out_inputs: NDArray[np.float32]
    held_out_labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Digits:
    """The task of the table, and the cross-validation tasks made from its training part alone."""

    test: Task
    folds: list[Task]


def load() -> Digits:
    """Return the digits: 1437 samples to train on, 360 to test on, and five folds of the 1437.

    Both splits are stratified by digit, and the same for every optimizer, batch size and seed.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        images, labels = file["images"].astype(np.float64), file["labels"].astype(np.int64)
        train, test, fold = file["train"], file["test"], file["fold"]
    return Digits(
        test=_task(images, labels, train, test),
        folds=[_task(images, labels, train[fold != k], train[fold == k]) for k in range(FOLDS)],
    )


def _task(
    images: NDArray[np.float64],
    labels: NDArray[np.int64],
    train: NDArray[np.uint16],
    held_out: NDArray[np.uint16],
) -> Task:
    # One mean and one deviation over all pixels of the training samples: nothing is learned from the others.
    mean, deviation = images[train].mean(), images[train].std()
    inputs = ((images - mean) / deviation).astype(np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[labels[train]]
    return Task(inputs[train], targets, inputs[held_out], labels[held_out])
