"""Instructions that access memory: loads, stores, atomics."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.ptx.errors import PtxError
from tests.cuda.ptx.instructions import Run, unknown
from tests.cuda.ptx.lanes import Group, Lanes, dtype_of
from tests.cuda.ptx.parser import Instruction, split_operands

ORDERS = {"volatile", "relaxed", "acquire", "release", "acq_rel", "weak", "cta", "cluster", "gpu", "sys"}
CACHES = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc"}
HINTS = {
    "L1::evict_first", "L1::evict_last", "L1::evict_normal", "L1::evict_unchanged", "L1::no_allocate",
    "L2::evict_first", "L2::evict_last", "L2::evict_normal", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B",
}  # fmt: skip
VECTORS = {"v2": 2, "v4": 4, "v8": 8}
SPACES = {"global": "global", "shared": "shared", "shared::cta": "shared", "local": "local"}
KNOWN = ORDERS | CACHES | HINTS | set(VECTORS) | set(SPACES)


def space_of(instruction: Instruction) -> str:
    return next((SPACES[modifier] for modifier in instruction.modifiers if modifier in SPACES), "generic")


def members_of(instruction: Instruction, operand: str) -> list[str]:
    """Return the registers of a vector access, as many as its modifiers say."""
    count = next((VECTORS[modifier] for modifier in instruction.modifiers if modifier in VECTORS), 1)
    members = split_operands(operand.strip("{} "))
    if len(members) != count:
        raise unknown(instruction, "vector")
    return members


def check(instruction: Instruction, operands: int, known: set[str]) -> None:
    """Raise unless all is known; a cache policy is one operand more."""
    operands += "L2::cache_hint" in instruction.modifiers
    if len(instruction.operands) != operands or not set(instruction.modifiers[:-1]) <= known:
        raise unknown(instruction, "modifier")


def bind_load(lanes: Lanes, instruction: Instruction) -> Run:
    if "param" in instruction.modifiers:
        return bind_load_parameter(lanes, instruction)
    check(instruction, 2, KNOWN)
    kind, space = instruction.modifiers[-1], space_of(instruction)
    writes = [lanes.write(member, kind) for member in members_of(instruction, instruction.operands[0])]
    address, dtype = lanes.address(instruction.operands[1]), dtype_of(kind)
    size = np.dtype(dtype).itemsize * len(writes)

    def run(group: Group) -> None:
        columns = [np.empty(group.lanes.size, dtype) for _ in writes]
        for positions, view, cells in lanes.access(space, group, address(group), size, dtype, False):
            for k, column in enumerate(columns):
                column[positions] = view[cells + k] if k else view[cells]
        for write, column in zip(writes, columns, strict=True):
            write(group.index, column)

    return run


def bind_load_parameter(lanes: Lanes, instruction: Instruction) -> Run:
    check(instruction, 2, {"param"} | set(VECTORS))
    kind = instruction.modifiers[-1]
    writes = [lanes.write(member, kind) for member in members_of(instruction, instruction.operands[0])]
    name, _, offset = instruction.operands[1].strip("[] ").partition("+")
    if name not in lanes.parameters:
        raise PtxError(f"unknown parameter: {instruction.text}")
    values = np.frombuffer(lanes.parameters[name], dtype_of(kind), len(writes), int(offset or "0", 0))

    def run(group: Group) -> None:
        for write, value in zip(writes, values, strict=True):
            write(group.index, value)

    return run


def bind_store(lanes: Lanes, instruction: Instruction) -> Run:
    check(instruction, 2, KNOWN)
    kind, space = instruction.modifiers[-1], space_of(instruction)
    reads = [lanes.read(member, kind) for member in members_of(instruction, instruction.operands[1])]
    address, dtype = lanes.address(instruction.operands[0]), dtype_of(kind)
    size = np.dtype(dtype).itemsize * len(reads)

    def run(group: Group) -> None:
        columns = [read(group.index) for read in reads]
        for positions, view, cells in lanes.access(space, group, address(group), size, dtype, True):
            for k, column in enumerate(columns):
                view[cells + k] = column[positions] if np.ndim(column) else column

    return run


Update = Callable[[Any, Any, Any], Any]

# Of the old value and one or two operands.
UPDATES: dict[str, Update] = {
    "add": lambda old, x, y: old + x,
    "inc": lambda old, x, y: type(old)(0) if old >= x else old + type(old)(1),
    "dec": lambda old, x, y: x if old == 0 or old > x else old - type(old)(1),
    "min": lambda old, x, y: min(old, x),
    "max": lambda old, x, y: max(old, x),
    "and": lambda old, x, y: old & x,
    "or": lambda old, x, y: old | x,
    "xor": lambda old, x, y: old ^ x,
    "exch": lambda old, x, y: x,
    "cas": lambda old, x, y: y if old == x else old,
}
UPDATED = {
    "add": {"u32", "s32", "u64", "f32", "f64"},
    "inc": {"u32"},
    "dec": {"u32"},
    "min": {"u32", "s32", "u64", "s64"},
    "max": {"u32", "s32", "u64", "s64"},
    "exch": {"b32", "b64"},
    "cas": {"b16", "b32", "b64"},
} | {name: {"b32", "b64"} for name in ("and", "or", "xor")}  # fmt: skip


def flush(value: Any) -> Any:
    """Replace a subnormal number by a zero of its sign."""
    return np.copysign(value.dtype.type(0), value) if abs(value) < np.finfo(value.dtype).tiny else value


def flushing_sum(old: Any, x: Any, y: Any) -> Any:
    """Add as ``atom.add.f32`` does in global memory, the one operation that flushes without being told to."""
    return flush(flush(old) + flush(x))


def bind_atomic(lanes: Lanes, instruction: Instruction, random: np.random.Generator) -> Run:
    """Update memory lane by lane in a random order; ``atom`` returns the old value, ``red`` does not."""
    kind, space = instruction.modifiers[-1], space_of(instruction)
    name = next((modifier for modifier in instruction.modifiers if modifier in UPDATES), "")
    returns = instruction.opcode == "atom"
    check(instruction, returns + 2 + (name == "cas"), ORDERS | set(SPACES) | {name})
    if kind not in UPDATED.get(name, ()) or space == "local":
        raise unknown(instruction)
    operands = instruction.operands[returns:]
    address, dtype = lanes.address(operands[0]), dtype_of(kind)
    reads = [lanes.read(operand, kind) for operand in operands[1:]]
    write = lanes.write(instruction.operands[0], kind) if returns else lanes.write("_", kind)
    update = flushing_sum if (name, kind, space) == ("add", "f32", "global") else UPDATES[name]

    def run(group: Group) -> None:
        count = group.lanes.size
        first, last = (np.broadcast_to(read(group.index), count) for read in (reads[0], reads[-1]))
        olds = np.empty(count, dtype)
        size = np.dtype(dtype).itemsize
        for positions, view, cells in lanes.access(
            space, group, address(group), size, dtype, True, atomic=True
        ):
            numbers = np.arange(count)[positions]
            for k in random.permutation(numbers.size):
                number, cell = numbers[k], cells[k]
                olds[number] = view[cell]
                view[cell] = update(olds[number], first[number], last[number])
        write(group.index, olds)

    return run
