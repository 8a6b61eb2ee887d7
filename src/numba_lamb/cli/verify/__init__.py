"""``numba-lamb verify``: whether the bits that are computed here are those that the package promises.

This file holds the options and the exits. ``inputs`` (weights and gradients that are the same everywhere),
``cases`` (who takes the steps), ``trace`` (the steps, and what is kept of them), ``stored`` (the digests that the
package brings), ``places`` (CPU or GPU).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from numba_lamb.cli import output
from numba_lamb.cli.verify import stored
from numba_lamb.cli.verify.cases import STEPS, cases_of
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


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add ``verify`` and its options to the subcommands of ``numba-lamb``."""
    parser = commands.add_parser(
        "verify",
        help="check that every bit of training is the promised one here",
        description=(
            f"Take {STEPS:,} steps of every optimizer, in every formula, on fixed weights and gradients, and "
            "compare all bits of weights, state and statistics with the digests that the package brings. Exit "
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
        help="threads on the CPU (default: 1, and the number that a step takes, by turns)",
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
    shipped = stored.load()
    unknown = [name for name in METHODS if name not in shipped]
    if unknown and not arguments.write:
        return _fail(f"{stored.FILE} has no digests of {', '.join(unknown)}; --write in a checkout adds them")
    try:
        place = gpu() if arguments.device == "cuda" else HOST
    except NoGpu as error:
        way = "it needs a GPU, and CuPy or PyTorch with CUDA"
        return _fail(f"--device must be cpu here, got cuda: {error}; {way}")
    threads = _threads(arguments.threads) if place is HOST else []
    traces: dict[str, Trace] = {}
    differences: dict[str, Difference | None] = {}
    for name, method in METHODS.items():
        try:
            traces[name] = replay(method, arguments.steps, place, threads or [None])
        except (ImportError, RuntimeError) as error:
            if place is HOST:
                raise
            return _fail(f"--device must be cpu here, got cuda: {error}")
        if not arguments.write:
            differences[name] = compare(traces[name], shipped[name], arguments.steps)
            if not arguments.json:
                where = _where(place, threads)
                _tell(method, where, arguments.steps, traces[name], shipped[name], differences[name])
    if arguments.write:
        stored.store(traces)
        print(f"wrote {stored.FILE}")
        return 0
    if arguments.json:
        print(json.dumps(_as_json(place, threads, arguments.steps, traces, shipped, differences), indent=1))
    elif any(differences.values()):
        print(output.fill(_REPORT, output.width_of(sys.stdout)))
    return int(any(differences.values()))


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


def _threads(asked: int | None) -> list[int]:
    """Return the numbers of threads that cases take by turns: as asked, else those of either twin of a kernel."""
    return sorted({1, thread_count(None)}) if asked is None else [asked]


def _where(place: Place, threads: Sequence[int]) -> str:
    if not threads:
        return place.title
    return f"{place.title}, {' and '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"


def _tell(
    method: Method,
    where: str,
    steps: int,
    trace: Trace,
    shipped: Trace,
    difference: Difference | None,
) -> None:
    head = f"{method.name}: {len(cases_of(method))} cases, {steps:,} steps on {where}"
    lines = [f"{head}: {'every bit agrees' if difference is None else 'DIFFERS'}"]
    if difference is not None:
        lines.append(f"  {_first(difference)}")
    width, key = output.width_of(sys.stdout), str(steps)
    print("\n".join(output.fill(line, width, "    ") for line in lines))
    print(f"  here     {trace.sha256[key]}\n  shipped  {shipped.sha256[key]}", flush=True)


def _first(difference: Difference) -> str:
    until, at = difference.agrees_until, difference.differs_at
    steps = f"at step {at}" if at == until + 1 else f"between steps {until + 1} and {at}"
    return f"first {steps}, in layers {_listed(difference.layers)}, of cases {_listed(difference.cases)}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _as_json(
    place: Place,
    threads: list[int],
    steps: int,
    traces: dict[str, Trace],
    shipped: dict[str, Trace],
    differences: dict[str, Difference | None],
) -> dict[str, Any]:
    key = str(steps)
    return {
        "place": place.title,
        "threads": threads,
        "steps": steps,
        "agrees": not any(differences.values()),
        "optimizers": {
            name: {
                "sha256": trace.sha256[key],
                "shipped": shipped[name].sha256[key],
                "first": difference and difference._asdict(),
            }
            for (name, trace), difference in zip(traces.items(), differences.values(), strict=True)
        },
    }


def _fail(message: str) -> int:
    return output.fail("numba-lamb verify", message)
