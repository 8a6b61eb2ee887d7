"""Instructions by which the lanes of a warp exchange values or wait for each other."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tests.cuda.ptx.errors import LaneError
from tests.cuda.ptx.instructions import Run, expect, unknown
from tests.cuda.ptx.lanes import UNDEFINED, WARP, Group, Lanes, Read
from tests.cuda.ptx.parser import Instruction


class Sets(NamedTuple):
    """For each lane: the set in which it meets others, the bits of those there, its mask, if all have come."""

    number: np.ndarray
    arrived: np.ndarray
    mask: np.ndarray
    complete: np.ndarray

    def of(self, chosen: np.ndarray) -> "Sets":
        return self if chosen.all() else Sets(*(array[chosen] for array in self))


Perform = Callable[[Group, Sets], None]
EVERY_LANE = np.uint32(0xFFFFFFFF)


def bits_by_set(number: np.ndarray, lanes: np.ndarray, flags: Any) -> np.ndarray:
    """Return for each lane a word with the bits of the lanes of its set whose flag is true."""
    weights = np.where(flags, np.ldexp(1.0, lanes % WARP), 0.0)
    return np.bincount(number, weights)[number].astype(np.uint32)


@cache
def whole_warps(warps: int) -> Sets:
    """Return the sets of warps that meet with all their lanes: the same for any warps."""
    number, every = np.repeat(np.arange(warps), WARP), np.full(warps * WARP, EVERY_LANE)
    return Sets(number, every, every, np.ones(warps * WARP, bool))


def are_whole(group: Group, masks: Any) -> bool:
    if np.ndim(masks) or masks != EVERY_LANE or not isinstance(group.index, slice):
        return False
    return group.index.start % WARP == group.index.stop % WARP == 0


def meet(group: Group, masks: Any, living: np.ndarray) -> Sets:
    """Group lanes by their warp and mask, and find which sets are complete."""
    if are_whole(group, masks):
        return whole_warps(group.lanes.size // WARP)
    lanes = group.lanes
    masks = np.broadcast_to(masks, lanes.size)
    outside = masks >> (lanes % WARP).astype(np.uint32) & np.uint32(1) == 0
    if outside.any():
        raise LaneError(int(np.flatnonzero(outside)[0]), "the mask does not name the thread that runs it")
    number = lanes // WARP - lanes[0] // WARP
    if (masks != masks[0]).any():
        number = np.unique(number << 32 | masks.astype(np.int64), return_inverse=True)[1]
    arrived = bits_by_set(number, lanes, True)
    alive = np.packbits(living.reshape(-1, WARP), axis=1, bitorder="little").view(np.uint32)[:, 0]
    return Sets(number, arrived, masks, masks & alive[lanes // WARP] & ~arrived == 0)


def bind_collective(lanes: Lanes, instruction: Instruction) -> tuple[Read, Perform] | None:
    """Return how to read the mask of a collective instruction, and what to do when its lanes have met."""
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if (opcode, modifiers) == ("bar", ("warp", "sync")):
        expect(instruction, 1)
        return lanes.read(instruction.operands[0], "u32"), bind_meeting(lanes)
    if opcode == "shfl":
        expect(instruction, 5)
        return lanes.read(instruction.operands[4], "u32"), bind_shuffle(lanes, instruction)
    if opcode == "vote":
        expect(instruction, 3)
        return lanes.read(instruction.operands[2], "u32"), bind_vote(lanes, instruction)
    return None


def bind_meeting(lanes: Lanes) -> Perform:
    """Order what whole warps did in shared memory before and after."""

    def met(group: Group, sets: Sets) -> None:
        whole = sets.mask == EVERY_LANE
        if whole.any():
            lanes.races.meet(group.lanes[whole])

    return met


def source_lane(mode: str, lane: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lane within the warp to read from, and whether it is in range, as the PTX manual defines it."""
    amount, clamp, segment = b & 31, c & 31, c >> 8 & 31
    highest = (lane & segment) | (clamp & ~segment)
    wanted = {
        "up": lane - amount,
        "down": lane + amount,
        "bfly": lane ^ amount,
        "idx": (lane & segment) | (amount & ~segment),
    }[mode]
    in_range = wanted >= highest if mode == "up" else wanted <= highest
    return np.where(in_range, wanted, lane), in_range


def bind_shuffle(lanes: Lanes, instruction: Instruction) -> Perform:
    """Read another lane's value; that of a lane that takes no part is undefined."""
    if instruction.modifiers not in {("sync", mode, "b32") for mode in ("up", "down", "bfly", "idx")}:
        raise unknown(instruction)
    mode = instruction.modifiers[1]
    targets = [name.strip() for name in instruction.operands[0].split("|")]
    write = lanes.write(targets[0], "u32")
    write_flag = lanes.write(targets[1], "pred") if len(targets) == 2 else None
    value, b, c = (lanes.read(operand, "u32") for operand in instruction.operands[1:4])
    values = np.zeros(lanes.count, np.uint32)

    @cache
    def of_a_warp(amount: int, clamp: int) -> tuple[np.ndarray, np.ndarray]:
        return source_lane(mode, np.arange(WARP), np.int64(amount), np.int64(clamp))

    def shuffle(group: Group, sets: Sets) -> None:
        amounts, clamps = b(group.index), c(group.index)
        if sets is whole_warps(group.lanes.size // WARP) and np.ndim(amounts) == np.ndim(clamps) == 0:
            source, in_range = of_a_warp(int(amounts), int(clamps))
            given = np.broadcast_to(value(group.index), group.lanes.size).reshape(-1, WARP)
            write(group.index, given[:, source].reshape(-1))
            if write_flag:
                write_flag(group.index, np.tile(in_range, len(given)))
            return
        lane = group.lanes % WARP
        source, in_range = source_lane(
            mode, lane, *(np.asarray(given).astype(np.int64) for given in (amounts, clamps))
        )
        values[group.index] = value(group.index)
        present = sets.arrived >> source.astype(np.uint32) & np.uint32(1) == 1
        found = values[np.where(present, group.lanes - lane + source, group.lanes)]
        write(group.index, np.where(present, found, np.uint32(UNDEFINED["b32"])))
        if write_flag:
            write_flag(group.index, in_range)

    return shuffle


def bind_vote(lanes: Lanes, instruction: Instruction) -> Perform:
    if instruction.modifiers not in {
        ("sync", "ballot", "b32"),
        *(("sync", m, "pred") for m in ("all", "any", "uni")),
    }:
        raise unknown(instruction)
    mode = instruction.modifiers[1]
    flag = lanes.read(instruction.operands[1], "pred")
    write = lanes.write(instruction.operands[0], "u32" if mode == "ballot" else "pred")

    def vote(group: Group, sets: Sets) -> None:
        votes = bits_by_set(sets.number, group.lanes, flag(group.index))
        everyone, nobody = votes == sets.arrived, votes == 0
        results = {"ballot": votes, "all": everyone, "any": ~nobody, "uni": everyone | nobody}
        write(group.index, results[mode])

    return vote


def bind_activemask(lanes: Lanes, instruction: Instruction) -> Run:
    """Tell which lanes of the warp run together at this moment; on a GPU too they may be fewer than one thinks."""
    expect(instruction, 1)
    if instruction.modifiers != ("b32",):
        raise unknown(instruction)
    write = lanes.write(instruction.operands[0], "u32")
    return lambda group: write(group.index, bits_by_set(group.lanes // WARP, group.lanes, True))
