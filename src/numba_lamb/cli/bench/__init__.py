"""``numba-lamb bench``: the optimizers beside their peers, on the user's machine.

Every competitor runs in a process of its own and all take turns, so that only ratios formed within a round are
compared. This file holds the options and the exits. ``profiles`` (shapes), ``competitors`` (who takes part),
``subjects`` and ``peers`` (what each does), ``worker`` (one process) and ``fleet`` (its other end), ``rounds``
(the measurement), ``summary`` (its arithmetic), ``trust`` (is the machine quiet),
``report`` and ``figure`` (what is shown), ``machine``.
"""

import argparse
import datetime
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numba_lamb._install import how_to_install
from numba_lamb.cli.bench import figure, report
from numba_lamb.cli.bench.competitors import COMPETITORS, Competitor, absent, present
from numba_lamb.cli.bench.machine import available_memory, cpu_model, describe_machine, usable_cpus, versions
from numba_lamb.cli.bench.profiles import PROFILES, parameter_count
from numba_lamb.cli.bench.rounds import Measurement, batches, measure
from numba_lamb.cli.bench.summary import Row, summarize
from numba_lamb.cli.bench.trust import load_warning, spread_warning
from numba_lamb.cli.output import fail, fill, width_of
from numba_lamb.kernels.cpu.launch import thread_count

__all__ = ["add_parser", "panel_title", "run", "run_profile"]

