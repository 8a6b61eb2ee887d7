"""What the compilers make of every CUDA kernel: registers, accesses, roundings. None of it needs a GPU."""

import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from numba_lamb import _compile
from numba_lamb.kernels.cuda import build
from numba_lamb.layout import LANES
from tests.cuda.kernel_texts import CAPABILITIES, kernel_ptx
from tests.cuda.ptx.compile import Cubin
from tests.cuda.ptx.contraction import contracted
from tests.cuda.ptx.parser import parse
from tests.cuda.ptx.resources import resources_of
from tests.cuda.ptx.sass import loads_in_flight
from tests.helpers import run_python

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

from numba_lamb.kernels.cuda import exchange, frame, lans, passes, table
from numba_lamb.kernels.cuda.variants import STORED_KERNELS

STEP_KERNELS = [
    frame.open_step,
    frame.gradient_squares,
    frame.clip_gradients,
    frame.scale_gradients,
    frame.decay_weights,
    frame.row_means,
]
LANS_KERNELS = [
    lans.lans_squares,
    lans.lans_normalize,
    lans.lans_advance,
    lans.lans_ratio,
    lans.lans_descend,
]
KERNELS = [
    *STEP_KERNELS,
    *LANS_KERNELS,
    *exchange.EXCHANGE_KERNELS,
    passes.lamb_advance,
    passes.lamb_other_norm,
    passes.lamb_ratio,
    passes.lamb_descend,
    passes.lars_sums,
    passes.lars_ratio,
    passes.lars_update,
]
BY_NAME = {kernel.__name__: kernel for kernel in KERNELS}
DTYPES = ["float32", "float64"]

# The most registers a thread may take in float32 and float64, a little above what nvJitLink 13.5 gives it on
# the neediest of the three capabilities. An SM has 65,536: with 128 threads to a block 64 leave room for 8 blocks,
# 80 for 6, 96 for 5, 128 for 4.
REGISTERS = {
    "open_step": (64, 64),
    "gradient_squares": (48, 48),
    "clip_gradients": (48, 48),
    "scale_gradients": (40, 40),
    "decay_weights": (64, 64),
    "row_means": (64, 64),
    "lamb_advance": (80, 120),
    "lamb_other_norm": (80, 128),
    "lamb_ratio": (88, 88),
    "lamb_descend": (64, 88),
    "lans_squares": (64, 64),
    "lans_normalize": (48, 48),
    "lans_advance": (88, 136),
    "lans_ratio": (88, 88),
    "lans_descend": (80, 120),
    "lars_sums": (64, 72),
    "lars_ratio": (88, 88),
    "lars_update": (72, 96),
    "pack_gradients": (40, 48),
    "average": (72, 72),
    "pack_weights": (48, 48),
    "unpack_weights": (48, 48),
    "pack_sums": (32, 32),
    "unpack_sums": (32, 32),
}

# Kernels for arrays in other formats, in float32.
STORED_REGISTERS = {
    "pack_gradients": 32,
    "open_step": 48,
    "decay_weights": 56,
    "row_means": 64,
    "lamb_advance": 128,
    "lamb_other_norm": 104,
    "lamb_descend": 64,
    "lans_squares": 56,
    "lans_advance": 144,
    "lans_descend": 80,
    "lars_sums": 64,
    "lars_update": 112,
}
# How often their threads meet beside sums: twice for each moment whose rows have scales.
MEETINGS = {"lamb_advance": 4, "lans_advance": 4, "lars_update": 2}

# Loads that are under way before the first value is used: eight rows of each array, as far as they stand in one
# piece of the code.
IN_FLIGHT = {
    "open_step": 8,
    "gradient_squares": 8,
    "clip_gradients": 8,
    "scale_gradients": 3,
    "row_means": 14,
    "lamb_ratio": 15,
    "lans_normalize": 8,
    "lans_ratio": 15,
    "lars_sums": 14,
    "lars_ratio": 15,
    "lamb_advance": 32,
    "lamb_other_norm": 28,
    "lamb_descend": 24,
    "lans_squares": 8,
    "lans_advance": 32,
    "lans_descend": 32,
    "lars_update": 24,
    "decay_weights": 8,
    "pack_gradients": 8,
    "average": 8,
    "pack_weights": 8,
    "unpack_weights": 8,
    "pack_sums": 2,
    "unpack_sums": 3,
}
WITHOUT_SUMS = {"scale_gradients", "decay_weights", "lamb_descend", "lans_descend", "lars_update"} | {
    kernel.__name__ for kernel in exchange.EXCHANGE_KERNELS
}

