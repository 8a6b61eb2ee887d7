"""CudaRates: learning rates and weight decays where kernels find them.

Which steps were applied is known on the device alone, so a schedule's values go into a table that kernels index by
the steps applied so far: a step that was skipped leaves its value to the next one, as on the CPU. Schedules are
evaluated in order, one value for each step that is queued. Numbers are sent as they are at the call, and a rate
that lives on the device is read there.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.cuda.transfers import Mirror, Pieces, Snapshot, Snapshots
from numba_lamb.engine.interface import Groups
from numba_lamb.kernels.cuda import fields
from numba_lamb.memory.cuda_memory import Buffer
from numba_lamb.memory.device import Device
from numba_lamb.rates import RATE_KEYS, Rate

WINDOW = 1024
"""Steps whose rates the table holds, where it was not given as many as there are steps."""
ASK_AFTER = 128
"""Steps after which it is asked, without waiting, how many were applied."""
ROWS_AT_ONCE = 16
"""Steps whose rates one piece of page-locked memory holds."""


class Progress:
    """How many steps were applied, as far as the host knows.

    Parameters
    ----------
    device : Device
        Where steps are counted.
    counters : int
        The address of the control block.
    """

    def __init__(self, device: Device, counters: int) -> None:
        self._device = device
        self._counters = counters
        self._snapshots = Snapshots(device, counters, np.zeros(fields.CONTROLS, dtype=np.int64))
        self._generation = 0
        self._asked: Snapshot | None = None
        self._since = 0
        self.least = 0
        """Steps that were applied for certain."""
        self.most = 0
        """Steps that were applied if none was skipped since it was known."""
        self.replayed = False
        """Whether a graph was captured, whose replays take steps that are not seen here."""

    def read(self) -> NDArray[np.int64]:
        """Return the control block, after waiting for the device."""
        control = np.empty(fields.CONTROLS, dtype=np.int64)
        self._device.read(self._counters, control)
        self.least = self.most = int(control[fields.APPLIED])
        self._asked, self._since = None, 0
        return control

    def snapshot(self, stream: int) -> Snapshot:
        """Queue a copy of the control block."""
        return self._snapshots.take(stream)

    def write(self, applied: int, skipped: int) -> None:
        """Set the counters."""
        control = np.zeros(fields.CONTROLS, dtype=np.int64)
        control[fields.APPLIED], control[fields.SKIPPED], control[fields.CURRENT] = (
            applied,
            skipped,
            self._generation,
        )
        self._device.finish()
        self._device.write(self._counters, control)
        self.read()

    def begin_generation(self) -> int:
        """Return a number for tables that are made anew; steps with older ones are refused from now on."""
        control = self.read()
        self._generation += 1
        control[fields.CURRENT] = self._generation
        self._device.write(self._counters, control)
        return self._generation

    def expect(self) -> None:
        """Count a step that is about to be queued: one that is not, after all, is one in doubt."""
        self.most += 1
        self._since += 1

    def queued(self, stream: int) -> None:
        """Ask now and then, behind a step that was queued on `stream`, how many were applied."""
        if self._asked is not None and self._since % 8 == 0 and self._asked.is_ready():
            self._note(self._asked)
        if self._asked is None and self._since >= ASK_AFTER:
            self._asked, self._since = self._snapshots.take(stream), 0

    def narrow(self, span: int) -> None:
        """Make sure that fewer than `span` steps are in doubt, waiting for the device only where it must be."""
        if self.most - self.least >= span and self._asked is not None:
            self._note(self._asked)
        if self.replayed or self.most - self.least >= span:
            self.read()

    def _note(self, asked: Snapshot) -> None:
        applied = int(asked.read()[fields.APPLIED])
        self.least = max(self.least, applied)
        # Steps that were skipped before the question are in doubt no more.
        self.most = min(self.most, applied + self._since)
        self._asked = None


class CudaRates:
    """The device's tables of rates, kept up with the live groups.

    Parameters
    ----------
    device : Device
        Where the tables are.
    progress : Progress
        How many steps were applied.
    capture_steps : int or None
        Steps whose rates are all tabulated beforehand, so that steps can be captured into a graph.
    """

    def __init__(self, device: Device, progress: Progress, capture_steps: int | None) -> None:
        self._device = device
        self._progress = progress
        self.steps = capture_steps or WINDOW
        self.repeats = capture_steps is None
        self._placed = False

    def place(self, groups: Groups, largest: Sequence[float]) -> None:
        """Make the tables for these groups, and fill the one for captured steps.

        `largest` has for each group the largest number that its parameters can hold.
        """
        count = len(groups.dicts)
        self._placed = True
        self._groups = groups
        self._largest = largest
        self._sources = np.zeros((count, fields.QUANTITIES, fields.SOURCE_FIELDS), dtype=np.int64)
        self._numbers = self._sources.view(np.float64)
        self.mirror = Mirror(self._device, self._sources)
        row = np.zeros((count, fields.QUANTITIES))
        self.table = Buffer(self._device, self.steps * row.nbytes)
        self._pieces = Pieces(self._device, (ROWS_AT_ONCE, *row.shape), row.dtype)
        # The schedules that the table is filled from, and up to which step.
        self._filled_from: list[Rate] = []
        self._filled_to = 0
        # Rows that were evaluated and not sent yet, of which schedules, and the step of the first.
        self._unsent: list[NDArray[np.float64]] = []
        self._unsent_of: list[Rate] = []
        self._unsent_from = 0
        if not self.repeats:
            self._tabulate(self._scheduled())

    def rehearse(self) -> None:
        """Raise if the groups, of which some may be new, have a rate that cannot be tabulated."""
        if self._placed and not self.repeats:
            for rate in self._scheduled():
                for step in range(self.steps):
                    rate(step)

    def evaluate(self, capturing: bool) -> None:
        """Evaluate what the next step may need; raise if it has a rate that cannot be used."""
        self._unsent = []
        scheduled = []
        for index, quantity, rate in self._each():
            self._describe(index, quantity, rate)
            if rate.is_schedule:
                scheduled.append(rate)
        if not scheduled or (not self.repeats and scheduled == self._filled_from):
            return
        if self.repeats and capturing:
            raise RuntimeError(
                "a step whose rates are schedules can be captured only if they are tabulated beforehand: give "
                "the optimizer capture_steps, the number of steps to come"
            )
        if self.repeats:
            self._extend(scheduled)
        elif capturing:
            raise RuntimeError(
                "a schedule was assigned after the rates of captured steps were tabulated; take one step outside "
                "of capture first, which does so again"
            )
        else:
            self._tabulate(scheduled)

    def said(self) -> list[tuple[int, float]]:
        """Return where each rate comes from, and its value where that is known here for all ranks."""
        kinds, numbers = self._sources[..., fields.SOURCE], self._numbers[..., fields.PAYLOAD]
        known = np.where(kinds == fields.NUMBER, numbers, 0.0)
        return list(zip(kinds.ravel().tolist(), known.ravel().tolist(), strict=True))

    @property
    def are_on_device(self) -> bool:
        """Whether any rate is read on the device, which may refuse it."""
        return bool((self._sources[..., fields.SOURCE] > fields.TABLE).any())

    def send(self, stream: int, capturing: bool) -> None:
        """Queue what was evaluated on `stream`."""
        if capturing:
            self.mirror.capture(stream)
            return
        self._send_rows(stream)
        if self._progress.replayed:
            self.mirror.forget()
        self.mirror.send(stream)

    def forget(self) -> None:
        """Have the next step fill the table anew."""
        if self.repeats:
            self._filled_from = []

    def _each(self) -> list[tuple[int, int, Rate]]:
        groups = range(len(self._groups.dicts))
        return [
            (k, quantity, self._groups.rate(k, key)) for k in groups for quantity, key in enumerate(RATE_KEYS)
        ]

    def _scheduled(self) -> list[Rate]:
        return [rate for _, _, rate in self._each() if rate.is_schedule]

    def _describe(self, index: int, quantity: int, rate: Rate) -> None:
        entry = self._sources[index, quantity]
        storage = rate.storage
        if storage is not None:
            if storage.device != self._device.index:
                raise ValueError(
                    f"{rate.name} must be on GPU {self._device.index}, like the parameters, "
                    f"not on GPU {storage.device}"
                )
            single = storage.dtype == np.float32
            entry[fields.SOURCE] = fields.DEVICE_FLOAT32 if single else fields.DEVICE_FLOAT64
            entry[fields.PAYLOAD] = storage.address
        elif rate.is_schedule:
            entry[:] = fields.TABLE, 0
        else:
            value = rate(0)
            self._check_held(index, value, rate.name, "")
            entry[fields.SOURCE] = fields.NUMBER
            self._numbers[index, quantity, fields.PAYLOAD] = value

    def _check_held(self, index: int, value: float, name: str, where: str) -> None:
        if value > self._largest[index]:
            raise ValueError(f"{name} must be held by the dtype of its parameters, got {value!r}{where}")

    def _row(self, step: int) -> NDArray[np.float64]:
        row = np.zeros((len(self._groups.dicts), fields.QUANTITIES))
        for index, quantity, rate in self._each():
            if rate.is_schedule:
                row[index, quantity] = rate(step)
                self._check_held(index, float(row[index, quantity]), rate.name, f" at step {step}")
        return row

    def _extend(self, scheduled: list[Rate]) -> None:
        """Have the table hold every value that the next step may need."""
        progress = self._progress
        progress.narrow(self.steps // 2)
        first = self._filled_to if scheduled == self._filled_from else progress.least
        try:
            self._evaluate_rows(max(first, progress.least), progress.most)
        except Exception:
            # What is missing or refused may be of a step that will not be reached.
            if progress.least == progress.most:
                raise
            progress.read()
            self._evaluate_rows(progress.least, progress.most)
        self._unsent_of = scheduled

    def _evaluate_rows(self, first: int, last: int) -> None:
        self._unsent = [self._row(step) for step in range(first, last + 1)]
        self._unsent_from = first

    def _send_rows(self, stream: int) -> None:
        """Queue the rows that were evaluated, which may go round the end of the table."""
        step, end = self._unsent_from, self._unsent_from + len(self._unsent)
        if self._unsent:
            # Until all are sent, an interrupt leaves rows of these schedules among those of others.
            self._filled_from = []
        while step < end:
            place = step % self.steps
            count = min(end - step, ROWS_AT_ONCE, self.steps - place)
            piece = self._pieces.take()
            piece.host[:count] = self._unsent[step - self._unsent_from :][:count]
            self._device.send(self.table.address + place * piece.host[0].nbytes, piece.host[:count], stream)
            piece.event.record(stream)
            self._pieces.give(piece)
            step += count
        if self._unsent:
            self._filled_from, self._filled_to = self._unsent_of, end
        self._unsent = []

    def _tabulate(self, scheduled: list[Rate]) -> None:
        """Evaluate all steps to be captured."""
        if scheduled:
            found = np.array([self._row(step) for step in range(self.steps)])
            self._filled_from = []
            self._device.finish()
            self._device.write(self.table.address, found)
        self._filled_from = scheduled
