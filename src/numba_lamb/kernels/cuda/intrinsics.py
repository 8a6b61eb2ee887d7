"""The only low-level code for CUDA: rounding, bit patterns, pointers, values of a thread's own, lane shuffles."""

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
    """Return the product, rounded: a plain one could be contracted into a sum that it feeds."""
    if not (isinstance(a, types.Float) and a == b):
        raise TypingError(f"multiply takes two floats of one type, not {a}, {b}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[0].type
        kind = ir.FunctionType(value, [value, value])
        name = f"llvm.nvvm.mul.rn.{'f' if a == types.float32 else 'd'}"
        return builder.call(builder.module.declare_intrinsic(name, (), kind), args)

    return a(a, b), codegen


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
def bits_of(typingctx: Any, x: Any) -> Any:
    """Return the bit pattern of a float32 number."""
    if x != types.float32:
        raise TypingError(f"bits_of takes a float32, not {x}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _INT32)

    return types.uint32(x), codegen


@intrinsic  # type: ignore[untyped-decorator]
def low(typingctx: Any, word: Any) -> Any:
    """Return the low 32 bits of an integer; one of fewer is taken for unsigned."""
    if not isinstance(word, types.Integer):
        raise TypingError(f"low takes an integer, not {word}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _low(builder, args[0])

    return types.uint32(word), codegen


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typingctx: Any, bits: Any) -> Any:
    """Return the float32 number whose bit pattern is the low 32 bits of an integer."""
    if not isinstance(bits, types.Integer):
        raise TypingError(f"float_of takes an integer, not {bits}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(_low(builder, args[0]), ir.FloatType())

    return types.float32(bits), codegen


def _low(builder: Any, word: Any) -> Any:
    if word.type.width == 32:
        return word
    return builder.trunc(word, _INT32) if word.type.width > 32 else builder.zext(word, _INT32)


@intrinsic  # type: ignore[untyped-decorator]
def holding(typingctx: Any, pointer: Any, word: Any) -> Any:
    """Return the value, of the type that `pointer` points to, whose low 32 bits are `word`."""
    if not (isinstance(pointer, types.CPointer) and word == types.uint32):
        raise TypingError(f"holding takes a pointer and a uint32, not {pointer}, {word}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = context.get_value_type(pointer.dtype)
        whole = args[1] if pointer.dtype == types.float32 else builder.zext(args[1], ir.IntType(64))
        return builder.bitcast(whole, element)

    return pointer.dtype(pointer, word), codegen


@intrinsic  # type: ignore[untyped-decorator]
def held_in(typingctx: Any, value: Any) -> Any:
    """Return the low 32 bits of a floating-point value, as `holding` put them there."""
    if not isinstance(value, types.Float):
        raise TypingError(f"held_in takes a float, not {value}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _low(builder, builder.bitcast(args[0], ir.IntType(value.bitwidth)))

    return types.uint32(value), codegen


@intrinsic  # type: ignore[untyped-decorator]
def is_single(typingctx: Any, pointer: Any) -> Any:
    """Return whether `pointer` points to float32, which is known when a kernel is compiled."""
    if not isinstance(pointer, types.CPointer):
        raise TypingError(f"is_single takes a pointer, not {pointer}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.boolean, pointer.dtype == types.float32)

    return types.boolean(pointer), codegen


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
    """Return the `value`, float64 or uint32, of the thread `distance` on in the warp, which must all be here."""
    if value not in (types.float64, types.uint32) or not isinstance(distance, types.Integer):
        raise TypingError(f"shuffle_down takes a float64 or uint32 and an integer, not {value}, {distance}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_INT32, [_INT32] * 4)
        shuffle = builder.module.declare_intrinsic("llvm.nvvm.shfl.sync.down.i32", (), kind)
        step = context.cast(builder, args[1], distance, types.int32)

        def moved(word: Any) -> Any:
            # All 32 threads take part (-1); a thread past the end gets its own value back (31).
            return builder.call(shuffle, [_INT32(-1), word, step, _INT32(31)])

        if value == types.uint32:
            return moved(args[0])
        pair = ir.VectorType(_INT32, 2)
        halves = builder.bitcast(args[0], pair)
        found = ir.Constant(pair, ir.Undefined)
        for k in range(2):
            half = moved(builder.extract_element(halves, _INT32(k)))
            found = builder.insert_element(found, half, _INT32(k))
        return builder.bitcast(found, ir.DoubleType())

    return value(value, distance), codegen
