"""What several test files share: golden records, random models, fresh processes."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from numba_lamb import schedules

GOLDEN = Path(__file__).parent / "golden"


def golden_json(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as archive:
        return {key: archive[key] for key in archive.files}


def rate_of(given: Any) -> Any:
    """A golden record's rate: a number, a list of values, or ``[ScheduleClass, arguments]``."""
    if isinstance(given, list) and given and isinstance(given[0], str):
        return getattr(schedules, given[0])(**given[1])
    return given


def float32(value: float) -> float:
    """`value` as a float32 holds it."""
    return float(np.float32(value))


def relative_to_largest(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest element: how the golden data's agreement is stated."""
    if not expected.size:
        return 0.0
    scale = np.abs(expected).max()
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    return float(difference / scale) if scale else float(difference)


def run_python(code: str, **environment: str) -> str:
    """Run `code` in a fresh interpreter and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def frozen(value: Any) -> Any:
    """`value` (nested dicts and lists) in a form that compares by bits, NaN included."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: frozen(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(entry) for entry in value]
    return repr(value)


def snapshot(optimizer: Any) -> dict[str, Any]:
    """Everything a user can see of `optimizer`: parameters, state, options, counters, layout and statistics."""
    return {
        "params": frozen(dict(optimizer.params)),
        "identities": [id(array) for array in optimizer.params.values()],
        "state": frozen(optimizer.state_dict()),
        "options": [
            {key: id(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ],
        "members": [[id(array) for array in group["params"]] for group in optimizer.param_groups],
        "learning_rate": id(optimizer.learning_rate),
        "layers": optimizer.layout.layers,
        "stats": frozen(optimizer.stats()),
    }


def version_1(optimizer: Any) -> dict[str, Any]:
    """The state of `optimizer` as format version 1 had it: numbers that all groups share, rates by group."""
    state = optimizer.state_dict()
    options, rates = state["groups"][0], ("lr", "weight_decay")
    numbers = [key for key in ("beta1", "beta2", "eps", "momentum", "max_grad_norm") if key in options]
    shared = {key: options[key] for key in numbers} | state["numbers"]
    groups = [{key: group[key] for key in rates} for group in state["groups"]]
    return {**state, "format_version": 1, "numbers": shared, "groups": groups}


def installed(name: str) -> Any:
    """Import a package of the ``peers`` extra, or return None where it is not installed."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
