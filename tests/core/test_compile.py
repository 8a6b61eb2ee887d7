"""What compiles when, and where compiled code is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb import _cache
from numba_lamb.kernels.cpu import passes
from tests.helpers import run_python

pytestmark = pytest.mark.slow

KERNELS = [
    # But for what counts steps, which PyTorch keeps in float32.
    *(kernel for name, kernel in passes.KERNELS.items() if name != "count_layers"),
    passes.check_gradients,
    passes.gradient_squares,
    passes.total_squares,
]

STEP = """
import numpy as np
import numba_lamb as nl
from numba_lamb.kernels.cpu import passes
w = np.ones(100_000, dtype=np.float32)
nl.Lamb([w], 0.1, num_threads=1).step([np.ones(100_000, dtype=np.float32)])
found = passes.lamb_descend.serial.stats
print(sum(found.cache_hits.values()), sum(found.cache_misses.values()), w[0])
"""


def signatures() -> list[int]:
    return [len(twin.signatures) for kernel in KERNELS for twin in (kernel.serial, kernel.parallel)]


def test_one_signature_per_dtype_and_a_second_step_compiles_nothing() -> None:
    others = signatures()
    for dtype in (np.float32, np.float64):
        for size in (10, 200_000):
            params = {"a": np.ones(size, dtype), "conv": np.ones((4, 2, 3), dtype)}
            groups = [
                {"params": params, "lr": 1},
                {"params": [np.ones((2, 2, 2), dtype)], "grad_centralization": True},
            ]
            makers = [
                lambda given: nl.Lamb(given, 0.1, weight_decay=lambda step: 0.1),
                lambda given: nl.Momentum(given, np.float32(0.1), 0.9, max_grad_norm=1),
                lambda given: nl.Lars(nl.Momentum(given, [0.1] * 9, 0.9, loss_scale=2), use_clip=True),
            ]
            for make in makers:
                opt = make(groups) if make is not makers[2] else make(params)
                gradients = [np.ones_like(p) for p in opt.params.values()]
                opt.step(gradients)
                before = signatures()
                opt.step(gradients)
                opt.step([None, *gradients[1:]])
                opt.step([g.copy() for g in gradients])
                assert signatures() == before
    assert all(now - then <= 2 for now, then in zip(signatures(), others, strict=True))


def test_import_compiles_nothing() -> None:
    code = """
import numba_lamb
from numba_lamb.kernels.cpu import passes
kernels = [k for k in vars(passes).values() if isinstance(k, numba_lamb._compile.Kernel)]
print(len(kernels), sum(len(twin.signatures) for kernel in kernels for twin in kernel))
"""
    assert run_python(code) == "19 0"


@pytest.fixture(scope="module", name="compiled")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that one process has filled."""
    folder = tmp_path_factory.mktemp("cache")
    assert run_python(STEP, NUMBA_CACHE_DIR=str(folder)) == "0 1 0.9"
    return folder


def test_a_second_process_finds_the_first_ones_code(compiled: Path) -> None:
    assert run_python(STEP, NUMBA_CACHE_DIR=str(compiled)) == "1 0 0.9"


