"""The rates that the package brings: `rates.json` is ``rate_search`` of a ``numba-lamb train --search``."""

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def brought() -> dict[str, Any]:
    """Return how the package's rates were chosen, and what each rate that was tried reached."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("rates.json").read_text())
    return found


def chosen(optimizer: str) -> float:
    """Return the rate that the package has for an optimizer, at the base batch."""
    return float(brought()["rates"][optimizer]["chosen_rate"])
