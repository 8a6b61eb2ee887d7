"""What a new GPU is asked first: what there is, whether bits are right, what the driver does, what tools find."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import numba_lamb as nl
from numba_lamb.cli.bench.machine import describe_machine, versions
from numba_lamb.kernels.cuda import build, tools
from numba_lamb.kernels.cuda.table import KERNELS
from numba_lamb.memory import device

ROOT = Path(__file__).parent.parent
PACKAGES = ("numba-lamb", "numba", "llvmlite", *tools.PACKAGES, "numpy", "torch", "cupy-cuda13x", "apex")
SHAPES = {"aligned": (4097,), "misaligned": (300, 71), "small": (5,)}
PROFILED = "regex:lamb_advance|lamb_descend|lars_sums"
METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sector_hit_rate.pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
)

Found = Iterator[Mapping[str, Any]]


def what_there_is() -> Found:
    """Tell the device, the machine, versions, and where the compilers are."""
    yield {"versions": versions(PACKAGES), "machine": describe_machine(), "compilers": compilers()}
    gpu = device.open_device(0)
    told = nvidia_smi("name", "driver_version", "memory.total")
    yield {
        "device": {
            "name": told[0],
            "capability": list(gpu.capability),
            "multiprocessors": attribute("CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT"),
            "memory_mib": told[2],
            "l2_bytes": attribute("CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE"),
            "driver": told[1],
            "cuda_of_driver": int(device.call("cuDriverGetVersion")),
        },
        "versions": versions(PACKAGES),
        "machine": describe_machine(),
        "compilers": compilers(),
    }


def attribute(name: str) -> int:
    """Return an attribute of the first GPU."""
    return int(device.call("cuDeviceGetAttribute", getattr(device.driver().CUdevice_attribute, name), 0))


def nvidia_smi(*fields: str) -> list[str | None]:
    """Return what ``nvidia-smi`` tells of the first GPU, None for each where there is none to ask."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return [None] * len(fields)
    return [*map(str.strip, done.stdout.strip().split(","))]


def compilers() -> dict[str, str]:
    """Return where NVVM and nvJitLink are found, or why they are not."""
    found = {}
    for name in ("nvvm", "nvJitLink"):
        try:
            from cuda.pathfinder import load_nvidia_dynamic_lib

            found[name] = str(load_nvidia_dynamic_lib(name).abs_path)
        # Whatever it raises: it differs from release to release.
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def bits() -> Found:
    """Take steps of Lamb over three arrays, of which one is not aligned, on the GPU and on the CPU."""
    from tests.cuda.gpu_arrays import bare
    from tests.cuda.gpu_twins import Twins

    taken = []
    for name, options in {"lamb": {}, "lamb-clipped": {"max_grad_norm": 0.5}}.items():
        twins = Twins(
            lambda p, more=options: nl.Lamb(p, 0.01, weight_decay=0.1, **more), bare(), shapes=SHAPES
        )
        for step in range(2):
            twins.step(twins.gradients(step))
        twins.assert_same()
        taken.append(name)
        yield {"the same bits": list(taken)}


def compiling() -> Found:
    """Compile one kernel from its text to machine code on this machine."""
    gpu, kernel = device.open_device(0), KERNELS["lamb_advance"]
    start = time.perf_counter()
    code = build.link(build.ptx(kernel, np.dtype("float32"), gpu.capability), gpu.capability)
    yield {"lamb_advance": {"seconds": round(time.perf_counter() - start, 2), "bytes": len(code)}}


def waiting_in_a_capture() -> Found:
    """Ask the driver what waits and frees do to a capture in relaxed mode, which is what finalizers must avoid."""
    functions, gpu = device.driver(), device.open_device(0)
    relaxed = functions.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    found: dict[str, list[str]] = {}
    with gpu.current():
        for name in ("nothing", "cuCtxSynchronize", "cuMemFree", "cuMemFreeHost"):
            memory = {
                "cuMemFree": lambda: [int(device.call("cuMemAlloc", 256))],
                "cuMemFreeHost": lambda: [int(device.call("cuMemHostAlloc", 256, 0))],
            }.get(name, list)()
            stream = device.call("cuStreamCreate", 1)
            device.call("cuStreamBeginCapture", stream, relaxed)
            with device.allocating():
                told = [] if name == "nothing" else [getattr(functions, name)(*memory)[0].name]
            ended, *_ = functions.cuStreamEndCapture(stream)
            found[name] = [*told, f"capture ends with {ended.name}"]
            yield {"in a capture": found}


# -- tools ---------------------------------------------------------------------------------------------------


def checked_by(tool: str) -> Found:
    """Run the section of bits under a tool of compute-sanitizer."""
    return under("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", section="bits")


def profiled() -> Found:
    """Have Nsight Compute look at steps over BERT-large."""
    metrics = ",".join(METRICS)
    return under(
        "ncu",
        *("--clock-control", "none", "--kernel-name", PROFILED, "--launch-skip", "6", "--launch-count", "12"),
        *("--metrics", metrics, "--csv"),
        section="workload",
    )


def under(tool: str, *options: str, section: str) -> Found:
    """Run a section under a tool, whose output is printed and whose end is kept."""
    path = find_tool(tool)
    if path is None:
        yield {"left_out": f"{tool} is not installed"}
        return
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, *script_of_this_process(), "--section", section]
        code, lines = printed([path, *options, *script, "--out", str(Path(folder, "part.json"))])
    yield {"exit_code": code, "summary": lines[-1] if lines else "", "tail": "\n".join(lines)[-8000:]}


def find_tool(name: str) -> str | None:
    """Return the path of a tool of the CUDA toolkit, of the installed wheels or of PATH."""
    wheels = (path for base in sys.path for path in sorted(Path(base).glob(f"nvidia/**/bin/{name}")))
    return next(map(str, wheels), None) or shutil.which(name)


def script_of_this_process() -> list[str]:
    """Return what runs a section as this process does, without which section and where its results go."""
    given = [*sys.argv]
    for option in ("--section", "--out"):
        if option in given:
            at = given.index(option)
            del given[at : at + 2]
    return given


def printed(command: Sequence[str], **environment: str) -> tuple[int, list[str]]:
    """Run a command, print its lines as they come, and return its exit code and them."""
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    return process.returncode, lines


def gpu_tests() -> Found:
    """Run the tests that need a GPU; what they need beyond pytest is left out."""
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    files = sorted(map(str, (ROOT / "tests" / "cuda").glob("test_gpu*.py")))
    # A library's warning on some machine says nothing about this package.
    options = ["-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "--maxfail=5", "--noconftest"]
    if importlib.util.find_spec("pytest") is None:
        yield {"left_out": "pytest is not installed"}
        return
    code, lines = printed([sys.executable, "-m", "pytest", *options, "--tb=short", *files], PYTHONPATH=paths)
    yield {
        "exit_code": code if code != 5 else 0,
        "summary": lines[-1] if lines else "",
        "not_passed": [line for line in lines if re.match("FAILED|ERROR|SKIPPED", line)],
        "tail": "" if code in (0, 5) else "\n".join(lines)[-20_000:],
    }
