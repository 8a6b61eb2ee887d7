"""Instructions that every lane can run by itself: PTX text made into functions of a group of lanes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.cuda.ptx import arithmetic as do
from tests.cuda.ptx.errors import PtxError
from tests.cuda.ptx.lanes import Group, Lanes, dtype_of, window_of
from tests.cuda.ptx.parser import Instruction, split_operands

Run = Callable[[Group], None]

INTEGERS = {"u16", "s16", "u32", "s32", "u64", "s64"}
SIGNED = {"s16", "s32", "s64"}
BITS = {"b16", "b32", "b64"}
LOGIC = BITS | {"pred"}
FLOATS = {"f32", "f64"}
# A pair of float32 in one register, as devices of capability 10.0 have.
PAIRS = FLOATS | {"f32x2"}
FIELDS = {"u32", "s32", "u64", "s64", "b32", "b64"}


class Form(NamedTuple):
    """What an instruction computes: for which types, and the types of its operands.

    In `sources` and `target`, ``k`` is the type that the instruction names and ``w`` is that of twice the width.
    """

    compute: Callable[..., Any]
    kinds: set[str]
    sources: str = "k k"
    target: str = "k"


FORMS = {
    "add": Form(np.add, INTEGERS | PAIRS),
    "add.rn": Form(np.add, PAIRS),
    "sub": Form(np.subtract, INTEGERS | PAIRS),
    "sub.rn": Form(np.subtract, PAIRS),
    "mul": Form(np.multiply, PAIRS),
    "mul.rn": Form(np.multiply, PAIRS),
    "mul.lo": Form(np.multiply, INTEGERS),
    "mul.hi": Form(do.high_product, INTEGERS),
    "mul.wide": Form(do.wide_product, {"u16", "s16", "u32", "s32"}, target="w"),
    "mad.lo": Form(lambda a, b, c: a * b + c, INTEGERS, "k k k"),
    "mad.hi": Form(lambda a, b, c: do.high_product(a, b) + c, INTEGERS, "k k k"),
    "mad.wide": Form(lambda a, b, c: do.wide_product(a, b) + c, {"u16", "s16", "u32", "s32"}, "k k w", "w"),
    "fma.rn": Form(do.fma, PAIRS, "k k k"),
    "div": Form(do.truncated_quotient, INTEGERS),
    "div.rn": Form(np.divide, FLOATS),
    "rem": Form(do.remainder, INTEGERS),
    "sqrt.rn": Form(np.sqrt, FLOATS, "k"),
    "rcp.rn": Form(lambda a: a.dtype.type(1) / a, FLOATS, "k"),
    "neg": Form(np.negative, SIGNED | FLOATS, "k"),
    "abs": Form(np.abs, SIGNED | FLOATS, "k"),
    "min": Form(do.minimum, INTEGERS | FLOATS),
    "max": Form(do.maximum, INTEGERS | FLOATS),
    "min.NaN": Form(do.minimum_or_nan, FLOATS),
    "max.NaN": Form(do.maximum_or_nan, FLOATS),
    "copysign": Form(lambda sign, size: np.copysign(size, sign), FLOATS),
    "and": Form(np.bitwise_and, LOGIC),
    "or": Form(np.bitwise_or, LOGIC),
    "xor": Form(np.bitwise_xor, LOGIC),
    "not": Form(np.invert, LOGIC, "k"),
    "shl": Form(do.shift_left, BITS, "k u32"),
    "shr": Form(do.shift_right, INTEGERS | BITS, "k u32"),
    "shf.l.wrap": Form(do.funnel_shift(left=True, wrap=True), {"b32"}, "k k u32"),
    "shf.l.clamp": Form(do.funnel_shift(left=True, wrap=False), {"b32"}, "k k u32"),
    "shf.r.wrap": Form(do.funnel_shift(left=False, wrap=True), {"b32"}, "k k u32"),
    "shf.r.clamp": Form(do.funnel_shift(left=False, wrap=False), {"b32"}, "k k u32"),
    "bfi": Form(do.insert_bits, FIELDS, "k k u32 u32"),
    "bfe": Form(do.extract_bits, FIELDS, "k u32 u32"),
    "prmt": Form(do.permute_bytes, {"b32"}, "k k k"),
    "lop3": Form(do.any_logic, {"b32"}, "k k k k"),
    "popc": Form(np.bitwise_count, {"b32", "b64"}, "k", "u32"),
    "clz": Form(do.leading_zeros, {"b32", "b64"}, "k", "u32"),
    "selp": Form(lambda a, b, chosen: np.where(chosen, a, b), INTEGERS | BITS | FLOATS, "k k pred"),
} | {f"testp.{name}": Form(test, FLOATS, "k", "pred") for name, test in do.CLASSES.items()}  # fmt: skip

NO_EFFECT_HERE = {"fence", "membar", "prefetch", "prefetchu", "nanosleep"}
FENCES = {"acq_rel", "sc", "acquire", "release", "cta", "gpu", "sys", "gl", "cluster"}
PREFETCHES = {"global", "L1", "L2", "L2::evict_last", "L2::evict_normal"}


def unknown(instruction: Instruction, what: str = "instruction") -> PtxError:
    return PtxError(f"unknown {what}: {instruction.text}")


def expect(instruction: Instruction, operands: int, modifiers: set[str] | None = None) -> None:
    """Raise unless the number of operands, and every modifier but the last, is as expected."""
    if len(instruction.operands) != operands:
        raise unknown(instruction, "number of operands")
    if modifiers is not None and not set(instruction.modifiers[:-1]) <= modifiers:
        raise unknown(instruction, "modifier")


def bind_form(lanes: Lanes, instruction: Instruction) -> Run:
    """Make a function of an instruction that is in `FORMS`."""
    *modifiers, kind = instruction.modifiers or ("",)
    form = FORMS.get(".".join([instruction.opcode, *modifiers]))
    if form is None or kind not in form.kinds:
        raise unknown(instruction)
    kinds = {"k": kind, "w": f"{kind[0]}{2 * int(kind[1:])}" if form.target == "w" else ""}
    sources = form.sources.split()
    if instruction.opcode in ("min", "max") and len(instruction.operands) == 4:
        sources = ["k", "k", "k"]
    expect(instruction, 1 + len(sources))
    target, *operands = instruction.operands
    reads = [lanes.read(o, kinds.get(s, s)) for o, s in zip(operands, sources, strict=True)]
    write = lanes.write(target, kinds.get(form.target, form.target))
    return combined(
        form.compute, reads, write, kind in ("f32", "f32x2") and instruction.opcode not in UNTOUCHED
    )


# Their NaNs keep their payload.
UNTOUCHED = {"selp", "copysign", "neg", "abs", "testp"}


def combined(compute: Callable[..., Any], reads: list[Any], write: Any, makes_nans: bool) -> Run:
    if makes_nans:
        return lambda group: write(group.index, do.canonical(compute(*[read(group.index) for read in reads])))
    if len(reads) == 2:
        first, second = reads
        return lambda group: write(group.index, compute(first(group.index), second(group.index)))
    return lambda group: write(group.index, compute(*[read(group.index) for read in reads]))


def bind_mov(lanes: Lanes, instruction: Instruction) -> Run:
    """Copy, or take apart or put together the parts of a wide register."""
    expect(instruction, 2, set())
    kind = instruction.modifiers[-1]
    target, source = instruction.operands
    if target.startswith("{"):
        return bind_unpack(lanes, target, source, kind)
    if source.startswith("{"):
        return bind_pack(lanes, target, source, kind)
    read, write = lanes.read(source, kind), lanes.write(target, kind)
    return lambda group: write(group.index, read(group.index))


def parts_of(operand: str, kind: str) -> tuple[list[str], int]:
    """Return the members of ``{a, b}`` and their width in bits."""
    members = split_operands(operand.strip("{} "))
    return members, int(kind[1:]) // len(members)


def bind_unpack(lanes: Lanes, target: str, source: str, kind: str) -> Run:
    members, width = parts_of(target, kind)
    read = lanes.read(source, f"u{kind[1:]}")
    writes = [lanes.write(member, f"u{width}") for member in members]
    part, whole = dtype_of(f"u{width}"), dtype_of(f"u{kind[1:]}")

    def run(group: Group) -> None:
        values = read(group.index)
        for k, write in enumerate(writes):
            write(group.index, (values >> whole(k * width)).astype(part))

    return run


def bind_pack(lanes: Lanes, target: str, source: str, kind: str) -> Run:
    members, width = parts_of(source, kind)
    reads = [lanes.read(member, f"u{width}") for member in members]
    write, whole = lanes.write(target, f"u{kind[1:]}"), dtype_of(f"u{kind[1:]}")

    def run(group: Group) -> None:
        values = whole(0)
        for k, read in enumerate(reads):
            values = values | read(group.index).astype(whole) << whole(k * width)
        write(group.index, values)

    return run


def bind_setp(lanes: Lanes, instruction: Instruction) -> Run:
    """Compare, and combine with another predicate if asked: ``setp.lt.and.f32 p|q, a, b, c``."""
    comparison, *logic, kind = instruction.modifiers
    expect(instruction, 4 if logic else 3)
    if kind in FLOATS and comparison.removesuffix("u") in {*do.COMPARISONS, "num", "nan"}:
        compare = do.float_comparison(comparison)
    elif kind in INTEGERS or (kind in BITS and comparison in ("eq", "ne")):
        if comparison not in do.COMPARISONS:
            raise unknown(instruction)
        compare = do.COMPARISONS[comparison]
    else:
        raise unknown(instruction)
    if len(logic) > 1 or not set(logic) <= {"and", "or", "xor"}:
        raise unknown(instruction)
    first, second = (lanes.read(operand, kind) for operand in instruction.operands[1:3])
    writes = [lanes.write(name.strip(), "pred") for name in instruction.operands[0].split("|")]
    other = lanes.read(instruction.operands[3], "pred") if logic else None
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[logic[0]] if logic else None

    def run(group: Group) -> None:
        found = compare(first(group.index), second(group.index))
        for write, value in zip(writes, (found, ~found) if len(writes) == 2 else (found,), strict=True):
            write(group.index, combine(value, other(group.index)) if combine and other else value)

    return run


def bind_cvt(lanes: Lanes, instruction: Instruction) -> Run:
    expect(instruction, 2)
    *rounding, target, source = instruction.modifiers
    convert = conversion(rounding, target, source)
    if convert is None:
        raise unknown(instruction)
    read = lanes.read(instruction.operands[1], "u16" if source == "bf16" else source)
    write = lanes.write(instruction.operands[0], "u16" if target == "bf16" else target)
    return lambda group: write(group.index, convert(read(group.index)))


def conversion(rounding: list[str], target: str, source: str) -> Callable[[Any], Any] | None:
    """Return the function of a ``cvt``; None if it is unknown."""
    if target == "bf16":
        return do.bfloat16_bits if (rounding, source) == (["rn"], "f32") else None
    if source == "bf16":
        return do.float_from_bfloat16 if (rounding, target) == ([], "f32") else None
    dtype = dtype_of(target)
    if source[0] != "f":
        exact = target[0] != "f"
        return (lambda a: a.astype(dtype)) if rounding == ([] if exact else ["rn"]) else None
    if target[0] != "f":
        whole = do.ROUNDED_TO_WHOLE.get(rounding[0]) if len(rounding) == 1 else None
        return (lambda a: do.integer_from_float(whole(a), target)) if whole else None
    return float_conversion(rounding, dtype, dtype_of(source))


def float_conversion(rounding: list[str], target: Any, source: Any) -> Callable[[Any], Any] | None:
    if target is source:
        whole = do.ROUNDED_TO_WHOLE.get(rounding[0]) if len(rounding) == 1 else None
        return (lambda a: do.canonical(whole(a))) if whole else None
    narrows = np.dtype(target).itemsize < np.dtype(source).itemsize
    return (lambda a: do.canonical(a.astype(target))) if rounding == (["rn"] if narrows else []) else None


def bind_cvta(lanes: Lanes, instruction: Instruction) -> Run:
    """Convert an address between generic and that of a memory space."""
    expect(instruction, 2, {"to", "global", "shared", "local", "shared::cta"})
    *modifiers, kind = instruction.modifiers
    if kind != "u64" or modifiers in ([], ["to"]):
        raise unknown(instruction)
    window = np.uint64(window_of(modifiers[-1].removesuffix("::cta")))
    read, write = lanes.read(instruction.operands[1], kind), lanes.write(instruction.operands[0], kind)
    return lambda group: write(group.index, read(group.index) ^ window)


def bind_createpolicy(lanes: Lanes, instruction: Instruction) -> Run:
    """Make a cache policy; it has no effect on what is computed."""
    known = {"fractional", "L2::evict_first", "L2::evict_last", "L2::evict_normal", "L2::evict_unchanged"}
    expect(instruction, len(instruction.operands), known)
    write = lanes.write(instruction.operands[0], "b64")
    return lambda group: write(group.index, np.uint64(0))


def bind_nothing(lanes: Lanes, instruction: Instruction) -> Run:
    """Fences, prefetches and waits change nothing in a memory that is sequentially consistent."""
    known = FENCES if instruction.opcode in ("fence", "membar") else PREFETCHES
    if instruction.opcode != "nanosleep" and not set(instruction.modifiers) <= known:
        raise unknown(instruction, "modifier")
    return lambda group: None


BINDERS: dict[str, Callable[[Lanes, Instruction], Run]] = {
    "mov": bind_mov,
    "setp": bind_setp,
    "cvt": bind_cvt,
    "cvta": bind_cvta,
    "createpolicy": bind_createpolicy,
} | dict.fromkeys(NO_EFFECT_HERE, bind_nothing)  # fmt: skip
