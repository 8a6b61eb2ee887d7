"""Whether this thread flushes subnormal numbers to zero: the kernels compute as IEEE 754 says all the same."""

import platform
import sys

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from numba_lamb.kernels.cpu import intrinsics
from tests.helpers import installed, run_python

pytestmark = pytest.mark.slow

TWO_THREADS = {"NUMBA_NUM_THREADS": "2"}

STEPS = """
import ctypes, hashlib
import numpy as np, numba_lamb as nl

libm = ctypes.CDLL(None)
def mode():
    found = (ctypes.c_uint32 * 8)()
    libm.fegetenv(found)
    return found
def flush(on):
    found = mode()
    found[7] = found[7] & ~0x8040 | 0x8040 * on
    libm.fesetenv(found)

def values(shape, seed, dtype):
    rng, tiny = np.random.default_rng(seed), np.finfo(dtype).tiny
    made = rng.standard_normal(shape) * np.where(rng.random(shape) < 0.7, tiny, 1.0)
    return made.astype(dtype)

def digest(make, dtype, threads, on):
    shapes = {"big": (70_000,), "conv": (8, 3, 5), "small": (7,)}
    params = {name: values(shape, 1, dtype) for name, shape in shapes.items()}
    # A layer of subnormals alone, whose norms are made of nothing else.
    params["small"] *= np.finfo(dtype).eps
    gradients = {name: values(shape, 2, dtype) for name, shape in shapes.items()}
    opt = make(params, threads)
    flush(on)
    before = mode()[7] & 0xFFC0
    for _ in range(3):
        opt.step(gradients)
    after = mode()[7] & 0xFFC0
    flush(False)
    assert after == before, (hex(before), hex(after))
    arrays = [*opt.params.values(), *(part for p in opt._buckets for part in p.saved().values())]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

def centralized(params):
    conv = {"conv": params.pop("conv")}
    return [{"params": conv, "grad_centralization": True}, {"params": params}]

MAKERS = [
    lambda p, n: nl.Lamb(p, 0.01, weight_decay=0.1, max_grad_norm=0.5, num_threads=n),
    lambda p, n: nl.Lamb(centralized(p), 0.01, num_threads=n),
    lambda p, n: nl.Momentum(centralized(p), 0.01, 0.9, num_threads=n),
    lambda p, n: nl.Lars(nl.Momentum(p, 0.01, 0.9, num_threads=n)),
]
for make in MAKERS:
    for dtype in (np.float32, np.float64):
        print(len({digest(make, dtype, threads, on) for threads in (1, 2) for on in (False, True)}), end=" ")
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux",
    reason="where the mode lies is known for glibc on x86",
)
def test_flushing_subnormals_changes_no_bit_on_any_number_of_threads() -> None:
    assert run_python(STEPS, **TWO_THREADS) == "1 1 1 1 1 1 1 1"


TORCH = """
import torch
from numba_lamb.torch import Lamb, Lars, Momentum

def trained(make, threads, on):
    torch.manual_seed(0)
    tiny = torch.where(torch.rand(70_000) < 0.7, torch.finfo(torch.float32).tiny, 1.0)
    p = torch.nn.Parameter(torch.randn(70_000) * tiny)
    p.grad = torch.randn(70_000) * tiny
    torch.set_num_threads(threads)
    opt = make([p])
    opt.step()
    torch.set_flush_denormal(on)
    opt.step()
    opt.step()
    torch.set_flush_denormal(False)
    return [t.numpy().tobytes() for t in (p.detach(), *opt.state[p].values())]

if not torch.set_flush_denormal(False):
    print("this machine cannot")
for make in (
    lambda p: Lamb(p, lr=0.01, variant="apex", max_grad_norm=0.5),
    lambda p: Lamb(p, lr=0.01, weight_decay=0.1, decoupled_decay=True),
    lambda p: Lars(p, lr=0.01, momentum=0.9),
    lambda p: Momentum(p, lr=0.01, momentum=0.9),
):
    expected = trained(make, 1, False)
    print(*(trained(make, *given) == expected for given in ((1, True), (2, False), (2, True))))
"""


@pytest.mark.skipif(installed("torch") is None, reason="the peers extra is not installed")
def test_pytorchs_flush_denormal_changes_no_bit_on_any_number_of_threads() -> None:
    found = run_python(TORCH, **TWO_THREADS)
    if found.startswith("this machine cannot"):
        pytest.skip("this processor does not flush subnormals")
    assert found.splitlines() == ["True True True"] * 4


def test_the_mode_of_an_arm_is_read_and_written() -> None:
    """LLVM takes the code; it has run nowhere yet."""
    module = ir.Module()
    module.triple = "arm64-apple-darwin"
    mode = intrinsics._mode_of(module)
    assert mode is not None
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    intrinsics._write_mode(builder, mode, intrinsics._read_mode(builder, mode))
    builder.ret_void()
    text = str(llvm.parse_assembly(str(module)))
    assert '"mrs $0, fpcr", "=r,~{memory}"' in text
    assert '"msr fpcr, $0", "r,~{memory}"' in text


def test_an_unknown_machine_has_no_mode() -> None:
    module = ir.Module()
    module.triple = "riscv64-unknown-linux-gnu"
    assert intrinsics._mode_of(module) is None
