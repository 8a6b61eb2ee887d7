"""What the kernels are compiled to, compiled once: the texts are kept on disk beside the compiled kernels.

Numba's part takes nearly all of the time and is the same for every compute capability; a test makes sure that the
PTX made from it is that of a compilation for the capability.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from numba_lamb import _private
from numba_lamb.kernels.cuda import build
from numba_lamb.kernels.cuda.numpy_names import names_supplied

Capability = tuple[int, int]
CAPABILITIES: list[Capability] = [(9, 0), (8, 0), (10, 0)]


class Texts(NamedTuple):
    """LLVM as NVVM is given it, and PTX by capability."""

    llvm: str
    ptx: dict[str, str]


def kernel_ptx(kernel: Any, dtype: str, capability: Capability) -> str:
    return texts_of(kernel, dtype).ptx[str(capability)]


@cache
def texts_of(kernel: Any, dtype: str) -> Texts:
    path = _path(kernel, dtype)
    found = None if path is None else _private.read(path)
    if found is not None:
        return Texts(*json.loads(found))
    made = compiled(kernel, dtype, CAPABILITIES)
    if path is not None:
        _private.write(path, json.dumps(made).encode())
        for older in path.parent.glob(f"{path.name.split('.')[0]}.*{path.suffix}"):
            if older != path:
                older.unlink(missing_ok=True)
    return made


def _path(kernel: Any, dtype: str) -> Path | None:
    path = build._cached_path(kernel, np.dtype(dtype), CAPABILITIES[0])
    return None if path is None else path.with_name(path.name.replace(".", "-texts-", 1)).with_suffix(".json")


def compiled(kernel: Any, dtype: str, capabilities: Sequence[Capability]) -> Texts:
    """Compile a kernel once for all of these."""
    with names_supplied():
        from numba.cuda import compiler

    compile_cuda, libraries = compiler.compile_cuda, []

    def watched(function: Any, *arguments: Any, **options: Any) -> Any:
        made = compile_cuda(function, *arguments, **options)
        if function is kernel:
            libraries.append(made.library)
        return made

    with mock.patch.object(compiler, "compile_cuda", watched):
        text = build.ptx(kernel, np.dtype(dtype), capabilities[0])
    (library,) = libraries
    ptx = {str(capabilities[0]): text}
    for capability in capabilities[1:]:
        text = library.get_asm_str(cc=capability)
        (entry,) = re.findall(r"\.entry\s+(\w+)", text)
        ptx[str(capability)] = text.replace(entry, kernel.__name__)
    return Texts(library.get_llvm_str(), ptx)
