"""``numba-lamb variants``: the formulas by name, what each does otherwise, and what that changes at once."""

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from numba_lamb.cli.output import fill, width_of
from numba_lamb.numerics import rules
from numba_lamb.numerics.first_steps import LAYERS, first_step_lengths
from numba_lamb.numerics.variants import LAMB_VARIANTS, LARS_VARIANTS

__all__ = ["Formula", "add_parser", "collect", "describe", "differences", "run"]

_METHODS: dict[Literal["lamb", "lars"], Mapping[str, Any]] = {"lamb": LAMB_VARIANTS, "lars": LARS_VARIANTS}
_SHOWN = {"weight": "weight", "heavy weight": "heavy", "bias": "bias"}
"""The layers of the text, and what it calls them."""
_SAID: dict[str, Callable[[Any], str]] = {
    "adapts": lambda on: "a ratio" if on else "ratio 1: AdamW",
    "always_adapt": lambda on: "a ratio everywhere" if on else "a ratio only where decay is",
    "bias_correction": lambda on: "moments corrected" if on else "moments not corrected",
    "rate_correction": {
        rules.UNCORRECTED: "rate not corrected",
        rules.BY_FIRST: "rate divided by 1-beta1^t",
        rules.BY_BOTH: "rate times sqrt(1-beta2^t)/(1-beta1^t)",
    }.__getitem__,
    "decoupled_decay": lambda on: f"decay {'before' if on else 'in'} the direction",
    "weight_floor": "weight norm at least {:g}".format,
    "weight_limit": "weight norm at most {:g}".format,
    "epsilon_in_ratio": lambda on: f"{'eps' if on else 'no eps'} in the ratio",
    "least": "ratio at least {:g}".format,
    "most": "ratio at most {:g}".format,
    "norm_of": {
        rules.DIRECTION: "divides by the direction's norm",
        rules.EPS_IN_ROOT: "divides by the norm with eps in the root",
        rules.EPS_IN_ROOT_GUARDED: "divides by the norm with eps in the root, ratio 1 where the gradient is 0",
        rules.UNDECAYED: "divides by the norm without decay",
    }.__getitem__,
    "guard": {
        rules.UNGUARDED: "ratio never set to 1",
        rules.ZERO_NORM: "ratio 1 where a norm is 0",
        rules.ZERO_DENOMINATOR: "ratio 1 where the weight norm or the denominator is 0",
        rules.ZERO_DECAY: "ratio 1 where decay or a norm is 0",
        rules.LEFT_ALONE: "ratio 1 where the weight norm is 0, and 0 where the gradient is",
    }.__getitem__,
    "rate_inside": lambda on: f"rate {'inside' if on else 'outside'} the buffer",
    "decayed_norm": lambda on: "divides by ||g + decay*w||" if on else "divides by ||g|| + decay*||w||",
    "ratio_outside": lambda on: f"ratio {'outside' if on else 'inside'} the buffer",
    "trust_clip": lambda on: "ratio replaced by min(r/rate, 1)" if on else "ratio not clipped",
}
"""What is said of a field's value; `eps` is a number of its own."""


@dataclass(frozen=True)
class Formula:
    """One formula that has a name.

    Attributes
    ----------
    method : {"lamb", "lars"}
        Whose formula it is.
    name : str
        What ``variant=`` takes.
    differs : list of str
        What it does otherwise than the paper.
    fields : dict
        The same by field of `numba_lamb.numerics.variants`.
    eps : float or None
        Its default, where formulas have different ones.
    first_step : dict
        The length of its first step over the paper's by layer of `numba_lamb.numerics.first_steps`; None
        where the paper's does not move the layer.
    """

    method: str
    name: str
    differs: list[str]
    fields: dict[str, Any]
    eps: float | None
    first_step: dict[str, float | None]


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add ``variants`` and its option to the subcommands of ``numba-lamb``."""
    parser = commands.add_parser(
        "variants",
        help="list the formulas of LAMB and LARS that variant= takes",
        description=(
            "List the formulas of LAMB and LARS by name: what each does otherwise than the paper, and how "
            "long its first step is beside the paper's. docs/moving-in.md says where each stands."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text, with all layers")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``numba-lamb variants`` and return the exit code."""
    formulas = collect()
    if arguments.json:
        print(json.dumps([vars(formula) for formula in formulas], indent=1))
    else:
        _show(formulas, width_of(sys.stdout))
    return 0