def test_an_edited_source_is_not_served_from_the_cache(tmp_path: Path) -> None:
    package = tmp_path / "source" / "numba_lamb"
    shutil.copytree(Path(_cache.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(package.parent)}
    assert run_python(STEP, **environment) == "0 1 0.9"
    rules = package / "numerics" / "rules.py"
    stamp = rules.stat()
    rules.write_text(rules.read_text().replace("fma(-scale, u, w)", "fma(+scale, u, w)"))
    os.utime(rules, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    before = {path.name for path in (tmp_path / "cache").rglob("*lamb_descend*.nbc")}
    assert run_python(STEP, **environment) == "0 1 1.1"
    after = {path.name for path in (tmp_path / "cache").rglob("*lamb_descend*.nbc")}
    assert len(after) == len(before) == 1, "the older source's code is gone"
    assert after != before


def test_the_source_hash_sees_every_kernel_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = Path(_cache.__file__).parent
    before = _cache.source_hash()
    for name in (
        "numerics/rules.py",
        "numerics/storage.py",
        "kernels/cpu/passes.py",
        "kernels/columns.py",
        "kernels/cpu/intrinsics.py",
        "layout.py",
    ):
        copied = tmp_path / name.replace("/", "-")
        for path in package.rglob("*.py"):
            target = copied / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        monkeypatch.setattr(_cache, "_PACKAGE", copied)
        assert _cache.source_hash() == before
        (copied / name).write_bytes((copied / name).read_bytes() + b"\n")
        assert _cache.source_hash() != before, name


def test_a_damaged_entry_is_compiled_again(compiled: Path, tmp_path: Path) -> None:
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    entries = list(tmp_path.rglob("*.nbc"))
    assert entries
    for entry in entries:
        content = bytearray(entry.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 512] = bytes(512)
        entry.write_bytes(content)
    assert run_python(STEP, **environment) == "0 1 0.9"
    assert run_python(STEP, **environment) == "1 0 0.9"


def test_no_writable_folder_means_no_cache_and_no_error() -> None:
    # A locator that finds nothing is what Numba has where no folder is writable.
    code = (
        """
from numba.core import caching
caching.CacheImpl._locator_classes = []
import numba_lamb._compile as c
"""
        + STEP
    )
    assert run_python(code + "print(c.cache_state.folder, c.cache_state.reason[:21])") == (
        "0 1 0.9\nNone cannot cache function"
    )


def test_a_folder_that_cannot_be_written_means_no_cache_and_no_error(tmp_path: Path) -> None:
    code = (
        """
import pathlib
def refuse(self, data):
    raise OSError(28, "No space left on device")
pathlib.Path.write_bytes = refuse
"""
        + STEP
    )
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) == "0 1 0.9"
    assert not list(tmp_path.rglob("*.nbc*"))


def test_the_cache_can_be_turned_off(tmp_path: Path) -> None:
    assert run_python(STEP, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_LAMB_CACHE="0") == "0 1 0.9"
    assert not list(tmp_path.rglob("*.nbc"))


def test_processes_that_race_for_the_cache_all_succeed(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", STEP]
    racing = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in racing:
        out, err = process.communicate()
        assert (process.returncode, out.split()[-1], err) == (0, "0.9", "")
    assert run_python(STEP, NUMBA_CACHE_DIR=str(tmp_path)) == "1 0 0.9"


def test_an_import_without_compilation_says_so_in_a_sentence() -> None:
    code = """
try:
    import numba_lamb.schedules
except ImportError as error:
    print(error)
"""
    assert run_python(code, NUMBA_DISABLE_JIT="1") == (
        "NUMBA_DISABLE_JIT must be unset or 0 where numba_lamb is imported, got 1: its kernels work on addresses "
        "and cannot run as Python; unset it in the processes that import numba_lamb"
    )


ASSEMBLY = """
import re
import numpy as np
import numba_lamb as nl
from numba_lamb.kernels.cpu import lamb, lars, rows
for make in (lambda w: nl.Lamb([w], 0.1), lambda w: nl.Lars(nl.Momentum([w], 0.1, 0.9))):
    make(np.ones(9, np.float32)).step([np.ones(9, np.float32)])
found = {}
for function in (lamb.advance_chunk, lamb.descend_chunk, lars.update_chunk, lars.sum_chunk):
    (found[function.__name__],) = function.inspect_asm().values()
nl.Lamb([np.ones(9, np.float16)], 0.1, moments="int8").step([np.ones(9, np.float32)])
for function in (rows._load, rows._store, rows._draw):
    found[function.__name__] = max(function.inspect_asm().values(), key=len)
for name, text in found.items():
    pattern = r"v(sqrtps|divps|fn?madd\\d+ps|fn?madd\\d+pd|psrld|pslld|pmulld|cvtdq2ps)\\t.*%[yz]mm"
    wide = re.findall(pattern, text)
    print(name, *sorted({re.sub(r"213|231|132|fn?m", "", op) for op in wide}), "prefetcht0" in text)
"""


def test_hot_loops_use_whole_vectors() -> None:
    """Those of conversions, hashes and random rounding too."""
    features = llvmlite.binding.get_host_cpu_features()
    if not (features.get("avx2") and features.get("fma")):
        pytest.skip("this CPU has no AVX2 and FMA")
    told = run_python(ASSEMBLY, NUMBA_LAMB_CACHE="0", NUMBA_LAMB_PREFETCH="4096").splitlines()
    assert told[:4] == [
        "advance_chunk addpd addps divps sqrtps True",
        "descend_chunk addps divps sqrtps True",
        "update_chunk addps True",
        "sum_chunk addpd addps True",
    ]
    # Which shifts there are depends on the processor's vectors.
    wide = {name: {*others} for name, *others in map(str.split, told[4:])}
    assert wide["_load"] >= {"cvtdq2ps", "pslld"}
    assert wide["_store"] >= {"psrld", "sqrtps"}
    assert wide["_draw"] >= {"psrld"}
