"""The only low-level code, for the CPU: fused multiply-add, bit patterns, pointers, stack memory, prefetch."""

from typing import Any, NamedTuple

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return ``a*b + c`` rounded once; all three must have one floating-point type."""
    if not (isinstance(a, types.Float) and a == b == c):
        raise TypingError(f"fma takes three floats of one type, not {a}, {b}, {c}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return a(a, a, a), codegen


@intrinsic  # type: ignore[untyped-decorator]
def pointer_to(typingctx: Any, address: Any, like: Any) -> Any:
    """Return the integer `address` as a pointer to values of the type of `like`."""
    if not (isinstance(address, types.Integer) and isinstance(like, types.Number)):
        raise TypingError(f"pointer_to takes an integer address and a number, not {address}, {like}")
    result = types.CPointer(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(result))

    return result(address, like), codegen


@intrinsic  # type: ignore[untyped-decorator]
def from_element(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Return a pointer to ``pointer[index]``, of which LLVM knows what a sum of addresses hides."""
    if not (isinstance(pointer, types.CPointer) and isinstance(index, types.Integer)):
        raise TypingError(f"from_element takes a pointer and an integer, not {pointer}, {index}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]], inbounds=True)

    return pointer(pointer, index), codegen


@intrinsic  # type: ignore[untyped-decorator]
def address_of(typingctx: Any, pointer: Any) -> Any:
    """Return where a pointer points to, as an integer."""
    if not isinstance(pointer, types.CPointer):
        raise TypingError(f"address_of takes a pointer, not {pointer}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), codegen


@intrinsic  # type: ignore[untyped-decorator]
def stack_values(typingctx: Any, count: Any, like: Any) -> Any:
    """Return a pointer to `count` (a literal) uninitialised values of the type of `like` on this call's stack."""
    if not (isinstance(count, types.IntegerLiteral) and isinstance(like, types.Number)):
        raise TypingError(f"stack_values takes a literal count and a number, not {count}, {like}")
    result = types.CPointer(like)
    length = count.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = context.get_value_type(like)
        block = cgutils.alloca_once(builder, ir.ArrayType(element, length))
        block.align = 64
        return builder.bitcast(block, element.as_pointer())

    return result(count, like), codegen


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(typingctx: Any, x: Any) -> Any:
    """Return the bit pattern of a float32 number."""
    if x != types.float32:
        raise TypingError(f"bits_of takes a float32, not {x}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(x), codegen


@intrinsic  # type: ignore[untyped-decorator]
def low(typingctx: Any, word: Any) -> Any:
    """Return the low 32 bits of an integer."""
    if not isinstance(word, types.Integer):
        raise TypingError(f"low takes an integer, not {word}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.IntType(32)
        if word.bitwidth == 32:
            return args[0]
        return builder.trunc(args[0], kind) if word.bitwidth > 32 else builder.zext(args[0], kind)

    return types.uint32(word), codegen


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typingctx: Any, bits: Any) -> Any:
    """Return the float32 number whose bit pattern is the low 32 bits of an integer."""
    if not isinstance(bits, types.Integer):
        raise TypingError(f"float_of takes an integer, not {bits}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        pattern = args[0] if bits.bitwidth == 32 else builder.trunc(args[0], word)
        return builder.bitcast(pattern, ir.FloatType())

    return types.float32(bits), codegen


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Ask for the cache line of ``pointer[index]`` to be brought near; any index is allowed."""
    if not (isinstance(pointer, types.CPointer) and isinstance(index, types.Integer)):
        raise TypingError(f"prefetch takes a pointer and an integer, not {pointer}, {index}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, int32, int32, int32])
        function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
        line = builder.bitcast(builder.gep(args[0], [args[1]]), byte)
        # For reading (0), to be kept in all caches (3), data rather than code (1).
        builder.call(function, [line, int32(0), int32(3), int32(1)])
        return context.get_dummy_value()

    return types.void(pointer, index), codegen


# Numba does not ask for it, and without it LLVM ends a process whose code has inline assembly.
binding.initialize_native_asmparser()


class _Mode(NamedTuple):
    """A register of floating-point modes: how to read and write it, and what it holds under IEEE 754."""

    bits: int
    matter: int
    ieee: int
    read: str
    write: str
    by_address: bool


_MODES = {
    # MXCSR; its bits 0 to 5 tell of past exceptions.
    "x86_64": _Mode(32, 0xFFC0, 0x1F80, "stmxcsr ($0)", "ldmxcsr ($0)", True),
    "aarch64": _Mode(64, 0xFFFF_FFFF, 0, "mrs $0, fpcr", "msr fpcr, $0", False),
}


def _mode_of(module: Any) -> _Mode | None:
    machine = str(module.triple).partition("-")[0]
    return _MODES.get("aarch64" if machine == "arm64" else machine)


def _read_mode(builder: Any, mode: _Mode) -> Any:
    word = ir.IntType(mode.bits)
    if not mode.by_address:
        return builder.asm(ir.FunctionType(word, []), mode.read, "=r,~{memory}", [], side_effect=True)
    slot = cgutils.alloca_once(builder, word)
    kind = ir.FunctionType(ir.VoidType(), [slot.type])
    builder.asm(kind, mode.read, "r,~{memory}", [slot], side_effect=True)
    return builder.load(slot)


def _write_mode(builder: Any, mode: _Mode, value: Any) -> None:
    if mode.by_address:
        value = cgutils.alloca_once_value(builder, value)
    kind = ir.FunctionType(ir.VoidType(), [value.type])
    # With "memory" no load or store crosses it, and so nothing that is computed from one to the other.
    builder.asm(kind, mode.write, "r,~{memory}", [value], side_effect=True)


def _differs(builder: Any, mode: _Mode, value: Any) -> Any:
    return builder.icmp_unsigned("!=", builder.and_(value, value.type(mode.matter)), value.type(mode.ieee))


@intrinsic  # type: ignore[untyped-decorator]
def enter_ieee(typingctx: Any) -> Any:
    """Compute by IEEE 754 from here on, subnormal numbers kept; return the thread's mode for `leave_ieee`.

    Arithmetic between the two follows it if it is done on loaded values and its results are stored.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mode = _mode_of(builder.module)
        if mode is None:
            return ir.IntType(64)(0)
        found = _read_mode(builder, mode)
        with builder.if_then(_differs(builder, mode, found), likely=False):
            _write_mode(builder, mode, found.type(mode.ieee))
        return found if mode.bits == 64 else builder.zext(found, ir.IntType(64))

    return types.uint64(), codegen


@intrinsic  # type: ignore[untyped-decorator]
def leave_ieee(typingctx: Any, before: Any) -> Any:
    """Put back the mode that `enter_ieee` returned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mode = _mode_of(builder.module)
        if mode is not None:
            found = args[0] if mode.bits == 64 else builder.trunc(args[0], ir.IntType(mode.bits))
            with builder.if_then(_differs(builder, mode, found), likely=False):
                _write_mode(builder, mode, found)
        return context.get_dummy_value()

    return types.void(types.uint64), codegen
