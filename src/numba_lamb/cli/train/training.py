"""One run, epoch by epoch, with a state that can be put away and taken up again."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb import Lamb
from numba_lamb.cli.train.data import Task
from numba_lamb.cli.train.model import Params, accuracy, initial, loss_and_gradients
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
    def from_tree(cls, tree: Mapping[str, Any]) -> "Result":
        """Return the result that `tree` was made from."""
        return cls(**{**tree, "run": Run(**tree["run"])})


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
        self._params: Params = initial(run.seed)
        self._optimizer = CONTESTANTS[run.optimizer].make(self._params, self.schedule)
        self._ratios: list[list[float]] | None = [] if keep_ratios else None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the run was stopped."""
        return self.stopped or len(self.losses) == self.run.epochs

    def train_epoch(self) -> None:
        """Train for one epoch; a loss or gradient that is not finite stops the run before the step."""
        samples = len(self._task.inputs)
        # The order depends on seed and epoch alone, so that a resumed run needs no generator's state.
        order = np.random.default_rng([self.run.seed, 2, len(self.losses)]).permutation(samples)
        total = 0.0
        # A diverging run overflows before it is stopped: that is a result here, not an accident.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, samples, self.run.batch):
                pick = order[start : start + self.run.batch]
                batch = self._task.inputs[pick], self._task.targets[pick]
                loss, gradients = loss_and_gradients(self._params, *batch)
                if not all(np.isfinite(value).all() for value in (loss, *gradients.values())):
                    self.stopped = True
                    return
                self._optimizer.step(gradients)
                self.steps += 1
                total += float(loss) * len(pick)
                self._keep_ratios()
        self.losses.append(total / samples)

    def _keep_ratios(self) -> None:
        if self._ratios is not None and isinstance(self._optimizer, Lamb):
            stats = self._optimizer.stats()
            self._ratios.append([stats[f"trust_ratio/{name}"] for name in self._params])

    def result(self) -> Result:
        """Judge the run by its held-out samples."""
        digest = hashlib.sha256()
        for array in self._params.values():
            digest.update(array.tobytes())
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

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Put back what `tree` returned, for the same run."""
        self.steps, self.stopped = tree["steps"], tree["stopped"]
        self.losses, self._ratios = list(tree["losses"]), tree["ratios"]
        for name, array in self._params.items():
            array[...] = tree["params"][name]
        self._optimizer.load_state_dict(tree["optimizer"])
