"""The threads that are resident at once, one lane each: their registers, operands and memories."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.cuda.ptx.arithmetic import DTYPES
from tests.cuda.ptx.errors import PtxError
from tests.cuda.ptx.memory import (
    LOCAL_WINDOW,
    SHARED_WINDOW,
    WINDOWS,
    Memory,
    Piece,
    Private,
    check_alignment,
)
from tests.cuda.ptx.parser import NAME, Kernel, Parameter
from tests.cuda.ptx.races import Races

WARP = 32
# Read before it is written, a register is a NaN, a wild address, or a huge index.
UNDEFINED = {"b16": 0x7FDE, "b32": 0x7FDEADDE, "b64": 0x7FDEADDE7FDEADDE, "pred": True}
ADDRESS = re.compile(rf"\[\s*({NAME})\s*(?:([+-])\s*(-?\w+))?\s*\]")
LANE_MASKS: dict[str, Callable[[int], int]] = {
    "lanemask_eq": lambda lane: 1 << lane,
    "lanemask_lt": lambda lane: (1 << lane) - 1,
    "lanemask_le": lambda lane: (2 << lane) - 1,
    "lanemask_gt": lambda lane: 2**32 - (2 << lane),
    "lanemask_ge": lambda lane: 2**32 - (1 << lane),
}

Read = Callable[[Any], Any]
Write = Callable[[Any, Any], None]


class Shape(NamedTuple):
    """A size in three dimensions; x varies fastest."""

    x: int
    y: int = 1
    z: int = 1

    @property
    def size(self) -> int:
        return self.x * self.y * self.z


class Group:
    """Lanes, in order, that run an instruction together; `index` selects them from an array of all lanes."""

    __slots__ = ("index", "lanes")

    def __init__(self, lanes: np.ndarray) -> None:
        self.lanes = lanes
        begin, end = int(lanes[0]), int(lanes[-1]) + 1
        self.index: Any = slice(begin, end) if end - begin == lanes.size else lanes

    def where(self, chosen: np.ndarray) -> "Group | None":
        """Return the chosen lanes; the group itself if that is all, None if there is none."""
        if chosen.all():
            return self
        return Group(self.lanes[chosen]) if chosen.any() else None


class Lanes:
    """Registers and memories of `slots` resident blocks; each slot has whole warps of lanes."""

    def __init__(
        self, kernel: Kernel, grid: Shape, block: Shape, slots: int, memory: Memory, dynamic: int
    ) -> None:
        self.kernel, self.grid, self.block, self.memory = kernel, grid, block, memory
        self.stride = -(-block.size // WARP) * WARP
        self.count = slots * self.stride
        self.slot = np.arange(self.count) // self.stride
        self.thread = np.arange(self.count) % self.stride
        self.block_number = np.zeros(self.count, np.int64)
        self.dynamic = dynamic
        dynamic_starts = [v.offset for v in kernel.variables.values() if v.space == "shared"]
        self.shared = Private("shared", slots, max([kernel.static_shared, *dynamic_starts]) + dynamic)
        self.races = Races(kernel, slots, self.shared.size, self.count)
        self.local = Private("local", self.count, kernel.local)
        self.registers: dict[str, np.ndarray] = {}
        self.banks: dict[str, np.ndarray] = {}
        self.kinds = {name: self.storage(name) for name in kernel.registers}
        self.special = self.special_registers()
        self.parameters: dict[str, bytes] = {}

    def special_registers(self) -> dict[str, Any]:
        thread, block = self.thread.astype(np.uint32), self.block
        special: dict[str, Any] = {
            "tid.x": thread % np.uint32(block.x),
            "tid.y": thread // np.uint32(block.x) % np.uint32(block.y),
            "tid.z": thread // np.uint32(block.x * block.y),
            "laneid": thread % np.uint32(WARP),
            "dynamic_smem_size": np.uint32(self.dynamic),
            "total_smem_size": np.uint32(self.shared.size),
        }
        for axis, threads, blocks in zip("xyz", block, self.grid, strict=True):
            special[f"ntid.{axis}"], special[f"nctaid.{axis}"] = np.uint32(threads), np.uint32(blocks)
            special[f"ctaid.{axis}"] = np.zeros(self.count, np.uint32)
        for name, mask in LANE_MASKS.items():
            special[name] = np.array([mask(lane) & 0xFFFFFFFF for lane in range(WARP)], np.uint32)[
                thread % WARP
            ]
        return special

    def begin_blocks(self, slots: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Put new blocks into slots and return their lanes; nothing of the earlier blocks remains."""
        lanes = (slots[:, None] * self.stride + np.arange(self.block.size)).reshape(-1)
        number = np.repeat(blocks, self.block.size)
        self.block_number[lanes] = number
        self.special["ctaid.x"][lanes] = number % self.grid.x
        self.special["ctaid.y"][lanes] = number // self.grid.x % self.grid.y
        self.special["ctaid.z"][lanes] = number // (self.grid.x * self.grid.y)
        index = Group(lanes).index
        for kind, bank in self.banks.items():
            bank[:, index] = UNDEFINED[kind]
        self.shared.forget(slots)
        self.races.forget(slots)
        self.local.forget(lanes)
        return lanes

    def name_of(self, lane: int) -> str:
        return f"block {int(self.block_number[lane])}, thread {int(self.thread[lane])}"

    def set_parameters(self, arguments: Any) -> None:
        parameters = self.kernel.parameters
        if len(arguments) != len(parameters):
            raise PtxError(f"{self.kernel.name} takes {len(parameters)} arguments, not {len(arguments)}")
        for parameter, value in zip(parameters, arguments, strict=True):
            self.parameters[parameter.name] = packed(parameter, value)

    # Operands.

    def storage(self, name: str) -> str:
        kind = self.kernel.registers[name]
        return "pred" if kind == "pred" else f"b{kind[1:]}"

    def register(self, name: str) -> np.ndarray:
        if name not in self.registers:
            kind = self.kinds[name]
            if kind not in UNDEFINED:
                raise PtxError(f"unknown register type .{self.kernel.registers[name]}")
            alike = [other for other in self.kinds if self.kinds[other] == kind]
            # One array for all of a kind: `begin_blocks` fills it in, where there are threads, in one go.
            self.banks[kind] = np.empty((len(alike), self.count), DTYPES[kind])
            self.registers.update(zip(alike, self.banks[kind], strict=True))
        return self.registers[name]

    def read(self, operand: str, kind: str) -> Read:
        """Return a function from an index to the operand's values as `kind`: an array, or a scalar if constant."""
        if operand in self.kernel.registers:
            return self.view(operand, kind).__getitem__
        if operand.startswith("!") and kind == "pred":
            positive = self.read(operand[1:].strip(), kind)
            return lambda index: ~positive(index)
        if operand.startswith("%"):
            return self.read_special(operand[1:], kind)
        value = self.constant(operand, kind)
        return lambda index: value

    def read_special(self, name: str, kind: str) -> Read:
        if name not in self.special or kind not in ("u32", "s32", "b32"):
            raise PtxError(f"unknown special register %{name} as .{kind}")
        values = self.special[name]
        if values.ndim:
            return values.view(DTYPES[kind]).__getitem__
        value = values.astype(DTYPES[kind])
        return lambda index: value

    def view(self, name: str, kind: str) -> np.ndarray:
        """Return a register of all lanes as `kind`; the low part if that is narrower."""
        array, dtype = self.register(name), np.dtype(dtype_of(kind))
        if (kind == "pred") != (array.dtype == np.bool_):
            raise PtxError(f"{name} cannot be read or written as .{kind}")
        if kind == "f32x2":
            return array.view(dtype).reshape(-1, 2)
        if dtype.itemsize > array.dtype.itemsize:
            raise PtxError(f"{name} is too narrow for .{kind}")
        return array.view(dtype).reshape(self.count, -1)[:, 0]

    def write(self, operand: str, kind: str) -> Write:
        """Return a function that puts values of `kind` into a register, extending them if it is wider."""
        if operand == "_":
            return lambda index, values: None
        if operand not in self.kernel.registers:
            raise PtxError(f"{operand} is not a register")
        width = self.register(operand).dtype.itemsize
        narrow = kind not in ("pred", "f32x2") and np.dtype(dtype_of(kind)).itemsize < width
        if narrow and kind[0] == "f":
            raise PtxError(f"{operand} is too wide for .{kind}")
        return self.view(operand, f"{kind[0]}{8 * width}" if narrow else kind).__setitem__

    def constant(self, text: str, kind: str) -> Any:
        dtype = dtype_of(kind)
        if text in self.kernel.variables:
            return dtype(self.kernel.variables[text].offset)
        if re.match("0[fFdD][0-9a-fA-F]", text):
            width = 4 if text[1] in "fF" else 8
            if np.dtype(dtype).itemsize != width:
                raise PtxError(f"constant {text} does not fit .{kind}")
            return np.frombuffer(int(text[2:], 16).to_bytes(width, "little"), dtype)[0]
        if not re.match(r"-?\d", text):
            raise PtxError(f"unknown operand {text}")
        if kind == "pred":
            return np.bool_(int(text, 0) != 0)
        width = 8 if kind == "f32x2" else np.dtype(dtype).itemsize
        if kind[0] == "f" and kind != "f32x2":
            raise PtxError(f"integer constant {text} as .{kind}")
        value = int(text.rstrip("U"), 0) & (1 << 8 * width) - 1
        values = np.frombuffer(value.to_bytes(width, "little"), dtype)
        return values if kind == "f32x2" else values[0]

    # Memory.

    def address(self, operand: str) -> Callable[[Group], np.ndarray]:
        """Return a function from a group to its addresses."""
        match = ADDRESS.fullmatch(operand)
        if match is None:
            raise PtxError(f"unknown address {operand}")
        offset = int(match[3], 0) * (-1 if match[2] == "-" else 1) if match[3] else 0
        name, added = match[1], np.uint64(offset & (1 << 64) - 1)
        wide = name not in self.kernel.registers or self.storage(name) == "b64"
        read = self.read(name, "u64" if wide else "u32")

        def addresses(group: Group) -> np.ndarray:
            values = read(group.index)
            if not np.ndim(values):
                values = np.full(group.lanes.size, values)
            return values.astype(np.uint64) + added

        return addresses

    def access(
        self,
        space: str,
        group: Group,
        addresses: np.ndarray,
        size: int,
        dtype: Any,
        writes: bool,
        atomic: bool = False,
    ) -> Iterator[Piece]:
        """Check an access and find the memory of each of its lanes."""
        check_alignment(addresses, size)
        if space == "global":
            yield from self.memory.pieces(addresses, size, dtype, writes)
        elif space == "shared":
            slots = self.slot[group.lanes]
            piece = self.shared.piece(slots, addresses, size, dtype)
            self.races.note(slots, group.lanes, addresses, size, writes, atomic)
            yield piece
        elif space == "local":
            yield self.local.piece(group.lanes, addresses, size, dtype)
        else:
            yield from self.access_generic(group, addresses, size, dtype, writes, atomic)

    def access_generic(
        self, group: Group, addresses: np.ndarray, size: int, dtype: Any, writes: bool, atomic: bool
    ) -> Iterator[Piece]:
        windows = addresses >> np.uint64(60)
        for window in np.unique(windows):
            chosen = np.flatnonzero(windows == window)
            offsets = addresses[chosen] & np.uint64((1 << 60) - 1)
            space = WINDOWS.get(int(window), "global")
            if space == "global":
                offsets = addresses[chosen]
            for piece in self.access(space, Group(group.lanes[chosen]), offsets, size, dtype, writes, atomic):
                yield Piece(chosen[piece.positions], piece.view, piece.cells)


def dtype_of(kind: str) -> Any:
    if kind not in DTYPES:
        raise PtxError(f"unknown type .{kind}")
    return DTYPES[kind]


def window_of(space: str) -> int:
    return {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)


def packed(parameter: Parameter, value: Any) -> bytes:
    """Return the bytes of an argument: a float for a parameter of its width, or an integer that fits."""
    kind = parameter.kind
    width = np.dtype(dtype_of(kind)).itemsize
    if isinstance(value, float | np.floating):
        if kind[0] not in "fb" or width < 4:
            raise PtxError(f"parameter {parameter.name} is .{kind}: it takes no float")
        return np.dtype(f"f{width}").type(value).tobytes()
    if kind[0] == "f":
        return dtype_of(kind)(value).tobytes()
    value = int(value)
    if not -(1 << 8 * width - 1) <= value < 1 << 8 * width:
        raise PtxError(f"{value} does not fit parameter {parameter.name}, which is .{kind}")
    return (value & (1 << 8 * width) - 1).to_bytes(width, "little")
