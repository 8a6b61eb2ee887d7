"""``numba-lamb verify``: whether the bits that are computed here are those that the package promises.

This file holds the options and the exits. ``inputs`` (weights and gradients that are the same everywhere),
``cases`` (who takes the steps), ``trace`` (the steps, and what is kept of them), ``stored`` (the digests that the
package brings), ``places`` (CPU or GPU).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from numba_lamb.cli import output
from numba_lamb.cli.verify import stored
from numba_lamb.cli.verify.cases import STEPS, STORED, Case, cases_of
from numba_lamb.cli.verify.places import HOST, NoGpu, Place, gpu
from numba_lamb.cli.verify.trace import PIECE, Difference, Trace, compare, replay
from numba_lamb.kernels.cpu.launch import thread_count, thread_limit
from numba_lamb.methods.options import Method
from numba_lamb.methods.table import METHODS

__all__ = ["add_parser", "run"]

_NAMES_SHOWN = 6
_REPORT = (
    "The bits differ from those that the package promises. Please report it, with what numba-lamb verify --json "
    "and numba-lamb info --json print."
)


class Leg(NamedTuple):
    """Steps from the first on, on a number of threads; None on a GPU."""

    steps: int
    threads: int | None


class Result(NamedTuple):
    """A leg's SHA-256, the one that the package brings, and where they part."""

    leg: Leg
    sha256: str
    shipped: str
    first: Difference | None


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add ``verify`` and its options to the subcommands of ``numba-lamb``."""
    parser = commands.add_parser(
        "verify",
        help="check that every bit of training is the promised one here",
        description=(
            f"Take {STEPS:,} steps of every optimizer, in every formula, on fixed weights and gradients, and "
            "compare all bits of weights, state and statistics with the digests that the package brings, also "
            "with parameters and moments stored in fewer bits. Exit "
            "code 0 if they agree, 1 if not, with the first step and the layers that differ. Takes about "
            "20 seconds, and the kernels' compilation once."
        ),
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to take the steps (default cpu)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help=f"threads on the CPU (default: 1, then for {PIECE} steps the number that training takes)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        metavar="N",
        help=f"take fewer steps, a multiple of {PIECE} (default {STEPS})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--write",
        action="store_true",
        help="in a checkout, after a decision to change bits: store what is computed here instead of comparing",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``numba-lamb verify`` and return the exit code."""
    unfit = _unfit(arguments)
    if unfit:
        return _fail(unfit)
    if arguments.write:
        stored.store({name: replay(*each, STEPS, HOST, arguments.threads) for name, each in _sets().items()})
        print(f"wrote {stored.FILE}")
        return 0
    try:
        shipped = stored.load()
    except ValueError as error:
        return _fail(str(error))
    unknown = [name for name in _sets() if name not in shipped]
    if unknown:
        return _fail(f"{stored.FILE} has no digests of {', '.join(unknown)}; --write in a checkout adds them")
    try:
        place = gpu() if arguments.device == "cuda" else HOST
    except NoGpu as error:
        way = "it needs a GPU, and CuPy or PyTorch with CUDA"
        return _fail(f"--device must be cpu here, got cuda: {error}; {way}")
    results: dict[str, list[Result]] = {}
    for name, each in _sets().items():
        try:
            results[name] = [
                _result(leg, replay(*each, leg.steps, place, leg.threads), shipped[name])
                for leg in _legs(arguments)
            ]
        except (ImportError, RuntimeError) as error:
            if place is HOST:
                raise
            return _fail(f"--device must be cpu here, got cuda: {error}")
        if not arguments.json:
            _tell(name, len(each[1]), place, results[name])
    differ = any(result.first for each in results.values() for result in each)
    if arguments.json:
        print(json.dumps(_as_json(place, results, agrees=not differ), indent=1))
    elif differ:
        print(output.fill(_REPORT, output.width_of(sys.stdout)))
    return int(differ)


def _sets() -> dict[str, tuple[Method, Sequence[Case]]]:
    """Return what takes steps by its name: an optimizer and cases of it."""
    found: dict[str, tuple[Method, Sequence[Case]]] = {
        name: (method, cases_of(method)) for name, method in METHODS.items()
    }
    # Momentum stores what Lars does.
    others = [name for name in METHODS if name != "Momentum"]
    return found | {f"{name} in fewer bits": (METHODS[name], STORED) for name in others}


def _legs(arguments: argparse.Namespace) -> list[Leg]:
    """Return what to run: on the CPU either twin of every kernel, unless threads are asked for."""
    if arguments.device != "cpu" or arguments.threads is not None:
        return [Leg(arguments.steps, arguments.threads)]
    threads = thread_count(None)
    # Layers are small: threads would take most of the time to wait for each other.
    return [Leg(arguments.steps, 1), *([Leg(PIECE, threads)] if threads > 1 else [])]


def _result(leg: Leg, trace: Trace, shipped: Trace) -> Result:
    key = str(leg.steps)
    return Result(leg, trace.sha256[key], shipped.sha256[key], compare(trace, shipped, leg.steps))


def _unfit(arguments: argparse.Namespace) -> str | None:
    steps, threads = arguments.steps, arguments.threads
    if not 0 < steps <= STEPS or steps % PIECE:
        return f"--steps must be a multiple of {PIECE} from {PIECE} to {STEPS}, got {steps}"
    if threads is not None and arguments.device != "cpu":
        return f"--threads must be left out with --device {arguments.device}, got {threads}"
    if threads is not None and not 1 <= threads <= thread_limit():
        return (
            f"--threads must be between 1 and {thread_limit()}, got {threads}; "
            "the environment variable NUMBA_NUM_THREADS raises the upper limit"
        )
    if arguments.write and not stored.is_checkout():
        return (
            "--write must be left out, got it without a checkout: installed digests are what to compare with"
        )
    if arguments.write and (arguments.device, steps, arguments.json) != ("cpu", STEPS, False):
        return "--write must be given without --device, --steps and --json: it stores all steps of the CPU"
    return None


def _tell(name: str, count: int, place: Place, results: Sequence[Result]) -> None:
    width = output.width_of(sys.stdout)
    print(f"{name}, {count} cases")
    for (steps, threads), sha256, shipped, first in results:
        on = "" if threads is None else f", {threads} thread{'s' if threads > 1 else ''}"
        verdict = "every bit agrees" if first is None else f"DIFFERS, {_first(first)}"
        print(output.fill(f"  {steps:,} steps on {place.title}{on}: {verdict}", width, "    "))
        print(f"    here     {sha256}\n    shipped  {shipped}", flush=True)


def _first(difference: Difference) -> str:
    until, at = difference.agrees_until, difference.differs_at
    steps = f"at step {at}" if at == until + 1 else f"between steps {until + 1} and {at}"
    return f"first {steps}, in layers {_listed(difference.layers)}, of cases {_listed(difference.cases)}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _as_json(place: Place, results: dict[str, list[Result]], agrees: bool) -> dict[str, Any]:
    return {
        "place": place.title,
        "agrees": agrees,
        "optimizers": {
            name: [
                {
                    **leg._asdict(),
                    "sha256": sha256,
                    "shipped": shipped,
                    "first": first and first._asdict(),
                }
                for leg, sha256, shipped, first in each
            ]
            for name, each in results.items()
        },
    }


def _fail(message: str) -> int:
    return output.fail("numba-lamb verify", message)
