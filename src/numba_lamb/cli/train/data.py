"""The handwritten digits that ship with scikit-learn, split once and for all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, train_test_split

CLASSES = 10
TEST_SAMPLES = 360
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
    digits = load_digits()
    images, labels = digits.data, digits.target
    samples = np.arange(len(labels))
    train, test = train_test_split(samples, test_size=TEST_SAMPLES, stratify=labels, random_state=0)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(train, labels[train])
    return Digits(
        test=_task(images, labels, train, test),
        folds=[_task(images, labels, train[fit], train[held_out]) for fit, held_out in folds],
    )


def _task(
    images: NDArray[np.float64],
    labels: NDArray[np.int64],
    train: NDArray[np.int64],
    held_out: NDArray[np.int64],
) -> Task:
    # One mean and one deviation over all pixels of the training samples: nothing is learned from the others.
    mean, deviation = images[train].mean(), images[train].std()
    inputs = ((images - mean) / deviation).astype(np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[labels[train]]
    return Task(inputs[train], targets, inputs[held_out], labels[held_out])
