"""Test and measure everything that needs a GPU, in one call: ``python asv_bench/gpu.py --out results.json``.

Needs PyTorch with CUDA, Numba, numba-cuda, NumPy and pytest; takes a few minutes. The file is written anew after
each section, and a section that fails is recorded there with its error, so that whatever came before is kept.
"""

import argparse
import datetime
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# This checkout, whether or not it is installed.
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]

import gpu_report  # noqa: E402
import gpu_sections  # noqa: E402

from numba_lamb.cli.bench.report import write_json  # noqa: E402

Section = Callable[[], Mapping[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    """Run all sections and return the exit code: 1 if one of them, or a test, failed."""
    parser = argparse.ArgumentParser(description="Test and measure everything that needs a GPU.")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where the results go, as JSON"
    )
    out = parser.parse_args(arguments).out
    try:
        from gpu_lab import TorchLab

        lab = TorchLab()
    except (ImportError, RuntimeError) as error:
        print(f"nothing was measured: {error}", file=sys.stderr)
        return 2
    return run(gpu_sections.sections_of(lab, ROOT), lab.machine(), out)


def run(sections: Mapping[str, Section], machine: Mapping[str, Any], out: Path) -> int:
    """Run the sections in order, print what each found, and keep `out` up to date; return the exit code."""
    results: dict[str, Any] = {
        "format_version": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **machine,
        "sections": {},
        "failed": {},
    }
    print(gpu_report.heading(results), flush=True)
    for name, section in sections.items():
        try:
            results["sections"][name] = dict(section())
            print(gpu_report.text_of(name, results["sections"][name]), flush=True)
        except Exception as error:
            # Out of memory, a missing peer, a kernel that fails: the other sections are still worth having.
            results["failed"][name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        write_json(out, results)
    results["targets"] = gpu_report.targets(results["sections"])
    write_json(out, results)
    print(gpu_report.text_of("targets", {"targets": results["targets"]}))
    tests = results["sections"].get("tests", {"exit_code": 0})
    return int(bool(results["failed"]) or tests["exit_code"] != 0)


if __name__ == "__main__":
    sys.exit(main())
