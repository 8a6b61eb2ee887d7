"""The digests that the package brings: `digests.json`, written by ``numba-lamb verify --write`` in a checkout."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from numba_lamb._text import shorten
from numba_lamb.cli.bench.report import write_json
from numba_lamb.cli.verify.cases import STEPS
from numba_lamb.cli.verify.trace import PIECE, Trace

FILE = Path(__file__).with_name("digests.json")


def load() -> dict[str, Trace]:
    """Return the stored trace of each optimizer by name.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        content = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"optimizers": {}}
        found = {name: Trace(**trace) for name, trace in content["optimizers"].items()}
        for trace in found.values():
            _check(trace)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{FILE} must be as the package brings it, but is damaged ({shorten(repr(error))}); install it anew"
        ) from error
    return found


def _check(trace: Trace) -> None:
    if [*trace.sha256] != [str(step) for step in range(PIECE, STEPS + 1, PIECE)]:
        raise ValueError("steps are missing")
    if not all(isinstance(text, str) for rows in vars(trace).values() for text in rows.values()):
        raise TypeError("a digest must be text")


def store(traces: Mapping[str, Trace]) -> None:
    """Put these traces in the place of those that are stored."""
    write_json(FILE, {"optimizers": {name: asdict(trace) for name, trace in traces.items()}})


def is_checkout() -> bool:
    """Return whether the package lies in its repository, where stored digests are under version control."""
    source = FILE.parents[3]
    return source.name == "src" and (source.parent / "pyproject.toml").is_file()
