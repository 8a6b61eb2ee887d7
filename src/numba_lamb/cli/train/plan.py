"""Which runs there are and at which rates: everything that is decided before anything is trained."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numba_lamb import Lamb
from numba_lamb.cli.train.baselines import Adam, MomentumSGD
from numba_lamb.cli.train.model import Params, views
from numba_lamb.schedules import CosineWithWarmUpLR

BASE_BATCH = 32
WARMUP_SHARE = 0.1

MULTIPLES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""The columns of the map: what each optimizer's chosen rate is multiplied by."""


class Optimizer(Protocol):
    """What a run needs of an optimizer."""

    def step(self, gradients: Mapping[str, NDArray[Any]], /) -> None:
        """Update the parameters in place."""

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put back what `state_dict` returned."""


@dataclass(frozen=True)
class Contestant:
    """An optimizer, the rates it may choose from, and the rule its rate is scaled by.

    Attributes
    ----------
    grid : tuple of float
        Rates tried at the base batch.
    exponent : float
        A batch k times the base batch gets ``k**exponent`` times the chosen rate.
    make : callable
        From parameters and a schedule to the optimizer. No contestant decays weights.
    arrays : callable
        From a flat array of all parameters, or gradients, to what the optimizer takes.
    """

    title: str
    grid: tuple[float, ...]
    exponent: float
    make: Callable[[Params, CosineWithWarmUpLR], Optimizer]
    arrays: Callable[[NDArray[np.float32]], Params]


def _as_one(flat: NDArray[np.float32]) -> Params:
    # Adam and SGD treat every number alike, so that they need not know of layers.
    return {"all": flat}


def _lamb(params: Params, schedule: CosineWithWarmUpLR) -> Optimizer:
    # A run looks for gradients that are not finite itself, whichever optimizer it has.
    return Lamb(params, schedule, nonfinite="propagate")


# Decades, with the best one inside: at batch 32, rates a factor three apart are within each other's noise. At
# the full batch they are not, which the map shows: the table tells how rates carry over by rule, the map how good
# each optimizer can be.
CONTESTANTS = {
    "lamb": Contestant("LAMB", (0.001, 0.01, 0.1), 0.5, _lamb, views),
    "adam": Contestant("Adam", (0.001, 0.01, 0.1), 0.5, Adam, _as_one),
    "sgd": Contestant("Momentum SGD", (0.01, 0.1, 1.0), 1.0, MomentumSGD, _as_one),
}


@dataclass(frozen=True)
class Settings:
    """What the options decide: seeds 0 to `seeds` - 1, epochs of a run, folds of the rate search.

    Without folds there is no search, and rates are those that the package brings.
    """

    seeds: int
    epochs: int
    folds: int


@dataclass(frozen=True)
class Run:
    """One training from start to end.

    Attributes
    ----------
    rate : float
        The highest rate of the schedule, scaling included.
    batch : int
        Samples per step; an epoch's last batch may have fewer.
    seed : int
        Decides the initial weights and the order of the samples, alike for all optimizers.
    fold : int or None
        The fold held out in the rate search; None for the runs of table and map, judged by the test samples.
    """

    optimizer: str
    rate: float
    batch: int
    seed: int
    epochs: int
    fold: int | None

    def steps(self, samples: int) -> int:
        """Return how many steps the run takes on so many training samples."""
        return -(-samples // self.batch) * self.epochs

    def schedule(self, samples: int) -> CosineWithWarmUpLR:
        """Return the rate as a function of the step: a linear warm-up, then half a cosine wave to zero."""
        steps = self.steps(samples)
        warmup = max(1, round(WARMUP_SHARE * steps))
        return CosineWithWarmUpLR(self.rate, warmup_steps=warmup, total_steps=steps)


def batch_sizes(samples: int) -> tuple[int, ...]:
    """Return the batch sizes of table and map, the full batch first."""
    return (samples, 128, BASE_BATCH)


def search_runs(optimizer: str, rate: float, settings: Settings) -> list[Run]:
    """Return the runs that judge one rate of an optimizer's grid, one per fold."""
    return [Run(optimizer, rate, BASE_BATCH, fold, settings.epochs, fold) for fold in range(settings.folds)]


def table_runs(optimizer: str, base_rate: float, batch: int, settings: Settings) -> list[Run]:
    """Return the runs of one cell of the table, one per seed."""
    rate = scaled(base_rate, CONTESTANTS[optimizer].exponent, batch)
    return [Run(optimizer, rate, batch, seed, settings.epochs, None) for seed in range(settings.seeds)]


def map_runs(optimizer: str, base_rate: float, batch: int, settings: Settings, samples: int) -> list[Run]:
    """Return the runs of one cell of the map: one per seed at the full batch, of the first seed elsewhere."""
    runs = table_runs(optimizer, base_rate, batch, settings)
    # The full batch is what the map is asked about, and costs least.
    return runs if batch == samples else runs[:1]


def scaled(rate: float, exponent: float, batch: int) -> float:
    """Return the rate for `batch` by the rule: exponent 0.5 is the square root, 1 is linear."""
    return float(rate * math.pow(batch / BASE_BATCH, exponent))


def choose(accuracies: Mapping[float, float]) -> float:
    """Return the rate with the best accuracy; among equals, the largest."""
    return max(accuracies, key=lambda rate: (accuracies[rate], rate))