every_kernel = pytest.mark.parametrize("kernel", [kernel.__name__ for kernel in KERNELS])
every_stored = pytest.mark.parametrize("kernel", STORED_KERNELS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_text = pytest.mark.parametrize("capability", [(9, 0), (10, 0)], ids=["sm_90", "sm_100"])
every_capability = pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"sm_{c[0]}{c[1]}")


def ptx_of(name: str, dtype: str, capability: tuple[int, int]) -> str:
    return kernel_ptx(BY_NAME[name], dtype, capability)


@cache
def linked(text: str, capability: tuple[int, int]) -> bytes:
    return build.link(text, capability)


@every_capability
@every_dtype
@every_kernel
def test_a_kernel_fits_its_registers(kernel: str, dtype: str, capability: tuple[int, int]) -> None:
    found = resources_of(linked(ptx_of(kernel, dtype, capability), capability))
    assert found.stack == 0
    assert 0 < found.registers <= REGISTERS[kernel][DTYPES.index(dtype)]


@every_text
@every_dtype
@every_kernel
def test_a_kernel_rounds_as_it_says(kernel: str, dtype: str, capability: tuple[int, int]) -> None:
    assert_rounds(ptx_of(kernel, dtype, capability))


def assert_rounds(text: str) -> None:
    assert contracted(text) == []
    for instruction in parse(text).code:
        modifiers = set(instruction.modifiers)
        assert not modifiers & {"approx", "ftz", "full", "sat"}, instruction.text
        if instruction.opcode in ("div", "sqrt", "rcp", "fma") and modifiers & {"f32", "f64"}:
            assert "rn" in modifiers, instruction.text


@every_text
@every_dtype
@every_kernel
def test_a_kernel_names_the_memory_it_touches(kernel: str, dtype: str, capability: tuple[int, int]) -> None:
    assert_names_memory(ptx_of(kernel, dtype, capability), kernel not in WITHOUT_SUMS)


