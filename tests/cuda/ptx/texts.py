"""Small PTX modules written by hand, and short ways to run them."""

from typing import Any

import numpy as np

from tests.cuda.ptx.interpreter import Memory, launch


def module(body: str, parameters: str = ".param .u64 data", shared: str = "", name: str = "kernel") -> str:
    """A PTX module of one kernel; the thread's number is in %id, the address of its word of `data` in %at."""
    return f"""
.version 8.0
.target sm_90
.address_size 64
{shared}
.visible .entry {name}({parameters}) {{
    .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<20>; .reg .f32 %f<9>; .reg .f64 %d<9>; .reg .b64 %l<20>;
    .reg .b32 %id, %size, %block; .reg .b64 %data, %at;
    mov.u32 %id, %tid.x; mov.u32 %size, %ntid.x; mov.u32 %block, %ctaid.x;
    mad.lo.u32 %id, %block, %size, %id;
    ld.param.u64 %data, [data];
    cvta.to.global.u64 %data, %data;
    mad.wide.u32 %at, %id, 4, %data;
    {body}
    ret;
}}
"""


def run_body(
    body: str, data: np.ndarray, threads: int = 32, grid: int = 1, shared: str = "", **options: Any
) -> Any:
    memory = Memory()
    return launch(module(body, shared=shared), grid, threads, [memory.add(data)], memory, **options)


def evaluate(instruction: str, result: Any, *operands: Any) -> np.ndarray:
    """Run ``op $d, $a, $b, $c`` for arrays of operands, and return the results as the type `result`."""
    arrays = np.broadcast_arrays(*operands)
    memory, count = Memory(), arrays[0].size
    out = np.zeros(count, result)
    loads, declared = [], [".reg .pred P;", f".reg .b{8 * out.itemsize} D;"]
    for name, array in zip("ABC", arrays, strict=False):
        bits = 8 * array.itemsize
        loads.append(f"mad.wide.u32 %l1, %id, {array.itemsize}, {memory.add(array.copy())};")
        loads.append(f"ld.global.b{bits} {name}, [%l1];")
        declared.append(f".reg .b{bits} {name};")
    store = f"mad.wide.u32 %l1, %id, {out.itemsize}, %data; st.global.b{8 * out.itemsize} [%l1], D;"
    body = " ".join([*declared, *loads, instruction, store])
    launch(module(body), 1, count, [memory.add(out)], memory)
    return out


def same(found: Any, expected: Any) -> bool:
    """Equal bit for bit, but for the payload of NaNs."""
    found, expected = np.asarray(found), np.asarray(expected)
    nan = np.isnan(expected)
    return bool(
        found.dtype == expected.dtype
        and (np.isnan(found) == nan).all()
        and found[~nan].tobytes() == expected[~nan].tobytes()
    )