_DEFAULT_PROFILES = "bert-base,resnet-50,200-tiny"
_ROUNDS = 15


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add ``bench`` and its options to the subcommands of ``numba-lamb``."""
    parser = commands.add_parser(
        "bench",
        help="measure the optimizers beside those of other installed packages",
        description=(
            "Measure one optimizer step: ours, those of timm, optax, torch_optimizer, "
            "pytorch_optimizer and Paddle where they are installed, PyTorch's fused AdamW and SGD, and a "
            "memory copy and sweep. Each runs in a process of its own; in each round all take a turn. "
            "With --dtype bfloat16: ours with moments in fewer and fewer bits, PyTorch's AdamW and DeepSpeed's."
        ),
    )
    parser.add_argument(
        "--profiles",
        type=_names(PROFILES),
        default=_DEFAULT_PROFILES,
        metavar="A,B",
        help=f"models whose shapes to measure with, among {', '.join(PROFILES)} (default {_DEFAULT_PROFILES})",
    )
    parser.add_argument(
        "--only",
        type=_names(COMPETITORS),
        metavar="A,B",
        help=f"measure only these, among {', '.join(COMPETITORS)}; ratios need adamw-fused and sweep among them",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of parameters and gradients (default float32); the yardsticks stay float32",
    )
    parser.add_argument(
        "--rounds",
        type=_at_least_one,
        default=_ROUNDS,
        metavar="N",
        help=f"number of rounds (default {_ROUNDS})",
    )
    parser.add_argument(
        "--threads",
        type=_at_least_one,
        metavar="N",
        help="threads of each competitor (default: as many CPUs as the process may use)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart, *.png or *.svg")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, competitors: Mapping[str, Competitor] = COMPETITORS) -> int:
    """Run ``numba-lamb bench`` and return the exit code."""
    threads = arguments.threads or thread_count(None)
    if threads > usable_cpus():
        return _fail(f"--threads must be at most {usable_cpus()}, the CPUs there are to use, not {threads}")
    unfit = _unfit_files(arguments.json, arguments.chart)
    if unfit:
        return _fail(unfit)
    asked = arguments.only or list(competitors)
    wanted = [
        one for name, one in competitors.items() if name in asked and one.dtype in (arguments.dtype, None)
    ]
    chosen = present(wanted)
    if not chosen:
        return _fail("none of these is installed: " + ", ".join(asked))
    for label, modules in absent(wanted).items():
        _say(f"not measured: {label}, for which {modules} would have to be installed")
    busy = load_warning(threads)
    if busy:
        _say(busy)
    rows: list[Row] = []
    panels: dict[str, list[Row]] = {}
    left_out: list[dict[str, str]] = []
    for profile in arguments.profiles:
        found, measurement = run_profile(profile, chosen, threads, arguments.rounds, competitors)
        for name, reason in measurement.left_out.items():
            left_out.append({"profile": profile, "name": name, "reason": reason})
            _say(f"{profile}: left out {name}: {reason}")
        if found:
            title = panel_title(profile, threads, arguments.dtype)
            report.print_table(title, found)
            unsteady = spread_warning(profile, found)
            if unsteady:
                _say(unsteady)
            rows += found
            panels[title] = found
    if not rows:
        return _fail("nothing could be measured")
    try:
        if arguments.json:
            head = {
                "format_version": 1,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "machine": describe_machine(),
                "versions": versions(),
                "threads": threads,
                "dtype": arguments.dtype,
                "rounds": arguments.rounds,
            }
            results = [row.as_json() for row in rows]
            report.write_json(arguments.json, {**head, "rows": results, "left_out": left_out})
        if arguments.chart:
            figure.draw(panels, arguments.chart, cpu_model())
    except OSError as error:
        return _fail(f"cannot write {error.filename}: {error.strerror or error}")
    return 0


def run_profile(
    profile: str,
    chosen: Sequence[Competitor],
    threads: int,
    rounds: int,
    competitors: Mapping[str, Competitor] = COMPETITORS,
) -> tuple[list[Row], Measurement]:
    """Measure the chosen competitors with one profile, in as many batches as memory demands.

    Parameters
    ----------
    profile : str
        Name of the shapes.
    chosen : sequence of Competitor
        Who takes part; those made for other profiles are passed over.
    threads, rounds : int
        Threads of each worker, and rounds.
    competitors : mapping
        All of them, by name.

    Returns
    -------
    rows : list of Row
        The results.
    measurement : Measurement
        What they were made of, and who was left out why.
    """
    fit = [one for one in chosen if one.profiles is None or profile in one.profiles]
    count = parameter_count(PROFILES[profile])
    memory = available_memory()
    together, too_large = batches(fit, count, memory)
    measurement = Measurement()
    for one in too_large:
        need = (one.resident + one.transient) * count / 1e9
        measurement.left_out[one.name] = (
            f"needs {need:.1f} GB beside the yardsticks, and {(memory or 0) / 1e9:.1f} GB are free in all"
        )
    with report.Progress(profile, (rounds + 1) * sum(map(len, together))) as progress:
        for batch in together:
            measure(profile, batch, threads=threads, rounds=rounds, into=measurement, on_turn=progress.turn)
    return summarize(profile, measurement, competitors), measurement


def _unfit_files(*paths: Path | None) -> str | None:
    # Before minutes of measuring, not after.
    for option, path in zip(("--json", "--chart"), paths, strict=True):
        if path is not None and not path.absolute().parent.is_dir():
            return f"{option}: there is no folder {str(path.parent)!r}"
        if path is not None and path.is_dir():
            return f"{option}: {str(path)!r} is a folder"
    chart = paths[-1]
    if chart is None:
        return None
    if chart.suffix.lower() not in figure.SUFFIXES:
        return f"--chart must end in {' or '.join(figure.SUFFIXES)}, not {str(chart)!r}"
    if importlib.util.find_spec("matplotlib") is None:
        return f"--chart needs matplotlib: {how_to_install('demo')}"
    return None


def panel_title(profile: str, threads: int, dtype: str = "float32") -> str:
    """Return what a profile's table and panel are called."""
    return f"{profile}: {_millions(profile)} parameters, {dtype}, {_threads(threads)}"


def _millions(profile: str) -> str:
    return f"{parameter_count(PROFILES[profile]) / 1e6:.3g} million"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _names(known: Mapping[str, object]) -> Any:
    def names(text: str) -> list[str]:
        given = list(dict.fromkeys(name.strip() for name in text.split(",")))
        for name in given:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return given

    return names


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _say(message: str) -> None:
    if sys.stderr is not None:
        print(fill(message, width_of(sys.stderr), "  "), file=sys.stderr)


def _fail(message: str) -> int:
    return fail("numba-lamb bench", message)
