"""Write the tables in README.md, and draw bench.png, from the measured results in docs/results.

Run ``python docs/make_readme.py`` after replacing a result; a test checks that the page is up to date.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
TITLES = {"lamb": "LAMB", "adam": "Adam", "sgd": "momentum SGD"}
CUDA_TITLES = {
    "lamb": 'Lamb, "propagate"',
    "lamb-checked": 'Lamb, "skip" (default)',
    "lamb-clipped": "Lamb, max_grad_norm",
    "lars": 'Lars, "propagate"',
    "momentum": 'Momentum, "propagate"',
    "adamw-fused": "torch AdamW, fused",
    "apex-lamb": "Apex FusedLAMB",
}


def train_table(results: dict[str, Any]) -> str:
    """Return the accuracies of ``numba-lamb train`` as a Markdown table, with what they show in one sentence."""
    rows = results["rows"]
    # The full batch, which it is about, stands first.
    batches = sorted({row["batch_size"] for row in rows}, reverse=True)
    lines = [f"| test accuracy | {' | '.join(TITLES.values())} |", "| --- |" + " ---: |" * len(TITLES)]
    for batch in batches:
        cells = {row["optimizer"]: row for row in rows if row["batch_size"] == batch}
        shown = [
            f"{100 * cell['mean']:.1f} % ({100 * cell['low']:.1f}-{100 * cell['high']:.1f})"
            for cell in (cells[name] for name in TITLES)
        ]
        size = f"full batch of {batch}" if batch == batches[0] else f"batch {batch}"
        lines.append(f"| {size} ({cells['lamb']['steps']} steps) | {' | '.join(shown)} |")
    seeds = results["settings"]["seeds"]
    return "\n".join([*lines, "", f"Mean and range over {seeds} seeds. {results['summary']}"])


def bench_table(results: dict[str, Any]) -> str:
    """Return each competitor's time over that of fused AdamW, by profile and machine, and how it was measured."""
    machines = [results, *(json.loads(path.read_text()) for path in sorted(RESULTS.glob("bench.*.json")))]
    rows = results["rows"]
    profiles = list(dict.fromkeys(row["profile"] for row in rows))
    fullest = max(profiles, key=lambda profile: sum(row["profile"] == profile for row in rows))
    labels = {row["name"]: row["label"] for row in rows if row["profile"] == fullest}
    lines = [
        f"| | bytes per parameter | {' | '.join(profiles)} |",
        "| --- | ---: |" + " ---: |" * len(profiles),
    ]
    for name, label in labels.items():
        shown = [" / ".join(_ratios(machines, name, profile)) for profile in profiles]
        one = next(row for row in rows if row["name"] == name)
        ours = one["version"] == results["versions"]["numba-lamb"]
        named = label if ours or name in ("copy", "sweep") else f"{label} {one['version']}"
        lines.append(f"| {named} | {one['bytes_per_param']} | {' | '.join(shown)} |")
    note = (
        "Time of a step over that of PyTorch's fused AdamW, median of the ratios within the rounds; "
        '"propagate" and "raise" are values of `nonfinite`. '
    )
    return "\n".join([*lines, "", note + " / ".join(map(_measured_on, machines)) + "."])


def _ratios(machines: list[dict[str, Any]], name: str, profile: str) -> list[str]:
    found = [
        row["ratio_to_fused_adamw"]
        for results in machines
        for row in results["rows"]
        if (row["name"], row["profile"]) == (name, profile)
    ]
    return [f"{ratio:.2f}" for ratio in found]


def _measured_on(results: dict[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    processor = f" ({machine['processor']})" if "processor" in machine else ""
    return (
        f"{machine['cpu']}{processor}, {machine['usable_cpus']} CPUs, {results['threads']} threads, "
        f"{results['rounds']} rounds, {machine['system']}, Python {versions['python']}, "
        f"Numba {versions['numba']}, NumPy {versions['numpy']}, {results['date'][:10]}"
    )


def cuda_table(results: dict[str, Any]) -> str:
    """Return each optimizer's step on a GPU, profile by profile, and where and when it was measured."""
    steps = {name[len("steps ") :]: found for name, found in results["sections"].items() if "rows" in found}
    names = list(dict.fromkeys(row["name"] for found in steps.values() for row in found["rows"]))
    lines = [f"| | bytes per parameter | {' | '.join(steps)} |", "| --- | ---: |" + " ---: |" * len(steps)]
    for name in names:
        cells = {
            profile: row for profile, found in steps.items() for row in found["rows"] if row["name"] == name
        }
        shown = [
            f"{cells[profile]['us'][0]:,.0f} µs, {cells[profile]['share_of_copy'][0]:.2f}"
            if profile in cells
            else ""
            for profile in steps
        ]
        count = next(iter(cells.values()))["bytes_per_param"]
        lines.append(f"| {CUDA_TITLES.get(name, name)} | {count:g} | {' | '.join(shown)} |")
    device, versions = results["device"], results["versions"]
    return "\n".join(
        [
            *lines,
            "",
            "Time of a step on the GPU, and the bandwidth of the counted bytes over that of a copy in the same "
            f"round; medians. {device['name']}, driver {device['driver']}, {results['date'][:10]}; PyTorch "
            f"{versions['torch']}, numba-cuda {versions['numba-cuda']}.",
        ]
    )


def bench_chart(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``numba-lamb bench`` as the command itself does."""
    from numba_lamb.cli.bench import figure, panel_title
    from numba_lamb.cli.bench.summary import Row

    rows = [Row.from_json(row) for row in results["rows"]]
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(panel_title(row.profile, results["threads"]), []).append(row)
    figure.draw(panels, path, results["machine"]["cpu"])


SECTIONS = {"train": train_table, "bench": bench_table, "cuda": cuda_table}
OPTIONAL = {"cuda"}
"""Sections that the page has only once there is a result for them."""


def render(page: str) -> str:
    """Return `page` with the text between its markers made anew."""
    for name, make in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if name in OPTIONAL and not path.exists():
            continue
        results = json.loads(path.read_text())
        begin, end = f"<!-- {name}: made by docs/make_readme.py -->", f"<!-- end of {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"README.md must have one section between {begin!r} and {end!r}")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = f"{before}{begin}\n{make(results)}\n{end}{after}"
    return page


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))
    bench_chart(json.loads((RESULTS / "bench.json").read_text()), Path(__file__).parent / "bench.png")
