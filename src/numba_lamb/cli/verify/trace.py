"""The steps of ``numba-lamb verify``, and what is kept of them: a digest of every bit at checkpoints."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from numba_lamb.cli.verify.cases import POISONED, POISONED_STEP, STEPS, Case, make
from numba_lamb.cli.verify.inputs import Arrays, gradients, weights
from numba_lamb.cli.verify.places import Place
from numba_lamb.methods.options import Method

PIECE = 50
"""A run is a multiple of it: there the whole digests are stored."""
CHECKPOINTS = (*range(1, 20), *range(20, STEPS + 1, 10))
"""Steps after which everything is compared: machines that differ do so at once."""
_CHARACTERS = 2


@dataclass
class Trace:
    """What is kept of one optimizer's steps.

    Attributes
    ----------
    sha256 : dict
        By step, the SHA-256 of all checkpoints up to there.
    layers, cases : dict
        By layer and by case, two characters for each checkpoint, of base 64: 12 bits of a digest.
    """

    sha256: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)


class Difference(NamedTuple):
    """Where two traces part.

    Attributes
    ----------
    agrees_until, differs_at : int
        The last checkpoint at which they agree, 0 for none, and the next one.
    layers, cases : list of str
        What differs there.
    """

    agrees_until: int
    differs_at: int
    layers: list[str]
    cases: list[str]


class _Run:
    """One case under way."""

    def __init__(self, method: Method, case: Case, place: Place, num_threads: int | None) -> None:
        self.case, self.place = case, place
        self.params = {
            name: place.put(values if case.stored is None else values.astype(case.stored))
            for name, values in weights().items()
            if name.partition(" ")[0] in case.dtypes
        }
        self.optimizer = make(method, case, self.params, num_threads)

    def step(self, step: int, given: Mapping[str, Any], poisoned: Mapping[str, Any]) -> None:
        if self.case.is_poisoned and step == POISONED_STEP:
            given = poisoned
        if self.case.has_gaps:
            given = {
                name: None if (step + index) % 5 == 0 else array
                for index, (name, array) in enumerate(given.items())
            }
        self.optimizer.step({name: given[name] for name in self.params})

    def digests(self) -> dict[str, bytes]:
        """Return a digest of each layer's weights, state and statistics, and one of what no layer has."""
        state, told = self.optimizer.state_dict(), self.optimizer.stats()
        hashes = {name: hashlib.blake2b(digest_size=16) for name in ("", *self.params)}
        for name, array in self.params.items():
            hashes[name].update(_bytes(self.place.get(array)))
            for value in state["layers"][name].values():
                hashes[name].update(_bytes(value))
        for key in sorted(told):
            hashes[key.partition("/")[2]].update(_bytes(told[key]))
        hashes[""].update(_bytes(state["global_step"]))
        return {name: found.digest() for name, found in hashes.items()}


def replay(
    method: Method, cases: Sequence[Case], steps: int, place: Place, num_threads: int | None = None
) -> Trace:
    """Take steps with cases of an optimizer side by side, and return what is kept of them."""
    runs = [_Run(method, case, place, num_threads) for case in cases]
    trace, whole = Trace(), hashlib.sha256()
    for step in range(1, steps + 1):
        values = gradients(step)
        given = {name: place.put(array) for name, array in values.items()}
        poisoned = {**given, POISONED: place.put(_with_infinity(values))} if step == POISONED_STEP else given
        for run in runs:
            run.step(step, given, poisoned)
        if step in CHECKPOINTS:
            found = {run.case.name: run.digests() for run in runs}
            for digests in found.values():
                whole.update(b"".join(digests.values()))
            for case, digests in found.items():
                trace.cases[case] = trace.cases.get(case, "") + _short(digests.values())
            for layer in runs[0].params:
                of_layer = _short(digests[layer] for digests in found.values())
                trace.layers[layer] = trace.layers.get(layer, "") + of_layer
        if step % PIECE == 0:
            trace.sha256[str(step)] = whole.hexdigest()
    return trace


def compare(found: Trace, stored: Trace, steps: int) -> Difference | None:
    """Return where a run of `steps` parts from the stored one, None where every bit agrees."""
    if found.sha256[str(steps)] == stored.sha256.get(str(steps)):
        return None
    count = len(next(iter(found.layers.values()))) // _CHARACTERS
    differing = [
        (_differing(found.layers, stored.layers, k), _differing(found.cases, stored.cases, k))
        for k in range(count)
    ]
    # Where the short digests all agree by chance, the whole one is all that is known.
    first = next((k for k, names in enumerate(differing) if any(names)), count - 1)
    return Difference(CHECKPOINTS[first - 1] if first else 0, CHECKPOINTS[first], *differing[first])


def _differing(found: Mapping[str, str], stored: Mapping[str, str], k: int) -> list[str]:
    piece = slice(_CHARACTERS * k, _CHARACTERS * (k + 1))
    return [name for name, row in found.items() if row[piece] != stored.get(name, "")[piece]]


def _with_infinity(values: Arrays) -> Any:
    found = values[POISONED].copy()
    found[-1] = np.inf
    return found


def _short(digests: Any) -> str:
    return base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()[:_CHARACTERS]


def _bytes(value: Any) -> bytes:
    """Return the bytes of an array, a count or a float64, little-endian."""
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