def assert_names_memory(text: str, has_sums: bool, meetings: int = 0) -> None:
    assert ".local" not in text
    touching = [one for one in parse(text).code if one.opcode in ("ld", "ldu", "st", "atom", "red", "call")]
    spaces = {(one.opcode, one.modifiers[0]) for one in touching}
    shared = {("ld", "shared"), ("st", "shared")}
    assert spaces - shared == {("ld", "param"), ("ld", "global"), ("st", "global")}
    # What is shared are lanes that are added up, each time in a place of its own, and maxima of four rows by warp.
    sums = len(re.findall(r"\bbar\.sync\s+0;", text)) - meetings
    sizes = Counter(re.findall(r"\.shared \.align \d+ \.b8 \w+\[(\d+)\]", text))
    assert sizes == Counter({str(8 * LANES): sums, "64": meetings // 2})
    assert bool(sums) == has_sums
    assert (shared <= spaces) == (has_sums or meetings > 0)


@every_text
@every_stored
def test_a_kernel_for_other_formats_rounds_and_names_memory(kernel: str, capability: tuple[int, int]) -> None:
    text = kernel_ptx(STORED_KERNELS[kernel], "float32", capability)
    assert_rounds(text)
    assert_names_memory(text, kernel not in WITHOUT_SUMS, MEETINGS.get(kernel, 0))
    assert len(re.findall(r"\bdiv\.[us]64", text)) <= 1


@every_capability
@every_stored
def test_a_kernel_for_other_formats_fits_its_registers(kernel: str, capability: tuple[int, int]) -> None:
    found = resources_of(linked(kernel_ptx(STORED_KERNELS[kernel], "float32", capability), capability))
    assert found.stack == 0
    assert 0 < found.registers <= STORED_REGISTERS[kernel]


@every_text
@pytest.mark.parametrize("kernel", [name for name in BY_NAME if name.startswith(("lamb", "lans", "lars"))])
def test_a_kernel_divides_64_bits_once_a_chunk(kernel: str, capability: tuple[int, int]) -> None:
    """Not for each element: to find a centralized element's row takes 32 bits."""
    text = ptx_of(kernel, "float32", capability)
    assert len(re.findall(r"\bdiv\.[us]64", text)) <= 1


@every_capability
@every_dtype
@every_kernel
def test_a_kernel_has_many_loads_under_way(kernel: str, dtype: str, capability: tuple[int, int]) -> None:
    cubin = Cubin(linked(ptx_of(kernel, dtype, capability), capability), "")
    assert loads_in_flight(cubin) >= IN_FLIGHT[kernel]


@pytest.mark.parametrize("capability", CAPABILITIES[1:])
@pytest.mark.parametrize("kernel", [frame.scale_gradients, passes.lamb_descend])
def test_texts_are_those_of_a_compilation_for_the_capability(
    kernel: Any, capability: tuple[int, int]
) -> None:
    """Names of modules are counted up."""
    one, other = (
        re.sub(r"_ZN08NumbaEnv\w+", "", text)
        for text in (
            build.ptx(kernel, np.dtype("float32"), capability),
            kernel_ptx(kernel, "float32", capability),
        )
    )
    assert one == other


def test_every_kernel_is_looked_at_here() -> None:
    """And is found by its name where `CudaBucket` looks it up."""
    found = [
        value
        for module in (passes, frame, lans, exchange)
        for value in vars(module).values()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
    ]
    apart = [*STEP_KERNELS, *LANS_KERNELS, *exchange.EXCHANGE_KERNELS]
    assert found == [*KERNELS[len(apart) :], *apart]
    assert set(REGISTERS) == set(BY_NAME)
    assert table.KERNELS == BY_NAME
    assert len(BY_NAME) == len(KERNELS)
    assert set(STORED_REGISTERS) == set(STORED_KERNELS)


# -- the cache on disk ---------------------------------------------------------------------------------------


class Compilers:
    """Stand in for numba-cuda and nvJitLink, and count how often they are asked."""

    def __init__(self) -> None:
        self.asked = 0

    def ptx(self, kernel: Any, dtype: np.dtype[Any], capability: tuple[int, int]) -> str:
        self.asked += 1
        return f"{kernel.__name__} {dtype} {capability}"

    def link(self, text: str, capability: tuple[int, int]) -> bytes:
        return f"code of {text}".encode()


@pytest.fixture(name="compilers")
def counted_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compilers:
    """Have the cache in an empty folder, and compilers that take no time."""
    compilers = Compilers()
    monkeypatch.setattr(build, "ptx", compilers.ptx)
    monkeypatch.setattr(build, "link", compilers.link)
    monkeypatch.setattr(build.cache_state, "folder", str(tmp_path / "cache"))
    monkeypatch.setattr(build.cache_state, "sources", "0123456789abcdef")
    return compilers


def code(kernel: Any = passes.lamb_advance, dtype: str = "float32", capability: Any = (9, 0)) -> bytes:
    return build.machine_code(kernel, np.dtype(dtype), capability)


def test_machine_code_is_written_once_and_read_after_that(compilers: Compilers, tmp_path: Path) -> None:
    first = code()
    assert first == b"code of lamb_advance float32 (9, 0)"
    assert (code(), code(), compilers.asked) == (first, first, 1)
    (entry,) = (tmp_path / "cache").iterdir()
    assert re.fullmatch(r"cuda\.lamb_advance-float32\.01234567-[0-9a-f]{24}\.cubin", entry.name)
    assert entry.read_bytes().endswith(first)


@pytest.mark.parametrize("damage", [b"", b"torn", None], ids=["empty", "torn", "one bit"])
def test_damaged_code_is_made_again(compilers: Compilers, tmp_path: Path, damage: bytes | None) -> None:
    first = code()
    (entry,) = (tmp_path / "cache").iterdir()
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content if damage is None else damage)
    assert (code(), compilers.asked) == (first, 2)
    assert (code(), compilers.asked) == (first, 2)


def test_whatever_changes_the_code_changes_its_name(
    compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    code()
    code(passes.lamb_descend)
    code(dtype="float64")
    code(capability=(8, 0))
    assert compilers.asked == 4
    for tool in ("numba", "numba-cuda", "llvmlite", "cuda-bindings", "nvidia-nvvm", "nvidia-nvjitlink"):
        with monkeypatch.context() as patch:
            usual = build._version
            patch.setattr(
                build, "_version", lambda name, new=tool, usual=usual: usual(name) + (name == new) * "x"
            )
            before = compilers.asked
            code()
            code()
            assert compilers.asked == before + 1, tool
    before = compilers.asked
    code()
    code(dtype="float64")
    assert compilers.asked == before


def test_code_of_older_sources_is_thrown_away(
    compilers: Compilers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for kernel in (passes.lamb_advance, passes.lars_update):
        for dtype in DTYPES:
            code(kernel, dtype)
    monkeypatch.setattr(build.cache_state, "sources", "fedcba9876543210")
    code(capability=(8, 0))
    code(capability=(10, 0))
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "cache").iterdir())
    assert names == [
        "cuda.lamb_advance-float32.fedcba98",
        "cuda.lamb_advance-float32.fedcba98",
        "cuda.lamb_advance-float64.01234567",
        "cuda.lars_update-float32.01234567",
        "cuda.lars_update-float64.01234567",
    ]


def test_an_entry_that_cannot_be_read_costs_a_compilation(compilers: Compilers, tmp_path: Path) -> None:
    first = code()
    (entry,) = (tmp_path / "cache").iterdir()
    entry.unlink()
    entry.mkdir()
    assert (code(), compilers.asked) == (first, 2)
    assert list((tmp_path / "cache").iterdir()) == [entry]


def test_a_write_that_fails_leaves_nothing_behind(
    compilers: Compilers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = Path.write_bytes

    def torn(self: Path, data: Any) -> int:
        write(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", torn)
        first = code()
    assert first == b"code of lamb_advance float32 (9, 0)"
    assert list((tmp_path / "cache").iterdir()) == []
    assert (code(), code(), compilers.asked) == (first, first, 2)


def test_a_folder_that_cannot_be_written_costs_a_compilation(
    compilers: Compilers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(build.cache_state, "folder", str(tmp_path / "file" / "cache"))
    assert code() == code() == b"code of lamb_advance float32 (9, 0)"
    assert compilers.asked == 2


def test_the_cache_can_be_turned_off(
    compilers: Compilers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NUMBA_LAMB_CACHE", "0")
    monkeypatch.setattr(build, "cache_state", _compile._CacheState())
    code()
    code()
    assert compilers.asked == 2
    assert list(tmp_path.iterdir()) == []


# -- what is missing -----------------------------------------------------------------------------------------


def test_numbas_own_cuda_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import cuda as numba_cuda

    monkeypatch.setattr(numba_cuda, "implementation", "Built-in")
    with pytest.raises(ImportError, match=r"need numba-cuda: python -m pip install -e '\.\[cuda13\]'"):
        build.ptx(passes.lamb_advance, np.dtype("float32"), (9, 0))


def test_without_nvjitlink_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.bindings

    monkeypatch.delattr(cuda.bindings, "nvjitlink", raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvjitlink", None)
    with pytest.raises(ImportError, match=r"need nvJitLink \(.*\): python -m pip install -e '\.\[cuda13\]'"):
        build.link("", (9, 0))


def test_what_nvjitlink_complains_of_is_told() -> None:
    text = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry kernel() { nonsense; }\n"
    with pytest.raises(RuntimeError, match=r"nvJitLink failed: (.|\n)*nonsense"):
        build.link(text, (9, 0))


def test_importing_the_package_loads_nothing_of_cuda() -> None:
    names = "numba.cuda", "numba_cuda", "cuda.bindings", "cuda.core", "cuda.pathfinder"
    found = run_python(f"import sys, numba_lamb; print([name for name in {names} if name in sys.modules])")
    assert found == "[]"
