"""Compile CUDA kernels without a driver, and say what the machine code is made of.

Everything goes through the public interfaces of numba-cuda and of cuda.core's nvJitLink, which is how
numba-cuda itself links; SASS is read by ``nvdisasm``.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from numba_lamb.kernels.cuda.numpy_names import names_supplied
from tests.cuda.ptx.contraction import contracted

__all__ = [
    "Cubin",
    "Usage",
    "contracted",
    "cubin_of",
    "device_of",
    "linked",
    "ptx_of",
    "resource_usage",
    "sass_counts",
]

Capability = tuple[int, int]


class Cubin(NamedTuple):
    """Machine code of a module, and what the assembler told while making it."""

    image: bytes
    log: str


class Usage(NamedTuple):
    """What a kernel needs: bytes per thread of stack and spills, and of static shared memory per block."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@contextmanager
def device_of(compute_capability: Capability) -> Iterator[None]:
    """Let functions under ``cuda.jit(device=True)`` be compiled with no driver.

    Numba compiles such a function when a kernel calls it, for the capability of the current device; this
    stands in for that device. It is the one patch of Numba's internals here.
    """
    device = SimpleNamespace(compute_capability=compute_capability)
    with mock.patch("numba.cuda.dispatcher.get_current_device", return_value=device):
        yield


def compiled(
    function: Callable[..., Any], signature: Any, capability: Capability, output: str, options: Any
) -> Any:
    from numba import cuda

    python_function = getattr(function, "py_func", function)
    with names_supplied(), device_of(capability):
        code, _ = cuda.compile(
            python_function, signature, cc=capability, device=False, abi="numba", output=output, **options
        )
    return code


def ptx_of(
    python_function: Callable[..., Any],
    signature: Any,
    compute_capability: Capability = (9, 0),
    **options: Any,
) -> str:
    """Return the PTX of a kernel; `options` are those of ``numba.cuda.compile``, such as `launch_bounds`."""
    return str(compiled(python_function, signature, compute_capability, "ptx", options))


def linked(
    python_function: Callable[..., Any],
    signature: Any,
    compute_capability: Capability = (9, 0),
    **options: Any,
) -> tuple[str, Cubin]:
    """Return the PTX and the machine code after link-time optimisation, which ``cuda.jit`` does by default."""
    from cuda.core import ObjectCode

    code = compiled(python_function, signature, compute_capability, "ltoir", options)
    ptx, _ = link(
        ObjectCode.from_ltoir(code), "ptx", compute_capability, link_time_optimization=True, ptx=True
    )
    cubin = link(ObjectCode.from_ltoir(code), "cubin", compute_capability, link_time_optimization=True)
    return ptx.decode(), Cubin(*cubin)


def cubin_of(ptx: str, compute_capability: Capability = (9, 0)) -> Cubin:
    """Return the machine code of a PTX module."""
    from cuda.core import ObjectCode

    return Cubin(*link(ObjectCode.from_ptx(ptx.encode()), "cubin", compute_capability))


def link(code: Any, output: str, compute_capability: Capability, **options: Any) -> tuple[bytes, str]:
    """Link one module by nvJitLink; return the result and the log."""
    from cuda.core import Linker, LinkerOptions

    major, minor = compute_capability
    given = LinkerOptions(arch=f"sm_{major}{minor}", verbose=True, ptxas_options=["-v"], **options)
    linker = Linker(code, options=given)
    result = bytes(linker.link(output).code)
    return result, linker.get_info_log()


def resource_usage(cubin: Cubin) -> dict[str, Usage]:
    """Return for each kernel its registers, stack, spills and shared memory."""
    usages = {}
    for part in cubin.log.split("Compiling entry function '")[1:]:
        name = part[: part.index("'")]
        numbers = [
            number(part, what) for what in ("bytes stack frame", "bytes spill stores", "bytes spill loads")
        ]
        usages[name] = Usage(
            int(re.findall(r"Used (\d+) registers", part)[0]), *numbers, number(part, "bytes smem")
        )
    return usages


def number(text: str, what: str) -> int:
    """Return the number before `what`; zero if it is not mentioned."""
    match = re.search(rf"(\d+) {what}", text)
    return int(match[1]) if match else 0


def sass_counts(cubin: Cubin) -> Counter[str]:
    """Count the machine instructions by opcode with its modifiers, such as ``LDG.E.128``."""
    pattern = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"
    return Counter(re.findall(pattern, disassembly(cubin), re.M))


def disassembly(cubin: Cubin) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin.image)
        command = [find_disassembler(), "-c", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"nvdisasm failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def find_disassembler() -> str:
    """Return the path of ``nvdisasm``: of the installed wheels first, else of PATH."""
    installed = [path for base in sys.path for path in sorted(Path(base).glob("nvidia/cu*/bin/nvdisasm*"))]
    found = str(installed[0]) if installed else shutil.which("nvdisasm")
    if found is None:
        raise FileNotFoundError("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    return found
