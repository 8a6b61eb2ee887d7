"""CudaRates: learning rates and weight decays where kernels find them.

Which steps were applied is known on the device alone, so a schedule's values go into a table that kernels index by
the steps applied so far: a step that was skipped leaves its value to the next one, as on the CPU. Schedules are
evaluated in order, one value for each step that is queued. Numbers are sent as they are at the call, and a rate
that lives on the device is read there.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from numba_lamb.device import Buffer, Device, Mirror, Snapshot, call, page_locked
from numba_lamb.kernels import book as at
from numba_lamb.optimizers.live import KEYS, LiveGroups
from numba_lamb.rates import Rate

WINDOW = 1024
"""Steps whose rates the table holds, where it was not given as many as there are steps."""
ASK_AFTER = 128
"""Steps after which it is asked, without waiting, how many were applied."""


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
        control = np.empty(at.CONTROLS, dtype=np.int64)
        self._device.read(self._counters, control)
        self.least = self.most = int(control[at.APPLIED])
        self._asked, self._since = None, 0
        return control

    def write(self, applied: int, skipped: int) -> None:
        """Set the counters."""
        control = np.zeros(at.CONTROLS, dtype=np.int64)
        control[at.APPLIED], control[at.SKIPPED] = applied, skipped
        self._device.finish()
        self._device.write(self._counters, control)
        self.read()

    def queued(self, stream: int) -> None:
        """Count a step that was queued on `stream`."""
        self.most += 1
        self._since += 1
        if self._asked is not None and self._since % 8 == 0 and self._asked.is_ready():
            self._note(self._asked)
        if self._asked is None and self._since >= ASK_AFTER:
            like = np.zeros(at.CONTROLS, dtype=np.int64)
            self._asked, self._since = Snapshot(self._device, self._counters, like, stream), 0

    def narrow(self, span: int) -> None:
        """Make sure that fewer than `span` steps are in doubt, waiting for the device only where it must be."""
        if self.most - self.least >= span and self._asked is not None:
            self._note(self._asked)
        if self.replayed or self.most - self.least >= span:
            self.read()

    def _note(self, asked: Snapshot) -> None:
        self.least = max(self.least, int(asked.read()[at.APPLIED]))
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
        self._capture_steps = capture_steps
        self.steps = capture_steps or WINDOW
        self.repeats = capture_steps is None

    def place(self, groups: LiveGroups) -> None:
        """Make the tables for these groups, and fill the one for captured steps."""
        count = len(groups.dicts)
        self._groups = groups
        self._sources = np.zeros((count, at.QUANTITIES, at.SOURCE_FIELDS), dtype=np.int64)
        self._numbers = self._sources.view(np.float64)
        self.mirror = Mirror(self._device, self._sources)
        self._rows = page_locked(self._device, (self.steps, count, at.QUANTITIES), np.dtype(np.float64))
        self.table = Buffer(self._device, self._rows.nbytes)
        # The schedules that the table was filled from, and up to which step.
        self._filled_from: list[Rate] = []
        self._filled_to = 0
        if not self.repeats:
            self._tabulate(self._scheduled())

    def prepare(self, largest: Callable[[int], float], stream: int, capturing: bool) -> None:
        """Queue what the next step's rates are on `stream`; refuse them before anything was queued."""
        for index, quantity, rate in self._each():
            self._describe(index, quantity, rate, largest)
        scheduled = self._scheduled()
        if scheduled and self.repeats:
            if capturing:
                raise RuntimeError(
                    "a step whose rates are schedules can be captured only if they are tabulated beforehand: give "
                    "the optimizer capture_steps, the number of steps to come"
                )
            self._extend(scheduled, largest, stream)
        elif scheduled and scheduled != self._filled_from:
            self._tabulate(scheduled)
        if capturing:
            # Replays must not depend on what other steps send in between.
            self.mirror.forget()
        self.mirror.send(stream, capturing)

    def forget(self) -> None:
        """Have the next step fill the table anew."""
        if self.repeats:
            self._filled_from = []

    def _each(self) -> list[tuple[int, int, Rate]]:
        groups = range(len(self._groups.dicts))
        return [(k, quantity, self._groups.rate(k, key)) for k in groups for quantity, key in enumerate(KEYS)]

    def _scheduled(self) -> list[Rate]:
        return [rate for _, _, rate in self._each() if rate.is_schedule]

    def _describe(self, index: int, quantity: int, rate: Rate, largest: Callable[[int], float]) -> None:
        entry = self._sources[index, quantity]
        storage = rate.storage
        if storage is not None:
            if storage.device != self._device.index:
                raise ValueError(
                    f"{rate.name} is on GPU {storage.device}, and the parameters are on GPU {self._device.index}"
                )
            single = storage.dtype == np.float32
            entry[at.SOURCE] = at.DEVICE_FLOAT32 if single else at.DEVICE_FLOAT64
            entry[at.PAYLOAD] = storage.address
        elif rate.is_schedule:
            entry[:] = at.TABLE, 0
        else:
            value = rate(0)
            _check_held(value, largest(index), rate.name, "")
            entry[at.SOURCE] = at.NUMBER
            self._numbers[index, quantity, at.PAYLOAD] = value

    def _row(self, step: int, largest: Callable[[int], float]) -> NDArray[np.float64]:
        row = np.zeros((len(self._groups.dicts), at.QUANTITIES))
        for index, quantity, rate in self._each():
            if rate.is_schedule:
                row[index, quantity] = rate(step)
                _check_held(row[index, quantity], largest(index), rate.name, f" at step {step}")
        return row

    def _extend(self, scheduled: list[Rate], largest: Callable[[int], float], stream: int) -> None:
        """Have the table hold every value that the next step may need."""
        progress = self._progress
        progress.narrow(self.steps // 2)
        first = self._filled_to if scheduled == self._filled_from else progress.least
        try:
            found = [
                self._row(step, largest) for step in range(max(first, progress.least), progress.most + 1)
            ]
        except (ArithmeticError, LookupError, TypeError, ValueError):
            # The value that is missing or refused may be of a step that was not reached.
            progress.read()
            found = [self._row(step, largest) for step in range(progress.least, progress.most + 1)]
            first = progress.least
        first = max(first, progress.least)
        for step, row in enumerate(found, start=first):
            place = self._rows[step % self.steps]
            place[...] = row
            offset = (step % self.steps) * place.nbytes
            call("cuMemcpyHtoDAsync", self.table.address + offset, place.ctypes.data, place.nbytes, stream)
        self._filled_from, self._filled_to = scheduled, progress.most + 1

    def _tabulate(self, scheduled: list[Rate]) -> None:
        """Evaluate all steps to be captured."""
        if scheduled:
            found = [self._row(step, lambda index: np.inf) for step in range(self.steps)]
            self._device.finish()
            self._rows[...] = found
            self._device.write(self.table.address, self._rows)
        self._filled_from = scheduled


def _check_held(value: float, largest: float, name: str, where: str) -> None:
    if value > largest:
        raise ValueError(f"{name}{where} is {value!r}, more than the dtype of its parameters can hold")
