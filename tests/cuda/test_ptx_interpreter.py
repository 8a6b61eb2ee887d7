"""The PTX interpreter computes what a GPU would, and refuses what a GPU would not do."""

from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from numba import cuda, types
from numba.cuda.extending import intrinsic

from tests.cuda.ptx.compile import contracted, cubin_of, linked, ptx_of, resource_usage, sass_counts
from tests.cuda.ptx.interpreter import DeadlockError, Memory, PtxError, StepLimitError, launch
from tests.cuda.ptx.texts import module, run_body, same

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

CAPABILITIES = [(8, 0), (9, 0), (10, 0)]
F32, F64, I64, U32 = types.float32, types.float64, types.int64, types.uint32
POINTER32, POINTER64, COUNTERS = types.CPointer(F32), types.CPointer(F64), types.Array(U32, 1, "C")


# Access and control, in PTX written by hand.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "add.u64 %at, %at, 64; ld.global.f32 %f1, [%at];",
            r"64 bytes\n  in: ld.global.f32.*\n  by: block 0, thread 0",
        ),
        ("st.global.u32 [%at+4], %id;", r"4 bytes at offset 64 of buffer 0(.|\n)*thread 15"),
        ("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%at];", r"misaligned for 16 bytes(.|\n)*thread 1"),
        ("ld.global.u32 %r1, [8];", "outside every buffer"),
        ("st.shared.u32 [%id], %id;", "misaligned for 4 bytes"),
        ("st.shared.u32 [64], %id;", "64 bytes of shared memory"),
        ("ld.u32 %r1, [%at+-4];", "outside every buffer"),
        ("trap;", "trapped"),
    ],
)
def test_a_wrong_access_is_refused(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        run_body(body, np.zeros(16, np.float32), 16, shared=".shared .align 16 .b8 area[64];")


def test_buffers_may_be_misaligned_or_read_only() -> None:
    body = "add.u32 %r1, %id, 1; st.global.u32 [%at], %r1;"
    data, memory = np.zeros(8, np.uint32), Memory()
    launch(module(body), 1, 8, [memory.add(data, misaligned_by=4)], memory)
    assert data.tolist() == list(range(1, 9))
    with pytest.raises(PtxError, match="misaligned"):
        launch(module(body), 1, 8, [memory.add(np.zeros(8, np.uint32), misaligned_by=2)], memory)
    data.flags.writeable = False
    with pytest.raises(PtxError, match="read-only"):
        run_body(body, data, 8)


@pytest.mark.parametrize(
    "instruction",
    [
        "add.ftz.f32 %f1, %f1, %f2;", "add.rz.f32 %f1, %f1, %f2;", "add.sat.f32 %f1, %f1, %f2;",
        "div.approx.f32 %f1, %f1, %f2;", "sqrt.approx.f32 %f1, %f1;", "fma.f32 %f1, %f1, %f1, %f1;",
        "ld.global.mmio.u32 %r1, [%at];", "ld.shared::cluster.u32 %r1, [%r2];", "cvt.rn.sat.f32.f64 %f1, %d1;",
        "cvt.f32.f64 %f1, %d1;", "add.cc.u32 %r1, %r1, %r2;", "cp.async.wait_all;", "call other;",
        "setp.zz.f32 %p1, %f1, %f2;", "atom.global.add.f16 %h1, [%at], %h2;", "bar.sync 0, 32;",
        "mov.u32 %r1, %smid;", "frobnicate.u32 %r1, %r2;", "add.f32 %f1, %f2;", "mov.u32 %r1, missing;",
        "add.f64 %f1, %f1, %f1;", "shfl.down.b32 %r1, %r2, 1, 31;",
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_even_if_never_reached(instruction: str) -> None:
    with pytest.raises(PtxError):
        run_body(f"bra DONE; {instruction} DONE:", np.zeros(32, np.uint32))


def test_inline_scopes_may_reuse_names() -> None:
    data = np.zeros(4, np.uint32)
    first = "{ .reg .b32 t; add.u32 t, %id, 1; mov.u32 %r1, t; }"
    second = "{\n .reg .b64 t; mov.b64 t, {%r1, %r1}; shr.u64 t, t, 31; cvt.u32.u64 %r1, t; }"
    run_body(f"{first} {second} st.global.u32 [%at], %r1;", data, 4)
    assert data.tolist() == [2, 4, 6, 8]


def test_guards_and_tables_of_branches() -> None:
    data = np.zeros(6, np.uint32)
    body = """
        table: .branchtargets ZERO, ONE, TWO;
        rem.u32 %r1, %id, 3;
        brx.idx %r1, table;
        ZERO: mov.u32 %r2, 10; bra.uni END;
        ONE: mov.u32 %r2, 20; bra.uni END;
        TWO: mov.u32 %r2, 30;
        END: setp.lt.u32 %p1, %id, 3;
        @!%p1 add.u32 %r2, %r2, 1;
        @%p1 st.global.u32 [%at], %r2;
        @%p1 ret;
        st.global.u32 [%at], %r2;
    """
    run_body(body, data, 6)
    assert data.tolist() == [10, 20, 30, 11, 21, 31]


def test_shuffles_follow_their_clamp_and_mask() -> None:
    data = np.zeros(64, np.uint32)
    for mode, operand, clamp, expected in [
        ("down", 3, 31, [min(k + 3, k if k > 28 else 31) for k in range(32)]),
        ("up", 2, 0, [k - 2 if k >= 2 else k for k in range(32)]),
        ("bfly", 5, 31, [k ^ 5 for k in range(32)]),
        ("idx", 1, 0x181F, [k // 8 * 8 + 1 for k in range(32)]),
        ("down", 1, 0x181F, [k + 1 if k % 8 < 7 else k for k in range(32)]),
    ]:
        run_body(
            f"shfl.sync.{mode}.b32 %r1|%p1, %id, {operand}, {clamp}, -1; st.global.u32 [%at], %r1;", data, 64
        )
        assert data.tolist() == expected + [32 + k for k in expected]
    body = """
        and.b32 %r3, %id, 1; setp.eq.u32 %p1, %r3, 1; selp.b32 %r4, 0xAAAAAAAA, 0x55555555, %p1;
        shfl.sync.bfly.b32 %r1, %id, 2, 31, %r4;
        setp.gt.u32 %p2, %id, 15; vote.sync.ballot.b32 %r2, %p2, %r4; and.b32 %r2, %r2, 0xFF0000;
        vote.sync.all.pred %p3, %p2, %r4; @%p3 trap;
        add.u32 %r1, %r1, %r2; st.global.u32 [%at], %r1;
    """
    run_body(body, data, 32)
    assert data[:32].tolist() == [(k ^ 2) + (0xAA0000 if k % 2 else 0x550000) for k in range(32)]


def test_lanes_wait_for_each_other_within_a_warp() -> None:
    data = np.zeros(32, np.uint32)
    body = """
        .shared .align 4 .b8 area[4];
        setp.eq.u32 %p1, %id, 31; @!%p1 bra READ;
        mov.u32 %r1, 7; st.shared.u32 [area], %r1;
        READ: bar.warp.sync -1;
        ld.shared.u32 %r2, [area]; st.global.u32 [%at], %r2;
    """
    run_body(body, data)
    assert (data == 7).all()


def test_waiting_for_ever_is_found() -> None:
    body = """
        setp.eq.u32 %p1, %id, 40; @%p1 bra ALONE;
        bar.sync 0; bra DONE;
        ALONE: bar.warp.sync -1;
        DONE:
    """
    with pytest.raises(DeadlockError, match=r"63 at: bar.sync 0(.|\n)*1 at: bar.warp.sync -1"):
        run_body(body, np.zeros(64, np.uint32), 64)
    parted = "setp.lt.u32 %p1, %id, 5; @%p1 bra LOW; bar.sync 0; ret; LOW: bar.sync 0;"
    with pytest.raises(PtxError, match="waits at another barrier"):
        run_body(parted, np.zeros(32, np.uint32))
    with pytest.raises(PtxError, match="does not name the thread"):
        run_body("bar.warp.sync 1;", np.zeros(32, np.uint32))


def test_spinning_ends_if_the_other_block_is_resident() -> None:
    wait = """
        setp.ne.u32 %p1, %block, 0; @%p1 bra SET;
        SPIN: ld.volatile.global.u32 %r1, [%data]; setp.eq.u32 %p2, %r1, 0; @%p2 bra SPIN; ret;
        SET: st.global.u32 [%data], 1;
    """
    run_body(wait, np.zeros(1, np.uint32), 1, grid=2, resident=2)
    with pytest.raises(StepLimitError, match="200 steps"):
        run_body(wait, np.zeros(1, np.uint32), 1, grid=2, resident=1, max_steps=200)


def test_blocks_begin_with_nothing_of_the_earlier_ones() -> None:
    body = """
        .shared .align 4 .b8 area[128];
        mov.u64 %l1, area; cvta.shared.u64 %l1, %l1; mad.wide.u32 %l2, %block, 0, %l1;
        ld.u32 %r1, [%l2]; st.u32 [%l2], 5; st.global.u32 [%at], %r1;
    """
    data = np.zeros(7, np.uint32)
    run_body(body, data, 1, grid=7, resident=2)
    assert (data == 0xFFFFFFFF).all()


def test_atomics() -> None:
    data = np.uint32([0, 5, 0, 0, 9])
    body = """
        mov.b32 %r9, 0f3F800000; mov.b32 %r8, 0f00000001;
        red.global.add.u32 [%data], 2; atom.global.max.s32 %r1, [%data+4], -1;
        atom.acq_rel.gpu.global.inc.u32 %r2, [%data+8], 9;
        atom.global.add.f32 %f1, [%data+12], 0f00000001;
        atom.global.cas.b32 %r3, [%data+16], 9, %id;
    """
    run_body(body, data, 32)
    # Thirty-two increments that wrap at nine; a subnormal added in global memory is flushed.
    assert data[:4].tolist() == [64, 5, 2, 0]
    assert data[4] < 32


def test_an_order_of_atomics_is_chosen_by_the_seed() -> None:
    def owners(seed: int) -> int:
        data = np.zeros(1, np.uint32)
        run_body("add.u32 %r1, %id, 1; atom.global.cas.b32 %r2, [%data], 0, %r1;", data, 32, seed=seed)
        return int(data[0])

    assert owners(1) == owners(1)
    assert len({owners(seed) for seed in range(5)}) > 1


# Kernels compiled from Python.


@intrinsic
def load_four(typing_context: Any, pointer: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), 4)
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), vector.as_pointer())
        value = builder.load(builder.addrspacecast(place, vector.as_pointer(1)))
        value.align = 16
        parts = [builder.extract_element(value, ir.IntType(32)(k)) for k in range(4)]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(F32, 4)(pointer, types.int64), codegen


@intrinsic
def rounded_product(typing_context: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        single = ir.FloatType()
        assembly = ir.InlineAsm(ir.FunctionType(single, [single] * 2), "{ mul.rn.f32 $0, $1, $2; }", "=f,f,f")
        return builder.call(assembly, arguments)

    return F32(F32, F32), codegen


@cuda.jit(device=True)
def scaled(value: Any, factor: Any) -> Any:
    return rounded_product(value, factor) + factor


def scale(source: Any, target: Any, count: Any, factor: Any) -> None:
    start = I64(4) * cuda.grid(1)
    if start + 4 <= count:
        four = load_four(source, start)
        for k in range(4):
            target[start + k] = scaled(four[k], factor)
    else:
        for k in range(start, count):
            target[k] = scaled(source[k], factor)


SCALE = types.void(POINTER32, POINTER32, I64, F32)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_vectors_a_tail_and_a_device_function(capability: Any) -> None:
    source, target = np.linspace(-3, 3, 1003, dtype=np.float32), np.zeros(1003, np.float32)
    for ptx in (ptx_of(scale, SCALE, capability), linked(scale, SCALE, capability)[0]):
        assert "ld.global.v4" in ptx
        target[:], memory = 0, Memory()
        launch(ptx, 4, 64, [memory.add(source), memory.add(target), 1003, np.float32(0.1)], memory)
        assert same(target, source * np.float32(0.1) + np.float32(0.1))
    with pytest.raises(PtxError, match="4012 bytes"):
        launch(ptx, 4, 64, [memory.address_of(source), memory.address_of(target), 1004, 0.1], memory)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_machine_code_can_be_looked_at(capability: Any) -> None:
    ptx = ptx_of(scale, SCALE, capability, launch_bounds=(64, 2))
    for cubin in (cubin_of(ptx, capability), linked(scale, SCALE, capability)[1]):
        (usage,) = resource_usage(cubin).values()
        assert 8 <= usage.registers < 64
        assert usage[1:] == (0, 0, 0, 0)
        assert sass_counts(cubin)["LDG.E.128"] == 1
    with pytest.raises(PtxError, match="at most 64 threads"):
        launch(ptx, 1, 128, [0, 0, 0, 0.0], Memory())


def total(values: Any, partial: Any, counter: Any, result: Any) -> None:
    shared = cuda.shared.array(4, F64)
    last = cuda.shared.array(1, U32)
    thread = cuda.threadIdx.x
    value = F64(values[cuda.grid(1)])
    step = 16
    while step:
        value += cuda.shfl_down_sync(0xFFFFFFFF, value, step)
        step //= 2
    if thread % 32 == 0:
        shared[thread // 32] = value
    cuda.syncthreads()
    if thread == 0:
        partial[cuda.blockIdx.x] = (shared[0] + shared[1]) + (shared[2] + shared[3])
        cuda.threadfence()
        last[0] = cuda.atomic.inc(counter, 0, cuda.gridDim.x - 1)
    cuda.syncthreads()
    if last[0] == cuda.gridDim.x - 1 and thread == 0:
        found = 0.0
        for block in range(cuda.gridDim.x):
            found += partial[block]
        result[0] = found


def array_arguments(memory: Memory, array: np.ndarray) -> list[int]:
    """What a kernel takes for a one-dimensional array."""
    return [0, 0, array.size, array.itemsize, memory.add(array), array.size, array.itemsize]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("resident", [1, 3, 20])
def test_the_last_block_sums_in_a_fixed_order(capability: Any, resident: int) -> None:
    values = np.random.default_rng(4).standard_normal(20 * 128).astype(np.float32)
    sums = values.astype(np.float64).reshape(20, 4, 32)
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    blocks = (sums[:, 0] + sums[:, 1]) + (sums[:, 2] + sums[:, 3])
    expected = 0.0
    for block in blocks[:, 0]:
        expected += block
    ptx = ptx_of(total, types.void(POINTER32, POINTER64, COUNTERS, POINTER64), capability)
    partial, counter, result, memory = np.full(20, np.nan), np.zeros(1, np.uint32), np.zeros(1), Memory()
    given = [memory.add(values), memory.add(partial), *array_arguments(memory, counter), memory.add(result)]
    launch(ptx, 20, 128, given, memory, resident=resident, seed=resident)
    assert result[0] == expected
    assert counter[0] == 0


def collatz(numbers: Any, steps: Any, count: Any) -> None:
    k = cuda.grid(1)
    if k < count:
        number, length = numbers[k], 0
        while number != 1:
            number = number // 2 if number % 2 == 0 else 3 * number + 1
            length += 1
        steps[k] = length


def test_loops_of_different_lengths() -> None:
    def length(number: int) -> int:
        return 0 if number == 1 else 1 + length(number // 2 if number % 2 == 0 else 3 * number + 1)

    numbers, steps, memory = np.arange(1, 1001), np.zeros(1000, np.int64), Memory()
    whole = types.CPointer(I64)
    ptx = ptx_of(collatz, types.void(whole, whole, I64))
    launch(ptx, 8, 128, [memory.add(numbers), memory.add(steps), 1000], memory)
    assert steps.tolist() == [length(int(number)) for number in numbers]


def floor_division(a: Any, b: Any, quotient: Any, rest: Any) -> None:
    k = cuda.grid(1)
    quotient[k] = a[k] // b[k]
    rest[k] = a[k] % b[k]


@pytest.mark.parametrize("kind", [types.int32, I64, U32, types.uint64], ids=str)
def test_python_division_of_integers(kind: Any) -> None:
    dtype = np.dtype(str(kind))
    a, b = np.random.default_rng(5).integers(-1000 if dtype.kind == "i" else 0, 1000, (2, 256)).astype(dtype)
    b[b == 0] = 7
    quotient, rest, memory = np.zeros(256, dtype), np.zeros(256, dtype), Memory()
    ptx = ptx_of(floor_division, types.void(*[types.CPointer(kind)] * 4))
    launch(ptx, 2, 128, [memory.add(array) for array in (a, b, quotient, rest)], memory)
    assert quotient.tolist() == (a // b).tolist()
    assert rest.tolist() == (a % b).tolist()


def reversed_by_local(source: Any, target: Any, shift: Any) -> None:
    own = cuda.local.array(16, F32)
    for k in range(16):
        own[k] = source[16 * cuda.threadIdx.x + k]
    for k in range(16):
        target[16 * cuda.threadIdx.x + k] = own[(shift - k) % 16]


def test_local_memory() -> None:
    source, memory = np.arange(64, dtype=np.float32), Memory()
    target = np.zeros_like(source)
    ptx = ptx_of(reversed_by_local, types.void(POINTER32, POINTER32, I64))
    assert ".local" in ptx
    launch(ptx, 1, 4, [memory.add(source), memory.add(target), 15], memory)
    assert same(target, source.reshape(4, 16)[:, ::-1].reshape(-1))


# Products that may be fused.


def test_contracted_finds_what_may_be_fused() -> None:
    direct = "mul.f32 %f1, %f2, %f3; add.f32 %f4, %f1, %f2;"
    moves = "neg.f64 %d4, %d1; mov.f64 %d5, %d4; selp.f64 %d6, %d5, %d2, %p1;"
    moved = f"mul.f64 %d1, %d2, %d3; {moves} sub.f64 %d7, %d2, %d6;"
    packed = "mul.f32 %f1, %f2, %f3; mov.b64 %l1, {%f1, %f2}; mov.b64 {%f4, %f5}, %l1; add.f32 %f6, %f5, %f3;"
    later = "LOOP: add.f32 %f4, %f5, %f2; mul.f32 %f1, %f2, %f3; mov.f32 %f5, %f1; @%p1 bra LOOP;"
    for body in (direct, moved, packed, later):
        (found,) = contracted(module(body))
        assert found.startswith("mul.f")
        assert "-> add.f32" in found or "-> sub.f64" in found


def test_contracted_passes_what_cannot_be_fused() -> None:
    rounded = "mul.rn.f32 %f1, %f2, %f3; add.f32 %f4, %f1, %f2;"
    between = "mul.f32 %f1, %f2, %f3; div.rn.f32 %f4, %f1, %f2; add.f32 %f5, %f4, %f2;"
    integers = "mul.lo.u32 %r1, %r2, %r3; add.u32 %r4, %r1, %r2;"
    for body in (rounded, between, integers):
        assert contracted(module(body)) == []
    assert contracted(ptx_of(scale, SCALE)) == []
