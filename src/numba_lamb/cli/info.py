"""``numba-lamb info``: what the package found here, as text or JSON, for users and for their bug reports."""

import argparse
import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding

from numba_lamb._compile import cache_state
from numba_lamb.cli import output
from numba_lamb.cli.bench.machine import cpu_model, usable_cpus, versions
from numba_lamb.engine.cpu import calibration
from numba_lamb.kernels.cpu.launch import thread_count, thread_limit
from numba_lamb.kernels.cpu.threads import cpu_quota, omp_num_threads
from numba_lamb.kernels.cuda import tools

__all__ = ["add_parser", "collect", "describe", "run", "simd_bits"]

_PACKAGES = ("numba-lamb", "numba", "numpy", "llvmlite", *tools.PACKAGES)
_PARTNERS = ("torch", "timm", "optax")
"""What this package works or is compared with, of which it is told too that one is not there."""
_LAYERS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
_SECTIONS = {
    "versions": "Versions",
    "threads": "Threads",
    "cpu": "Processor",
    "kernel_cache": "Kernel cache",
    "gpu": "GPU",
}
_WIDTHS = {"avx512f": 512, "avx2": 256, "avx": 256, "sse2": 128, "neon": 128}


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add ``info`` and its option to the subcommands of ``numba-lamb``."""
    parser = commands.add_parser(
        "info",
        help="show versions, threads, processor, kernel cache and GPU",
        description="Show what numba-lamb runs on here: versions, threads, processor, kernel cache and GPU.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``numba-lamb info`` and return the exit code."""
    found = collect()
    print(json.dumps(found, indent=1) if arguments.json else describe(found, output.width_of(sys.stdout)))
    return 0


def collect() -> dict[str, dict[str, Any]]:
    """Return everything that is shown, by section, as plain values; what could not be found out says why."""
    found = versions((*_PACKAGES, *_PARTNERS))
    return {
        "versions": {**found, **{name: "not installed" for name in _PARTNERS if name not in found}},
        "threads": _threads(),
        "cpu": _cpu(),
        "kernel_cache": _kernel_cache(),
        "gpu": _gpu(),
    }


def describe(found: dict[str, dict[str, Any]], columns: int | None = None) -> str:
    """Return what `collect` found as aligned lines, of at most `columns` where words allow it."""
    width = max(len(key) for values in found.values() for key in values) + 2
    lines = []
    for section, values in found.items():
        lines.append(_SECTIONS[section])
        for key, value in values.items():
            text = _text(value)
            line, indent = f"  {key.replace('_', ' '):<{width}}{text}", width + 2
            if columns is not None and max(map(len, text.split()), default=0) > columns - indent:
                # A path that does not fit beside its name may fit below it.
                indent = 4
            lines.append(output.fill(line, columns, " " * indent))
    return "\n".join(lines)


def simd_bits(features: dict[str, bool]) -> int | None:
    """Return the width of the widest vector registers among LLVM's `features`; None if none is known."""
    return max((bits for name, bits in _WIDTHS.items() if features.get(name)), default=None)


def _threads() -> dict[str, Any]:
    count, cpus, limit = thread_count(None), usable_cpus(), thread_limit()
    if count < min(cpus, limit):
        asked = omp_num_threads()
        why = (
            f"OMP_NUM_THREADS is {asked}" if asked else f"the container's CPU quota is that of {cpu_quota()}"
        )
        reason = f"{why}, fewer than the {cpus} CPUs that this process may use"
    elif count < cpus:
        reason = f"Numba is set to {limit} of the {cpus} CPUs that this process may use"
    else:
        reason = "the CPUs that this process may use; where PyTorch is loaded, its number is taken instead"
    problems = {name: _why_no_layer(name, module) for name, module in _LAYERS.items()}
    return {
        "count": count,
        "because": reason,
        "limit": limit,
        "layer": _layer_in_use(),
        "layers_available": [name for name, problem in problems.items() if problem is None],
        "layers_unavailable": {name: problem for name, problem in problems.items() if problem is not None},
    }


def _why_no_layer(name: str, module: str) -> str | None:
    try:
        if name == "tbb":
            parallel = importlib.import_module("numba.np.ufunc.parallel")
            # Numba's own test of TBB's version, which is no part of its interface.
            check = getattr(parallel, "_check_tbb_version_compatible", lambda: None)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it warns of, it also raises
                check()
        importlib.import_module(f"numba.np.ufunc.{module}")
    except ImportError as error:
        return _one_line(error)
    return None


def _layer_in_use() -> str:
    """Return the threading layer that Numba takes, which it decides at the first parallel run."""

    def touch(values: Any) -> None:
        for i in numba.prange(values.shape[0]):
            values[i] = 1.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a layer passed over for being old is listed as unavailable
        try:
            numba.njit(parallel=True)(touch)(np.zeros(2))
        except (ImportError, ValueError) as error:
            # NUMBA_THREADING_LAYER asks for one that is not there.
            return f"none: {_one_line(error)}"
    return str(numba.threading_layer())


def _cpu() -> dict[str, Any]:
    try:
        features = dict(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM does not know this processor's features
        features = {}
    return {
        "model": cpu_model(),
        "llvm_name": binding.get_host_cpu_name(),
        "simd_bits": simd_bits(features),
        "fma": bool(features.get("fma") or features.get("neon")),
        **_prefetch(),
    }


def _prefetch() -> dict[str, Any]:
    """Return how many bytes ahead loops prefetch, why, and what was found for models from so many elements on."""
    threads = thread_count(None)
    choice = calibration.usual()
    measured = {} if choice.because == calibration.ASKED else calibration.choices(threads)
    return {
        "prefetch_bytes": choice.distance,
        "prefetch_because": choice.because,
        "prefetch_calibrated": {f"{4**power:,} elements": found for power, found in sorted(measured.items())},
    }


def _kernel_cache() -> dict[str, Any]:
    if cache_state.folder is None:
        return {"folder": None, "because": cache_state.reason}
    kept = [path for suffix in ("nbc", "cubin") for path in Path(cache_state.folder).glob(f"*.{suffix}")]
    files = [path.stat().st_size for path in kept]
    return {"folder": cache_state.folder, "files": len(files), "megabytes": round(sum(files) / 1e6, 1)}


def _gpu() -> dict[str, Any]:
    try:
        from numba import cuda

        if cuda.is_available():
            device = cuda.get_current_device()
            name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
            return {"name": name, "compute_capability": ".".join(map(str, device.compute_capability))}
        problem = cuda.cuda_error() or "Numba finds no CUDA device"
    except Exception as error:
        # A broken driver may fail in any way; this command is what users then run.
        problem = error
    return {"name": None, "because": _one_line(problem)}


def _one_line(problem: object) -> str:
    text = " ".join(str(problem).split())
    return text or type(problem).__name__


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} ({one})" for key, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
