"""The only low-level code for CUDA: rounding, addresses as pointers, values of a thread's own, lane shuffles."""

from typing import Any

from llvmlite import ir
from numba.core.errors import TypingError
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

_GLOBAL = 1
"""The address space of device memory: with it loads compile to ``ld.global`` rather than generic ``ld``."""
_INT32 = ir.IntType(32)


@intrinsic  # type: ignore[untyped-decorator]
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return ``a*b + c`` rounded once; all three must have one floating-point type."""
    if not (isinstance(a, types.Float) and a == b == c):
        raise TypingError(f"fma takes three floats of one type, not {a}, {b}, {c}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return a(a, a, a), codegen


@intrinsic  # type: ignore[untyped-decorator]
def multiply(typingctx: Any, a: Any, b: Any) -> Any:
    """Return the float64 product, rounded: a plain one could be contracted into a sum that it feeds."""
    if not (a == types.float64 and b == types.float64):
        raise TypingError(f"multiply takes two float64, not {a}, {b}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        double = ir.DoubleType()
        kind = ir.FunctionType(double, [double, double])
        function = builder.module.declare_intrinsic("llvm.nvvm.mul.rn.d", (), kind)
        return builder.call(function, args)

    return types.float64(a, b), codegen


@intrinsic  # type: ignore[untyped-decorator]
def pointer_to(typingctx: Any, address: Any, like: Any) -> Any:
    """Return the integer `address` as a pointer to values of the type of `like`."""
    if not (isinstance(address, types.Integer) and isinstance(like, types.Number)):
        raise TypingError(f"pointer_to takes an integer address and a number, not {address}, {like}")
    result = types.CPointer(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = context.get_value_type(like)
        place = builder.inttoptr(args[0], element.as_pointer(_GLOBAL))
        return builder.addrspacecast(place, element.as_pointer())

    return result(address, like), codegen


@intrinsic  # type: ignore[untyped-decorator]
def zero_like(typingctx: Any, pointer: Any) -> Any:
    """Return 0 in the type that `pointer` points to; a literal would promote float32 to float64."""
    if not isinstance(pointer, types.CPointer):
        raise TypingError(f"zero_like takes a pointer, not {pointer}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(pointer.dtype, 0)

    return pointer.dtype(pointer), codegen


@intrinsic  # type: ignore[untyped-decorator]
def cast_like(typingctx: Any, pointer: Any, value: Any) -> Any:
    """Return a float64 `value` in the type that `pointer` points to, rounded to nearest."""
    if not (isinstance(pointer, types.CPointer) and value == types.float64):
        raise TypingError(f"cast_like takes a pointer and a float64, not {pointer}, {value}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[1], value, pointer.dtype)

    return pointer.dtype(pointer, value), codegen


@intrinsic  # type: ignore[untyped-decorator]
def own_values(typingctx: Any, pointer: Any, count: Any) -> Any:
    """Return a pointer to `count` (a literal) values of this thread's own, of the type that `pointer` points to.

    They are registers where each index is known once loops are unrolled, as all are here.
    """
    if not (isinstance(pointer, types.CPointer) and isinstance(count, types.IntegerLiteral)):
        raise TypingError(f"own_values takes a pointer and a literal, not {pointer}, {count}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return cgutils.alloca_once(builder, context.get_value_type(pointer.dtype), count.literal_value)

    return types.CPointer(pointer.dtype)(pointer, count), codegen


@intrinsic  # type: ignore[untyped-decorator]
def shuffle_down(typingctx: Any, value: Any, distance: Any) -> Any:
    """Return the float64 `value` of the thread `distance` further on in the warp, which must all be here."""
    if value != types.float64 or not isinstance(distance, types.Integer):
        raise TypingError(f"shuffle_down takes a float64 and an integer, not {value}, {distance}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_INT32, [_INT32] * 4)
        shuffle = builder.module.declare_intrinsic("llvm.nvvm.shfl.sync.down.i32", (), kind)
        pair = ir.VectorType(_INT32, 2)
        halves = builder.bitcast(args[0], pair)
        step = context.cast(builder, args[1], distance, types.int32)
        moved = ir.Constant(pair, ir.Undefined)
        for k in range(2):
            half = builder.extract_element(halves, _INT32(k))
            # All 32 threads take part (-1); a thread past the end gets its own value back (31).
            half = builder.call(shuffle, [_INT32(-1), half, step, _INT32(31)])
            moved = builder.insert_element(moved, half, _INT32(k))
        return builder.bitcast(moved, ir.DoubleType())

    return types.float64(value, distance), codegen
