"""Write ``variants.md`` from the declaration, and ``benchmarks/results.md`` from docs/results.

Run ``python docs/make_pages.py`` after a change of either; a test checks that the pages are up to date.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from make_readme import bench_table, train_table

from numba_lamb.cli.variants import Formula, collect
from numba_lamb.numerics.first_steps import LAYERS

DOCS = Path(__file__).parent
COMMAND = "This page is written by `python docs/make_pages.py`"
PARAGRAPH = "\n\n"
SHOWN = ("weight", "heavy weight", "bias")


def variants() -> str:
    """Return the page of formulas by name."""
    formulas = collect()
    norms = ", ".join(f"{LAYERS[layer].norm:g}" for layer in SHOWN)
    return f"""# Variants

For those who need another package's formula: each name that `variant=` takes, and what it does otherwise than
the paper. `numba-lamb variants` prints the same, with `--json` for programs; [where each formula stands, and
how to call it](moving-in.md#variants). An option that is given beside a variant has its own value. The last
columns are the length of the first step over the paper's, of weights and a bias of norm {norms}; the bias is
not decayed. {COMMAND}.

## LAMB

`Lamb(..., variant="paper")` is the default. Formulas differ in the ratio, in the bias correction and in where
decay stands; moments are the same everywhere.

{_formulas(formulas, "lamb")}

## LARS

The default of `numba_lamb.torch.Lars` is `"timm"`, and of `numba_lamb.Lars` `"mindspore"`.

{_formulas(formulas, "lars")}
"""


def _formulas(formulas: list[Formula], method: str) -> str:
    """Return one method's table, with the names of one formula in one row."""
    rows: dict[str, list[Formula]] = {}
    for one in formulas:
        if one.method == method:
            rows.setdefault(repr((one.fields, one.eps)), []).append(one)
    with_eps = method == "lars"
    heading = ["`variant=`", "differs from the paper by", *(["eps"] if with_eps else []), *SHOWN]
    lines = [_row(heading), _row(["---", "---", *["---:"] * (len(heading) - 2)])]
    for same in rows.values():
        first = same[0]
        lines.append(
            _row(
                [
                    ", ".join(f'`"{one.name}"`' for one in same),
                    "; ".join(first.differs).replace("||", "‖") or "nothing",
                    *([f"{first.eps:g}"] if with_eps else []),
                    *(f"{first.first_step[layer]:.3g}" for layer in SHOWN),
                ]
            )
        )
    return "\n".join(lines)


def benchmarks() -> str:
    """Return the page of measured results."""
    results = DOCS / "results"
    main = json.loads((results / "bench.json").read_text())
    machines = [main, *(json.loads(path.read_text()) for path in sorted(results.glob("bench.*.json")))]
    measured = [*machines, json.loads((results / "bench-one-100M.json").read_text())]
    times = [f"## {_title(one, machines)}\n\n{_machine(one)}\n\n{_times(one)}" for one in measured]
    return f"""# Benchmarks

For those who want to know what a step costs, on which machine, and beside what. `numba-lamb bench` measures the
same on yours: each competitor in a process of its own, rounds in turn. [What was tried to get here](cpu.md),
and [what is known about GPUs](cuda.md), where nothing has been timed yet. {COMMAND}.

## Beside other packages

![Milliseconds per step](../bench.png)

{bench_table(main)}

{PARAGRAPH.join(times)}

## Accuracy by batch size

What `numba-lamb train` shows, and [how it is measured](../demonstration.md).

![Test accuracy by rate and batch size for LAMB, Adam and momentum SGD](../train.png)

{train_table(json.loads((results / "train.json").read_text()))}
"""


def _title(result: dict[str, Any], machines: list[dict[str, Any]]) -> str:
    cpu = result["machine"]["cpu"].replace("(R)", "")
    return f"Milliseconds: {cpu}" + ("" if result in machines else ", one tensor of 100 M elements")


def _machine(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['cpu']}, {machine['usable_cpus']} CPUs ({caches}), {result['threads']} threads, "
        f"{result['rounds']} rounds, {machine['system']}, {result['date'][:10]}; {packages}."
    )


def _times(result: dict[str, Any]) -> str:
    rows = result["rows"]
    profiles = list(dict.fromkeys(row["profile"] for row in rows))
    labels = {row["name"]: row["label"] for row in rows}
    lines = [_row(["median (quartiles), ms", *profiles]), _row(["---", *["---:"] * len(profiles)])]
    for name, label in labels.items():
        cells = {row["profile"]: row for row in rows if row["name"] == name}
        shown = [
            f"{cell['median_ms']:.3g} ({cell['low_ms']:.3g}-{cell['high_ms']:.3g})"
            if (cell := cells.get(profile))
            else ""
            for profile in profiles
        ]
        lines.append(_row([label, *shown]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


PAGES = {"variants.md": variants, "benchmarks/results.md": benchmarks}
"""Each page that is made here."""

if __name__ == "__main__":
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8", newline="\n")
