"""One run, epoch by epoch, with a state that can be put away and taken up again."""

import hashlib
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb import Lamb
from numba_lamb.cli.train import fit
from numba_lamb.cli.train.data import Task
from numba_lamb.cli.train.model import SHAPES, Backpropagation, accuracy, initial, views
from numba_lamb.cli.train.plan import CONTESTANTS, Run


@dataclass(frozen=True, eq=False)
class Result:
    """What is kept of a finished run.

    Attributes
    ----------
    accuracy : float
        Share of the held-out samples that the final weights classify correctly.
    stopped : bool
        Whether the run was stopped at a loss or gradient that was not finite.
    losses : list of float
        Mean training loss of each complete epoch.
    ratios : numpy.ndarray or None
        LAMB's trust ratios, layer by step, where the run was asked to keep them.
    weights_sha256 : str
        Digest of the final weights' bits.
    """

    run: Run
    accuracy: float
    stopped: bool
    losses: list[float]
    ratios: NDArray[np.float64] | None
    weights_sha256: str

    def tree(self) -> dict[str, Any]:
        """Return the result as a tree for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_tree(cls, tree: Any, run: Run, task: Task, *, keeps_ratios: bool, where: str) -> "Result":
        """Return the result of `run` that `tree` was made from.

        Raises
        ------
        ValueError
            If it is no result that this run on this task could have.
        """
        fit.check_keys(tree, [field.name for field in fields(cls)], where)
        fit.check_same(tree["run"], asdict(run), f"{where}['run']")
        fit.check_losses(tree["losses"], run.epochs, tree["stopped"], where, finished=True)
        share, judged = tree["accuracy"], len(task.held_out_labels)
        # A NaN fails the first comparison.
        fits = type(share) is float and 0 <= share <= 1 and round(share * judged) / judged == share
        fit.require(fits, f"{where}['accuracy']", f"a share of {judged} samples", share)
        hexadecimal = r"[0-9a-f]{64}"
        weights = tree["weights_sha256"]
        fits = isinstance(weights, str) and re.fullmatch(hexadecimal, weights) is not None
        fit.require(fits, f"{where}['weights_sha256']", hexadecimal, weights)
        ratios, where = tree["ratios"], f"{where}['ratios']"
        if keeps_ratios:
            fits = isinstance(ratios, np.ndarray) and ratios.dtype == np.float64
            fit.require(fits, where, "an array of float64", ratios)
            steps = ratios.shape[-1] if ratios.ndim else 0
            per_epoch = run.steps(len(task.inputs)) // run.epochs
            fit.check_steps(steps, len(tree["losses"]), per_epoch, tree["stopped"], f"number of {where}")
            fit.check_ratio_list(ratios.T.tolist(), steps, len(SHAPES), where)
        else:
            fit.check_same(ratios, None, where)
        return cls(**{**tree, "run": run})


class Training:
    """A run in progress.

    Parameters
    ----------
    run : Run
        What to train and how.
    task : Task
        What to train on.
    keep_ratios : bool, default False
        Keep LAMB's trust ratios of every step.
    """

    def __init__(self, run: Run, task: Task, *, keep_ratios: bool = False) -> None:
        self.run = run
        self.schedule = run.schedule(len(task.inputs))
        self.losses: list[float] = []
        self.steps = 0
        self.stopped = False
        self._task = task
        contestant = CONTESTANTS[run.optimizer]
        self._flat = initial(run.seed)
        self._params = views(self._flat)
        self._flat_gradients = np.zeros_like(self._flat)
        self._gradients = views(self._flat_gradients)
        self._given = contestant.arrays(self._flat_gradients)
        self._optimizer = contestant.make(contestant.arrays(self._flat), self.schedule)
        self._backpropagation = Backpropagation(min(run.batch, len(task.inputs)))
        self._ratios: list[list[float]] | None = [] if keep_ratios else None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the run was stopped."""
        return self.stopped or len(self.losses) == self.run.epochs

    def train_epoch(self) -> None:
        """Train for one epoch; a loss or gradient that is not finite stops it before the step."""
        samples = len(self._task.inputs)
        # The order depends on seed and epoch alone, so that a resumed run needs no generator's state.
        order = np.random.default_rng([self.run.seed, 2, len(self.losses)]).permutation(samples)
        inputs, targets = (array.take(order, axis=0) for array in (self._task.inputs, self._task.targets))
        total = 0.0
        # A diverging run overflows before it is stopped: that is a result here, not an accident.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, samples, self.run.batch):
                batch = slice(start, min(start + self.run.batch, samples))
                loss = self._backpropagation.loss_and_gradients(
                    self._params, inputs[batch], targets[batch], self._gradients
                )
                if not (math.isfinite(loss) and np.isfinite(self._flat_gradients).all()):
                    self.stopped = True
                    return
                self._optimizer.step(self._given)
                self.steps += 1
                total += loss * (batch.stop - start)
                self._keep_ratios()
        self.losses.append(total / samples)

    def _keep_ratios(self) -> None:
        if self._ratios is not None and isinstance(self._optimizer, Lamb):
            stats = self._optimizer.stats()
            self._ratios.append([stats[f"trust_ratio/{name}"] for name in self._params])

    def result(self) -> Result:
        """Judge the run by its held-out samples."""
        digest = hashlib.sha256(self._flat.tobytes())
        with np.errstate(over="ignore", invalid="ignore"):
            share = accuracy(self._params, self._task)
        ratios = None if self._ratios is None else np.array(self._ratios).T
        return Result(self.run, share, self.stopped, list(self.losses), ratios, digest.hexdigest())

    def tree(self) -> dict[str, Any]:
        """Return the state between two epochs as a tree for a checkpoint."""
        return {
            "run": asdict(self.run),
            "steps": self.steps,
            "stopped": self.stopped,
            "losses": list(self.losses),
            "ratios": self._ratios,
            "params": {name: array.copy() for name, array in self._params.items()},
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, tree: Any, where: str) -> None:
        """Put back what `tree` returned, for the same run.

        Raises
        ------
        ValueError
            If it is no state that this run could have; nothing has changed then.
        """
        fit.check_keys(tree, self.tree().keys(), where)
        fit.check_same(tree["run"], asdict(self.run), f"{where}['run']")
        steps, losses, stopped = tree["steps"], tree["losses"], tree["stopped"]
        fit.check_losses(losses, self.run.epochs, stopped, where, finished=False)
        per_epoch = self.run.steps(len(self._task.inputs)) // self.run.epochs
        fit.check_steps(steps, len(losses), per_epoch, stopped, f"{where}['steps']")
        if self._ratios is None:
            fit.check_same(tree["ratios"], None, f"{where}['ratios']")
        else:
            fit.check_ratio_list(tree["ratios"], steps, len(self._params), f"{where}['ratios']")
        fit.check_same(tree["params"], self._params, f"{where}['params']")
        state = _after(self._optimizer.state_dict(), steps)
        fit.check_same(tree["optimizer"], state, f"{where}['optimizer']")
        # It may still refuse numbers of its own.
        self._optimizer.load_state_dict(tree["optimizer"])
        self.steps, self.stopped = steps, stopped
        self.losses, self._ratios = list(losses), tree["ratios"]
        for name, array in self._params.items():
            array[...] = tree["params"][name]


def _after(state: Any, steps: int) -> Any:
    """Return an optimizer's state with the counters that it has after so many steps."""
    if isinstance(state, dict):
        return {
            key: steps if key in ("step", "steps", "global_step") else _after(value, steps)
            for key, value in state.items()
        }
    return [_after(value, steps) for value in state] if isinstance(state, list) else state
