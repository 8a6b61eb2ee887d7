"""From rounds to rows: medians, spreads, and ratios that are formed within a round before they are summed up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from numba_lamb.cli.bench.competitors import ADAMW, COMPETITORS, SWEEP, Competitor
from numba_lamb.cli.bench.rounds import Measurement, Round

__all__ = ["Row", "Spread", "spread", "summarize"]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One competitor's results on one profile; `title` is what the table calls it."""

    profile: str
    name: str
    label: str
    version: str
    title: str
    rounds: int
    ms: Spread
    bytes_per_param: float
    ratio_to_fused_adamw: Spread | None
    floor_fraction: Spread | None

    def as_json(self) -> dict[str, object]:
        """Return the row as plain values; what could not be formed is None."""
        ratio, floor = self.ratio_to_fused_adamw, self.floor_fraction
        return {
            "profile": self.profile,
            "name": self.name,
            "label": self.label,
            "version": self.version,
            "rounds": self.rounds,
            "median_ms": self.ms.median,
            "low_ms": self.ms.low,
            "high_ms": self.ms.high,
            "ratio_to_fused_adamw": ratio and ratio.median,
            "ratio_low": ratio and ratio.low,
            "ratio_high": ratio and ratio.high,
            "bytes_per_param": self.bytes_per_param,
            "floor_fraction": floor and floor.median,
            "floor_low": floor and floor.low,
            "floor_high": floor and floor.high,
        }


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of at least one value."""
    low, median, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return Spread(median, low, high)


def summarize(
    profile: str, measurement: Measurement, competitors: Mapping[str, Competitor] = COMPETITORS
) -> list[Row]:
    """Return a row for each competitor that was measured, in the order of `competitors`.

    The floor is the time that a competitor's bytes take at the bandwidth of the sweep in the same round; what
    stays in a cache between two passes can beat it.
    """
    rows = []
    for name, one in competitors.items():
        seconds = [played[name] for played in measurement.rounds if name in played]
        if not seconds:
            continue
        floors = [
            floor * one.bytes_per_param / competitors[SWEEP].bytes_per_param
            for floor in _paired(measurement.rounds, SWEEP, name)
        ]
        ratios = _paired(measurement.rounds, name, ADAMW)
        version = measurement.versions.get(name, "")
        rows.append(
            Row(
                profile=profile,
                name=name,
                label=one.label,
                version=version,
                # Only another package's version says something that the heading does not.
                title=f"{one.label} {version}" if version and not one.ours and one.needs else one.label,
                rounds=len(seconds),
                ms=spread([1e3 * value for value in seconds]),
                bytes_per_param=one.bytes_per_param,
                ratio_to_fused_adamw=spread(ratios) if ratios else None,
                floor_fraction=spread(floors) if floors else None,
            )
        )
    return rows


def _paired(rounds: Sequence[Round], name: str, other: str) -> list[float]:
    return [one[name] / one[other] for one in rounds if name in one and other in one]
