"""From rounds to rows: medians, spreads, and ratios that are formed within a round before they are summed up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from numba_lamb.cli.bench.competitors import ADAMW, COMPETITORS, SWEEP, Competitor
from numba_lamb.cli.bench.rounds import Measurement, Round

__all__ = ["Row", "Spread", "spread", "summarize", "title_of"]


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

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Row":
        """Return the row of which `as_json` said this."""
        label, version = found["label"], found["version"]

        def spread_of(median: str, low: str, high: str) -> Spread | None:
            return None if found[median] is None else Spread(found[median], found[low], found[high])

        ms = spread_of("median_ms", "low_ms", "high_ms")
        assert ms is not None
        return cls(
            profile=found["profile"],
            name=found["name"],
            label=label,
            version=version,
            title=title_of(found["name"], label, version),
            rounds=found["rounds"],
            ms=ms,
            bytes_per_param=found["bytes_per_param"],
            ratio_to_fused_adamw=spread_of("ratio_to_fused_adamw", "ratio_low", "ratio_high"),
            floor_fraction=spread_of("floor_fraction", "floor_low", "floor_high"),
        )


def title_of(name: str, label: str, version: str, competitors: Mapping[str, Competitor] = COMPETITORS) -> str:
    """Return what the table calls a competitor: with its version where that is another package's."""
    one = competitors.get(name)
    # Only that says something which the heading does not.
    return f"{label} {version}" if version and one is not None and not one.ours and one.needs else label


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
                title=title_of(name, one.label, version, competitors),
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
