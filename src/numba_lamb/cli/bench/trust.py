"""Whether the machine was quiet enough for what was measured."""

import os
from collections.abc import Sequence

from numba_lamb.cli.bench.competitors import ADAMW, SWEEP
from numba_lamb.cli.bench.machine import usable_cpus
from numba_lamb.cli.bench.summary import Row

__all__ = ["load_warning", "spread_warning"]

MOST_SPREAD = 0.15
"""What the middle half of a yardstick's rounds may span, as a share of their median."""


def load_warning(threads: int) -> str | None:
    """Return what to say where other programs leave fewer CPUs than `threads`; None where they do not."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # not known here
        return None
    cpus = usable_cpus()
    # The kernel counts in hundredths, and what watches a machine has a few of them itself.
    if load <= cpus - threads + 0.25:
        return None
    return (
        f"the machine is busy: a load of {load:.2f} on {cpus} CPUs leaves fewer than {threads} free; "
        "ratios may be off"
    )


def spread_warning(profile: str, rows: Sequence[Row]) -> str | None:
    """Return what to say where a yardstick itself took unlike times; None where none did."""
    spans = {
        row.label: (row.ms.high - row.ms.low) / row.ms.median for row in rows if row.name in (ADAMW, SWEEP)
    }
    label = max(spans, key=spans.__getitem__, default=None)
    if label is None or spans[label] <= MOST_SPREAD:
        return None
    return (
        f"{profile}: the machine was busy: the middle half of {label} spans {spans[label]:.0%} of its median, and "
        f"{MOST_SPREAD:.0%} is the most; measure again"
    )