def collect() -> list[Formula]:
    """Return all formulas, each method's in the order of its table."""
    found = []
    for method, variants in _METHODS.items():
        lengths = first_step_lengths(method)
        for name, variant in variants.items():
            changed = differences(variant, variants["paper"])
            said = [_SAID[field](value) for field, value in changed.items() if field != "eps"]
            steps = {
                layer: length if math.isfinite(length) else None for layer, length in lengths[name].items()
            }
            found.append(Formula(method, name, said, changed, getattr(variant, "eps", None), steps))
    return found


def differences(variant: Any, papers: Any) -> dict[str, Any]:
    """Return the fields in which a formula is not the paper's."""
    values = {field.name: getattr(variant, field.name) for field in fields(variant)}
    return {name: value for name, value in values.items() if value != getattr(papers, name)}


def describe(formulas: list[Formula], columns: int | None = None) -> str:
    """Return the table as text, of at most `columns` where words allow it."""
    parts = []
    for method in _METHODS:
        table = _table(formulas, method)
        widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
        if columns is not None:
            rest = sum(widths) - widths[1] + 2 * (len(widths) - 1)
            longest = max(len(word) for line in table for word in line[1].split())
            widths[1] = min(widths[1], max(columns - rest, longest, 20))
        lines = [_title(method)]
        for cells in table:
            first, *more = fill(cells[1], widths[1]).splitlines() or [""]
            figures = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
            lines.append("  ".join([cells[0].ljust(widths[0]), first.ljust(widths[1]), *figures]).rstrip())
            lines += [f"{'':{widths[0] + 2}}{line}" for line in more]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, fill(_rules(), columns)])


def _show(formulas: list[Formula], columns: int | None) -> None:
    """Print the table, drawn by rich where that and a terminal with room for it are there."""
    is_drawn = sys.stdout.isatty() and importlib.util.find_spec("rich") is not None
    if not is_drawn or columns is None or columns < 80:
        print(describe(formulas, columns))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=columns)
    for method in _METHODS:
        heading, *rows = _table(formulas, method)
        drawn = Table(
            title=_title(method),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for k, cell in enumerate(heading):
            drawn.add_column(cell, justify="right" if k > 1 else "left", no_wrap=k != 1)
        for cells in rows:
            drawn.add_row(*cells)
        console.print(drawn, markup=False)
    print(fill(_rules(), columns))


def _table(formulas: list[Formula], method: str) -> list[list[str]]:
    """Return the cells of one method's table, its heading first."""
    own = [formula for formula in formulas if formula.method == method]
    with_eps = any(formula.eps is not None for formula in own)
    heading = ["variant", "differs by", *(["eps"] if with_eps else []), *_SHOWN.values()]
    rows: list[list[str]] = []
    named: dict[str, str] = {}
    for formula in own:
        eps = [f"{formula.eps:g}"] if with_eps else []
        lengths = [formula.first_step[layer] for layer in _SHOWN]
        steps = ["-" if length is None else f"{length:.3g}" for length in lengths]
        # Of names that share a formula the first one says what it is.
        first = named.setdefault(repr(formula.fields), formula.name)
        said = "; ".join(formula.differs) or "nothing"
        rows.append([formula.name, said if first == formula.name else f"as {first}", *eps, *steps])
    return [heading, *rows]


def _title(method: str) -> str:
    return f"{method.upper()}, {method.capitalize()}(..., variant=)"


def _rules() -> str:
    norms = [f"{LAYERS[layer].norm:g}" for layer in _SHOWN]
    return (
        f"The last columns: the length of the first step over the paper's, of weights of norm {norms[0]} and "
        f"{norms[1]}, and of a bias of norm {norms[2]}, which is not decayed."
    )
