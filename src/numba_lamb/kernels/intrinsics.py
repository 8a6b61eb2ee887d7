"""The only low-level code: fused multiply-add, addresses as pointers, stack memory, prefetch; for the CPU."""

from typing import Any

from llvmlite import ir
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
def stack_values(typingctx: Any, count: Any, like: Any) -> Any:
    """Return a pointer to `count` (a literal) uninitialised values of the type of `like` on this call's stack."""
    if not (isinstance(count, types.IntegerLiteral) and isinstance(like, types.Float)):
        raise TypingError(f"stack_values takes a literal count and a float, not {count}, {like}")
    result = types.CPointer(like)
    length = count.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = context.get_value_type(like)
        block = cgutils.alloca_once(builder, ir.ArrayType(element, length))
        block.align = 64
        return builder.bitcast(block, element.as_pointer())

    return result(count, like), codegen


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
