"""The only low-level code for CUDA: rounding, addresses as pointers, 16-byte access, lane shuffles."""

from typing import Any

from llvmlite import ir
from numba.core.errors import TypingError
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

_GLOBAL = 1
"""The address space of device memory: with it loads compile to ``ld.global`` rather than generic ``ld``."""
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)


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


def _quad(builder: Any, pointer: Any, index: Any, element: Any) -> Any:
    vector = ir.VectorType(element, 4).as_pointer()
    place = builder.bitcast(builder.gep(pointer, [index]), vector)
    return builder.addrspacecast(place, vector.pointee.as_pointer(_GLOBAL))


def _check_quad(name: str, pointer: Any, index: Any) -> None:
    if not (isinstance(pointer, types.CPointer) and isinstance(index, types.Integer)):
        raise TypingError(f"{name} takes a pointer and an integer, not {pointer}, {index}")


@intrinsic  # type: ignore[untyped-decorator]
def load_rows(
    typingctx: Any, pointers: Any, count: Any, first: Any, stride: Any, last: Any, whole: Any
) -> Any:
    """Return quads of several arrays: for each of `count` (a literal) rows, and in it for each pointer, one.

    A quad is the four values from `first` on, `stride` further in each next row. Where the rows are `whole`
    they are read 16 bytes at a time and must be aligned so; elsewhere value by value, with zeros from `last`
    on, of which there is at least one before. All loads are under way before the first value is used.
    """
    integers = (types.Integer, types.IntegerLiteral)
    if not (
        isinstance(pointers, types.UniTuple)
        and isinstance(pointers.dtype, types.CPointer)
        and isinstance(count, types.IntegerLiteral)
        and all(isinstance(value, integers) for value in (first, stride, last))
    ):
        raise TypingError(f"load_rows takes a tuple of pointers and integers, not {pointers}, {count}")
    quad = types.UniTuple(pointers.dtype.dtype, 4)
    total = count.literal_value * len(pointers)
    result = types.UniTuple(quad, total)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = context.get_value_type(pointers.dtype.dtype)
        first_of, step, end = (
            context.cast(builder, args[k], kind, types.int64)
            for k, kind in ((2, first), (3, stride), (4, last))
        )
        own = cgutils.unpack_tuple(builder, args[0], len(pointers))
        starts = [builder.add(first_of, builder.mul(step, _INT64(k))) for k in range(count.literal_value)]
        # One branch for all of them, whose ends meet in vectors: NVVM before 13.4 never ends on quads that are
        # tuples on both sides of a branch.
        with builder.if_else(args[5]) as (at_once, by_value):
            with at_once:
                fast = [
                    builder.load(_quad(builder, place, start, element)) for start in starts for place in own
                ]
                for values in fast:
                    values.align = 16
                fast_block = builder.block
            with by_value:
                slow = [_some(builder, place, start, end, element) for start in starts for place in own]
                slow_block = builder.block
        quads = []
        for one, other in zip(fast, slow, strict=True):
            values = builder.phi(one.type)
            values.add_incoming(one, fast_block)
            values.add_incoming(other, slow_block)
            quads.append(values)
        buckets = [[builder.extract_element(values, _INT32(k)) for k in range(4)] for values in quads]
        return context.make_tuple(
            builder, result, [context.make_tuple(builder, quad, bucket) for bucket in buckets]
        )

    return result(pointers, count, first, stride, last, whole), codegen


def _some(builder: Any, pointer: Any, start: Any, end: Any, element: Any) -> Any:
    vector = ir.Constant(ir.VectorType(element, 4), ir.Undefined)
    base = builder.gep(pointer, [start])
    # Places within a chunk fit 32 bits, and so take half the registers.
    left = builder.trunc(builder.sub(end, start), _INT32)
    for k in range(4):
        inside = builder.icmp_signed("<", _INT32(k), left)
        # Loads that no branch guards can be under way together; past the end they read the last value.
        index = builder.select(inside, _INT32(k), builder.sub(left, _INT32(1)))
        place = builder.gep(base, [builder.sext(index, _INT64)])
        value = builder.load(builder.addrspacecast(place, element.as_pointer(_GLOBAL)))
        value = builder.select(inside, value, ir.Constant(element, 0.0))
        vector = builder.insert_element(vector, value, _INT32(k))
    return vector


@intrinsic  # type: ignore[untyped-decorator]
def store4(typingctx: Any, pointer: Any, index: Any, values: Any) -> Any:
    """Write four values at ``pointer[index]``, 16 bytes at a time; they must be aligned so."""
    _check_quad("store4", pointer, index)
    if values != types.UniTuple(pointer.dtype, 4):
        raise TypingError(f"store4 takes four values of {pointer.dtype}, not {values}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = context.get_value_type(pointer.dtype)
        vector = ir.Constant(ir.VectorType(element, 4), ir.Undefined)
        for k in range(4):
            vector = builder.insert_element(vector, builder.extract_value(args[2], k), _INT32(k))
        builder.store(vector, _quad(builder, args[0], args[1], element)).align = 16
        return context.get_dummy_value()

    return types.void(pointer, index, values), codegen


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
