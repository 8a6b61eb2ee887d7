"""Test and measure everything that needs a GPU, in one call: ``python asv_bench/gpu.py --out results.json``.

Needs Numba, numba-cuda, NumPy and pytest, and PyTorch with CUDA for timings; ends within ten minutes. Each section
is a process of its own with a limit of its own, so that neither a fault nor a kernel that never ends stops the
others, and what a section found before it was stopped is kept: the file is written anew after each section.

A machine without compilers, or one where minutes count, is given machine code that was made elsewhere:
``python asv_bench/gpu.py --build cubins --capability 9.0``, then ``--cubins cubins`` beside ``--out``.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# This checkout, whether or not it is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(Path(__file__).parent)]

import gpu_cubins  # noqa: E402
import gpu_report  # noqa: E402
import gpu_sections  # noqa: E402

from numba_lamb.cli.bench.report import write_json  # noqa: E402

DEADLINE = 560
"""Seconds that all sections may take together."""
LEAST = 5
"""Seconds without which a section is not begun."""
COMMAND = (sys.executable, str(Path(__file__)))


def main(arguments: Sequence[str] | None = None, command: Sequence[str] = COMMAND) -> int:
    """Do what is asked for, and return the exit code: 1 if a section, or a test, failed.

    `command` is what runs one section in a process of its own.
    """
    parser = argparse.ArgumentParser(description="Test and measure everything that needs a GPU.")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the results go, as JSON")
    parser.add_argument(
        "--deadline",
        type=float,
        default=DEADLINE,
        metavar="SECONDS",
        help="for all of it (default %(default)s)",
    )
    parser.add_argument("--cubins", type=Path, metavar="FOLDER", help="machine code that was made before")
    parser.add_argument("--build", type=Path, metavar="FOLDER", help="make machine code, and do nothing else")
    parser.add_argument(
        "--capability", default="9.0", metavar="X.Y", help="compute capability for --build (default 9.0)"
    )
    parser.add_argument("--section", metavar="NAME", help="run this section alone, in this process")
    given = parser.parse_args(arguments)
    if given.build:
        major, minor = given.capability.split(".")
        gpu_cubins.make(given.build, (int(major), int(minor)))
        return 0
    if given.out is None:
        parser.error("--out FILE is needed")
    if given.section:
        return run_section(given.section, given.out, given.cubins)
    more = ["--cubins", str(given.cubins.resolve())] if given.cubins else []
    limits = {name: section.limit for name, section in gpu_sections.SECTIONS.items()}
    return run(limits, [*command, *more], given.out, given.deadline)


def run_section(name: str, out: Path, cubins: Path | None) -> int:
    """Run one section, and write into `out` what it found whenever it knows more."""
    if cubins:
        gpu_cubins.use(cubins)
    for found in {**gpu_sections.SECTIONS, **gpu_sections.FOR_TOOLS}[name].run():
        write_json(out, dict(found))
    return 0


def run(limits: Mapping[str, float], command: Sequence[str], out: Path, deadline: float) -> int:
    """Run the sections in order, print what each found, and keep `out` up to date; return the exit code."""
    end = time.monotonic() + deadline
    results: dict[str, Any] = {
        "format_version": 2,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "sections": {},
        "failed": {},
        "seconds": {},
    }
    for name, limit in limits.items():
        begin = time.monotonic()
        found, problem = process_of(name, command, out, min(limit, end - begin))
        results["seconds"][name] = round(time.monotonic() - begin, 1)
        if found:
            results["sections"][name] = found
            if name == "versions":
                results.update(found)
            print(gpu_report.text_of(name, found), flush=True)
        if problem:
            results["failed"][name] = problem
            print(f"\n{name} failed: {problem}", flush=True)
        write_json(out, results)
    results["targets"] = gpu_report.targets(results["sections"])
    write_json(out, results)
    print(gpu_report.text_of("targets", {"targets": results["targets"]}))
    codes = [found.get("exit_code", 0) for found in results["sections"].values()]
    return int(bool(results["failed"]) or any(codes))


def process_of(
    name: str, command: Sequence[str], out: Path, limit: float
) -> tuple[dict[str, Any] | None, str | None]:
    """Run a section in a process of its own; return what it found, if anything, and what went wrong, if so.

    All that it prints stays in a file beside `out`.
    """
    if limit < LEAST:
        return None, "left out: no time was left for it"
    part, log = (out.with_name(f"{out.stem}.{name.replace(' ', '-')}.{kind}") for kind in ("part", "log"))
    part.unlink(missing_ok=True)
    problem = None
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [*command, "--section", name, "--out", str(part)],
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            problem = f"stopped after {limit:.0f} s"
        finally:
            # With whatever it started in turn.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if problem is None and code:
        problem = f"exit code {code}"
    if problem:
        problem += "\n" + log.read_text(errors="replace")[-3000:].strip()
    found = json.loads(part.read_text()) if part.exists() else None
    part.unlink(missing_ok=True)
    return found, problem


if __name__ == "__main__":
    sys.exit(main())
