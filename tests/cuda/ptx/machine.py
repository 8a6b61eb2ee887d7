"""The scheduler: which lanes run next, where they part and meet, and what they wait for."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.cuda.ptx import warps
from tests.cuda.ptx.accesses import bind_atomic, bind_load, bind_store
from tests.cuda.ptx.errors import DeadlockError, LaneError, PtxError, StepLimitError
from tests.cuda.ptx.instructions import BINDERS, Run, bind_form, unknown
from tests.cuda.ptx.lanes import WARP, Group, Lanes
from tests.cuda.ptx.parser import Instruction

Transfer = Callable[[Group, int], None]
NOT_WAITING = -1


class Step(NamedTuple):
    """An instruction ready to run: `run` works on the lanes' registers, `transfer` decides where they go on."""

    instruction: Instruction
    guard: np.ndarray | None
    run: Run | None
    transfer: Transfer | None


class Machine:
    """Runs a grid, `slots` blocks at a time.

    The lanes at the lowest instruction run first, so that those that parted meet again; every `fairness`-th
    time others do, chosen at random, so that a thread that spins cannot keep out the one it waits for.
    """

    def __init__(self, lanes: Lanes, slots: int, seed: int, fairness: int) -> None:
        self.lanes, self.fairness = lanes, fairness
        self.random = np.random.default_rng(seed)
        self.pending: dict[int, list[np.ndarray]] = {}
        self.stalled: dict[int, np.ndarray] = {}
        self.living = np.zeros(lanes.count, bool)
        self.living_in = np.zeros(slots, np.int64)
        self.waiting_in = np.zeros(slots, np.int64)
        self.waits_at = np.full(lanes.count, NOT_WAITING)
        self.next_block = self.steps = self.rounds = 0
        self.code = [self.bind(instruction) for instruction in lanes.kernel.code]

    # Binding.

    def bind(self, instruction: Instruction) -> Step:
        guard = self.lanes.register(instruction.guard) if instruction.guard else None
        try:
            transfer = self.bind_transfer(instruction)
            return Step(instruction, guard, None if transfer else self.bind_run(instruction), transfer)
        except PtxError as error:
            raise PtxError(f"{error}\n  in: {instruction.text}") from None

    def bind_run(self, instruction: Instruction) -> Run:
        opcode = instruction.opcode
        if opcode == "ld":
            return bind_load(self.lanes, instruction)
        if opcode == "st":
            return bind_store(self.lanes, instruction)
        if opcode in ("atom", "red"):
            return bind_atomic(self.lanes, instruction, self.random)
        if opcode == "activemask":
            return warps.bind_activemask(self.lanes, instruction)
        return BINDERS.get(opcode, bind_form)(self.lanes, instruction)

    def bind_transfer(self, instruction: Instruction) -> Transfer | None:
        opcode, modifiers = instruction.opcode, instruction.modifiers
        if opcode == "bra" and set(modifiers) <= {"uni"}:
            target = self.target(instruction.operands[0])
            return lambda group, at: self.push(target, group.lanes)
        if opcode == "brx" and modifiers[0] == "idx" and set(modifiers) <= {"idx", "uni"}:
            return self.bind_table_branch(instruction)
        if opcode in ("ret", "exit") and set(modifiers) <= {"uni"}:
            return lambda group, at: self.leave(group)
        if opcode == "trap":
            return lambda group, at: self.fail(group.lanes[0], at, "the kernel trapped")
        if opcode in ("bar", "barrier") and modifiers != ("warp", "sync"):
            return self.bind_barrier(instruction)
        collective = warps.bind_collective(self.lanes, instruction)
        return self.meeting(*collective) if collective else None

    def target(self, label: str) -> int:
        if label not in self.lanes.kernel.labels:
            raise PtxError(f"unknown label {label}")
        return self.lanes.kernel.labels[label]

    def bind_table_branch(self, instruction: Instruction) -> Transfer:
        choose = self.lanes.read(instruction.operands[0], "u32")
        table = self.lanes.kernel.tables.get(instruction.operands[1])
        if table is None:
            raise unknown(instruction, "table")
        targets = [self.target(label) for label in table]

        def branch(group: Group, at: int) -> None:
            choices = np.broadcast_to(choose(group.index), group.lanes.size)
            if choices.max() >= len(targets):
                self.fail(group.lanes[int(choices.argmax())], at, "the branch table has no such entry")
            for choice in np.unique(choices):
                self.push(targets[choice], group.lanes[choices == choice])

        return branch

    # Scheduling.

    def run(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.start_blocks(np.arange(self.living_in.size))
        while self.pending:
            at = self.choose()
            lanes = merged(self.pending.pop(at))
            self.advance(at, Group(lanes))
        if self.living.any():
            raise DeadlockError(self.describe_waiting())

    def choose(self) -> int:
        self.rounds += 1
        if self.rounds % self.fairness or len(self.pending) == 1:
            return min(self.pending)
        places = sorted(self.pending)
        return places[self.random.integers(len(places))]

    def advance(self, at: int, group: Group) -> None:
        """Run on until the lanes part, wait, or meet others."""
        while True:
            self.count_step(at)
            step = self.code[at]
            chosen = self.guarded(step, group)
            if step.transfer is not None:
                self.transfer(step, at, group, chosen)
                return
            if chosen is not None:
                self.execute(step, chosen, at)
            at += 1
            if at in self.pending:
                self.push(at, group.lanes)
                return

    def count_step(self, at: int) -> None:
        self.steps += 1
        if at >= len(self.code):
            raise PtxError("the kernel ran past its end")
        if self.steps > self.max_steps:
            raise StepLimitError(
                f"{self.max_steps} steps did not finish; now at: {self.code[at].instruction.text}"
            )

    def guarded(self, step: Step, group: Group) -> Group | None:
        """Return the lanes whose guard lets them run the instruction."""
        if step.guard is None:
            return group
        chosen = step.guard[group.index]
        return group.where(~chosen if step.instruction.negated else chosen)

    def transfer(self, step: Step, at: int, group: Group, chosen: Group | None) -> None:
        if chosen is not group:
            passed = (
                group.lanes if chosen is None else np.setdiff1d(group.lanes, chosen.lanes, assume_unique=True)
            )
            self.push(at + 1, passed)
        if chosen is not None and step.transfer is not None:
            step.transfer(chosen, at)

    def execute(self, step: Step, group: Group, at: int) -> None:
        assert step.run is not None
        try:
            step.run(group)
        except LaneError as error:
            self.fail(group.lanes[error.position], at, str(error))

    def push(self, at: int, lanes: np.ndarray) -> None:
        self.pending.setdefault(at, []).append(lanes)

    def fail(self, lane: Any, at: int, message: str) -> None:
        where = self.lanes.name_of(int(lane))
        raise PtxError(f"{message}\n  in: {self.code[at].instruction.text}\n  by: {where}")

    # Blocks begin and end.

    def start_blocks(self, slots: np.ndarray) -> None:
        """Give free slots to the next blocks, as far as there are any."""
        left = self.lanes.grid.size - self.next_block
        slots = slots[:left]
        if slots.size:
            blocks = self.next_block + np.arange(slots.size)
            self.next_block += slots.size
            lanes = self.lanes.begin_blocks(slots, blocks)
            self.living[lanes] = True
            self.living_in[slots] = self.lanes.block.size
            self.push(0, lanes)

    def leave(self, group: Group) -> None:
        """End threads; what waited for them may go on."""
        self.living[group.lanes] = False
        self.living_in -= np.bincount(self.lanes.slot[group.lanes], minlength=self.living_in.size)
        touched = np.unique(self.lanes.slot[group.lanes])
        self.start_blocks(touched[self.living_in[touched] == 0])
        self.release(touched)
        for at, lanes in self.stalled.items():
            self.push(at, lanes)
        self.stalled.clear()

    # Waiting.

    def bind_barrier(self, instruction: Instruction) -> Transfer:
        """Wait for all threads of the block: ``bar.sync 0`` and its longer spellings."""
        known = {"sync", "cta", "aligned", "all"}
        plain = set(instruction.modifiers) <= known and "sync" in instruction.modifiers
        if not plain or instruction.operands != ("0",):
            raise unknown(instruction)

        def wait(group: Group, at: int) -> None:
            self.waits_at[group.lanes] = at
            slots = self.lanes.slot[group.lanes]
            self.waiting_in += np.bincount(slots, minlength=self.waiting_in.size)
            self.release(np.unique(slots))

        return wait

    def release(self, slots: np.ndarray) -> None:
        """Let the blocks go on of which every living thread waits at a barrier."""
        ready = slots[(self.waiting_in[slots] == self.living_in[slots]) & (self.waiting_in[slots] > 0)]
        if not ready.size:
            return
        lanes = (ready[:, None] * self.lanes.stride + np.arange(self.lanes.stride)).reshape(-1)
        lanes = lanes[self.waits_at[lanes] != NOT_WAITING]
        places = self.waits_at[lanes]
        self.check_converged(lanes, places)
        self.check_complete(ready, places)
        self.lanes.races.forget(ready)
        self.waits_at[lanes] = NOT_WAITING
        self.waiting_in[ready] = 0
        for at in np.unique(places):
            self.push(int(at) + 1, lanes[places == at])

    def check_converged(self, lanes: np.ndarray, places: np.ndarray) -> None:
        """Raise if threads of one warp came to different barriers, which is undefined for an aligned one."""
        parted = (places[1:] != places[:-1]) & (lanes[1:] // WARP == lanes[:-1] // WARP)
        for k in np.flatnonzero(parted):
            if self.code[places[k]].instruction.opcode == "bar":
                self.fail(
                    lanes[k],
                    places[k],
                    f"a thread of the same warp waits at another barrier: {self.at(places[k + 1])}",
                )

    def check_complete(self, slots: np.ndarray, places: np.ndarray) -> None:
        """Raise if threads of a block ended where the others wait for all of them."""
        short = slots[self.living_in[slots] < self.lanes.block.size]
        if short.size:
            lane = short[0] * self.lanes.stride
            self.fail(lane, places[0], "a thread of the block ended before the barrier that others wait at")

    def at(self, place: Any) -> str:
        return self.code[place].instruction.text

    def meeting(self, mask: Any, perform: warps.Perform) -> Transfer:
        """Wait for the lanes that the mask names and that still live, then `perform` with all of them."""

        def meet(group: Group, at: int) -> None:
            arrived = Group(merged([group.lanes, self.stalled.pop(at)])) if at in self.stalled else group
            try:
                sets = warps.meet(arrived, mask(arrived.index), self.living)
            except LaneError as error:
                self.fail(arrived.lanes[error.position], at, str(error))
            if not sets.complete.all():
                self.stalled[at] = arrived.lanes[~sets.complete]
            ready = arrived.where(sets.complete)
            if ready is not None:
                perform(ready, sets.of(sets.complete))
                self.push(at + 1, ready.lanes)

        return meet

    def describe_waiting(self) -> str:
        lines = ["every thread that still lives waits:"]
        places = {
            int(at): np.flatnonzero(self.waits_at == at) for at in np.unique(self.waits_at[self.living])
        }
        places.pop(NOT_WAITING, None)
        for at, lanes in sorted({**places, **self.stalled}.items()):
            lines.append(
                f"  {lanes.size} at: {self.at(at)}  (one of them: {self.lanes.name_of(int(lanes[0]))})"
            )
        if self.next_block < self.lanes.grid.size:
            left = self.lanes.grid.size - self.next_block
            lines.append(f"  {left} blocks have not begun: {self.living_in.size} are resident at once")
        return "\n".join(lines)


def merged(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts), kind="stable")
