"""Shared memory that threads use at once is found, and so are barriers that not all come to."""

from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.kernels.cuda import build
from tests.cuda.double import Gpu, machine_code
from tests.cuda.ptx.interpreter import PtxError
from tests.cuda.ptx.texts import run_body

AREA = ".shared .align 8 .b8 area[1024];"
OWN = "shl.b32 %r1, %id, 2; mov.u32 %r2, area; add.u32 %r1, %r1, %r2; "
NEXT = "add.u32 %r3, %id, 1; rem.u32 %r3, %r3, %size; shl.b32 %r3, %r3, 2; add.u32 %r3, %r3, %r2; "
WRITE, READ = "st.shared.u32 [%r1], %id; ", "ld.shared.u32 %r4, [%r3]; "
BARRIER, WARP_BARRIER = "bar.sync 0; ", "bar.warp.sync -1; "
RACE = r"a race: (written|read) by thread \d+, and no barrier came since(.|\n)*by: block \d+, thread \d+"


def run(body: str, threads: int = 64, **options: Any) -> np.ndarray:
    data = np.zeros(threads * options.get("grid", 1), np.uint32)
    run_body(body + "st.global.u32 [%at], %r4;", data, threads, shared=AREA, **options)
    return data


@pytest.mark.parametrize("threads", [32, 64])
def test_what_another_thread_wrote_is_read_after_a_barrier_alone(threads: int) -> None:
    expected = [*range(1, threads), 0]
    assert run(OWN + NEXT + WRITE + BARRIER + READ, threads).tolist() == expected
    assert (
        run(OWN + NEXT + WRITE + BARRIER + READ, threads, grid=3, resident=2).tolist()[:threads] == expected
    )
    with pytest.raises(PtxError, match=RACE):
        run(OWN + NEXT + WRITE + READ, threads)


def test_what_another_thread_reads_is_written_after_a_barrier_alone() -> None:
    run(OWN + NEXT + READ + BARRIER + WRITE)
    with pytest.raises(PtxError, match=RACE):
        run(OWN + NEXT + READ + WRITE)
    with pytest.raises(PtxError, match=RACE):
        run(OWN + NEXT + WRITE + BARRIER + READ + WRITE)


def test_a_warp_that_meets_is_in_order_but_not_with_other_warps() -> None:
    body = OWN + NEXT + WRITE + WARP_BARRIER + READ + WARP_BARRIER + WRITE
    run(body, 32)
    with pytest.raises(PtxError, match=RACE):
        run(body, 64)
    with pytest.raises(PtxError, match=RACE):
        run(OWN + NEXT + WRITE + WARP_BARRIER + READ + WRITE, 32)


def test_threads_that_write_one_place_together_race_unless_atomically() -> None:
    with pytest.raises(PtxError, match=RACE):
        run("mov.u32 %r1, area; " + WRITE)
    atomic = "mov.u32 %r1, area; atom.shared.add.u32 %r4, [%r1], 1; "
    zero = "setp.eq.u32 %p1, %id, 0; mov.u32 %r1, area; @%p1 st.shared.u32 [%r1], 0; "
    assert sorted(run(zero + BARRIER + atomic).tolist()) == list(range(64))
    with pytest.raises(PtxError, match=RACE):
        run(zero + atomic)
    with pytest.raises(PtxError, match=RACE):
        run(zero + BARRIER + atomic + "ld.shared.u32 %r4, [%r1]; ")


def test_cells_are_as_small_as_the_smallest_access() -> None:
    body = "mov.u32 %r1, area; add.u32 %r1, %r1, %id; cvt.u16.u32 %h1, %id; st.shared.u8 [%r1], %h1; "
    words = "mov.u32 %r2, area; and.b32 %r3, %id, 60; add.u32 %r3, %r3, %r2; "
    found = run(body + BARRIER + words + READ)
    assert found.view(np.uint8).reshape(64, 4)[:, 0].tolist() == [k - k % 4 for k in range(64)]
    with pytest.raises(PtxError, match=RACE):
        run(body + words + READ)


def test_a_barrier_that_a_thread_never_comes_to_is_found() -> None:
    body = "setp.lt.u32 %p1, %id, 40; @%p1 ret; " + BARRIER
    with pytest.raises(PtxError, match=r"ended before the barrier(.|\n)*bar.sync"):
        run(body)


@pytest.mark.parametrize("name", ["lamb_advance", "lamb_ratio"])
def test_the_kernels_need_their_barriers(gpu: Gpu, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_barriers(kernel: Any, dtype: np.dtype[Any], capability: tuple[int, int]) -> bytes:
        text = machine_code(kernel, dtype, capability)
        if kernel.__name__ != name:
            return text
        assert b"bar.sync \t0;" in text
        return text.replace(b"bar.sync \t0;", b"")

    monkeypatch.setattr(build, "machine_code", without_barriers)
    optimizer = nl.Lamb(gpu.arrays({"w": np.ones(300)}), 0.1)
    optimizer.step(gpu.arrays({"w": np.ones(300)}))
    with pytest.raises(PtxError, match=RACE):
        gpu.driver.progress()
