"""The digests that the package brings: `digests.json`, written by ``numba-lamb verify --write`` in a checkout."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from numba_lamb.cli.bench.report import write_json
from numba_lamb.cli.verify.trace import Trace

FILE = Path(__file__).with_name("digests.json")


def load() -> dict[str, Trace]:
    """Return the stored trace of each optimizer by name."""
    content = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"optimizers": {}}
    return {name: Trace(**trace) for name, trace in content["optimizers"].items()}


def store(traces: Mapping[str, Trace]) -> None:
    """Put these traces in the place of those that are stored."""
    write_json(FILE, {"optimizers": {name: asdict(trace) for name, trace in traces.items()}})


def is_checkout() -> bool:
    """Return whether the package lies in its repository, where stored digests are under version control."""
    source = FILE.parents[3]
    return source.name == "src" and (source.parent / "pyproject.toml").is_file()
