"""What pip may put together: NumPy without a name that numba-cuda asks for, NVVM newer than nvJitLink."""

import hashlib
import re
from typing import Any

import numpy as np
import pytest

from numba_lamb.kernels.cuda import build
from tests.cuda.kernel_texts import kernel_ptx
from tests.helpers import run_python

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from numba_lamb.kernels.cuda import frame

KERNEL = frame.scale_gradients
FLOAT = np.dtype("float32")

WITHOUT_ROW_STACK = """
import hashlib, re, sys, types, warnings, numpy
warnings.filterwarnings("ignore", "The 'generic' unit for NumPy timedelta")
if "row_stack" in vars(numpy):
    del numpy.row_stack
    numpy.__all__ = [name for name in numpy.__all__ if name != "row_stack"]
written = []
class Watched(types.ModuleType):
    def __setattr__(self, name, value):
        written.append(name)
        super().__setattr__(name, value)
numpy.__class__ = Watched
from numba import cuda
def users(array):
    array[0] = 1
signature = cuda.types.void(cuda.types.float32[:])
if {users_first}:
    try:
        cuda.compile(users, signature, cc=(9, 0))
    except AttributeError as error:
        assert error.name == "row_stack"
    else:
        raise AssertionError
from numba_lamb.kernels.cuda import build, frame
text = build.ptx(frame.scale_gradients, numpy.dtype("float32"), (9, 0))
cuda.compile(users, signature, cc=(9, 0))
assert not hasattr(numpy, "row_stack") and "row_stack" not in written
assert not [finder for finder in sys.meta_path if "numba_lamb" in type(finder).__module__]
module = sys.modules["numba.cuda.np.arrayobj"]
assert module.np is numpy and module.__spec__.loader is module.__loader__
assert "numba_lamb" not in type(module.__loader__).__module__
print(hashlib.sha256(re.sub("_ZN08NumbaEnv[A-Za-z0-9_]+", "", text).encode()).hexdigest())
"""


@pytest.mark.parametrize("users_first", [False, True])
def test_kernels_compile_without_row_stack(users_first: bool) -> None:
    """To the same text, with `numpy` never written to; and after a user's kernel failed for want of the name."""
    usual = re.sub(r"_ZN08NumbaEnv\w+", "", kernel_ptx(KERNEL, "float32", (9, 0)))
    found = run_python(WITHOUT_ROW_STACK.replace("{users_first}", str(users_first)))
    assert found == hashlib.sha256(usual.encode()).hexdigest()


def declaring(version: str) -> str:
    text, changes = re.subn(
        r"(?m)^\.version [\d.]+", f".version {version}", kernel_ptx(KERNEL, "float32", (9, 0))
    )
    assert changes == 1
    return text


def test_ptx_of_a_newer_release_is_linked_as_what_nvjitlink_takes() -> None:
    usual = build.link(kernel_ptx(KERNEL, "float32", (9, 0)), (9, 0))
    assert build.link(declaring("99.0"), (9, 0)) == usual


def test_ptx_that_needs_the_newer_release_names_both_packages() -> None:
    text = declaring("99.0").replace(".target sm_90", ".target sm_999")
    with pytest.raises(RuntimeError) as caught:
        build.link(text, (9, 0))
    message = str(caught.value)
    assert re.match(
        r"PTX must be of version [\d.]+ or older for nvJitLink [\d.]+ \(nvidia-nvjitlink", message
    )
    assert re.search(
        r"got 99\.0 from NVVM \(nvidia-\S+ \S+\), and as [\d.]+ it is refused: .*sm_999", message
    )
    assert re.search(r"pip install --upgrade nvidia-nvjitlink", message)
    assert re.search(r"pip install 'cuda-toolkit\[nv\w+\]==\d+\.\d+\.\*'", message)


def test_a_gpu_newer_than_nvjitlink_is_told() -> None:
    with pytest.raises(
        RuntimeError, match=r"must know compute capability 99\.0, got nvJitLink (.|\n)*--upgrade"
    ):
        build.link(kernel_ptx(KERNEL, "float32", (9, 0)), (99, 0))


def test_a_gpu_older_than_the_release_is_told() -> None:
    with pytest.raises(
        RuntimeError, match=r"capability 3\.0 is not supported.*pip install -e '\.\[cuda12\]'"
    ):
        build.ptx(KERNEL, FLOAT, (3, 0))


def test_what_numba_cuda_fails_for_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvvm
    from cuda.pathfinder import DynamicLibNotFoundError

    def lacking_a_name() -> None:
        np.no_such_name  # noqa: B018

    def without_nvrtc() -> None:
        raise DynamicLibNotFoundError("libnvrtc")

    def for_an_unknown_gpu() -> None:
        raise nvvm.nvvmError(nvvm.Result.ERROR_INVALID_OPTION)

    def with_a_bug() -> None:
        raise AttributeError("a bug")

    cases: list[tuple[Any, type[Exception], str]] = [
        (lacking_a_name, RuntimeError, r"NumPy must have no_such_name for numba-cuda .*'numpy<\d\.\d+'$"),
        (
            without_nvrtc,
            ImportError,
            r"need NVVM and NVRTC \(libnvrtc\): python -m pip install -e '\.\[cuda13\]'",
        ),
        (
            for_an_unknown_gpu,
            RuntimeError,
            r"NVVM must know compute capability 9\.0, got nvidia-.*--upgrade nvidia",
        ),
        (with_a_bug, AttributeError, "^a bug$"),
    ]
    for fail, kind, message in cases:
        monkeypatch.setattr("numba.cuda.compile", lambda *_, fail=fail, **__: fail())
        with pytest.raises(kind, match=message):
            build.ptx(KERNEL, FLOAT, (9, 0))
