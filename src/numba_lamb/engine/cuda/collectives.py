"""Collectives on a GPU's memory where the library between ranks has none."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import Comm, DeviceComm, Span
from numba_lamb.comm.interface import Wait
from numba_lamb.memory.cuda_memory import page_locked
from numba_lamb.memory.device import Device, Event


def on_device(comm: Comm, device: Device) -> DeviceComm:
    """Return the collectives of `comm` on a GPU's memory."""
    make = getattr(comm, "on_device", None)
    found: DeviceComm | None = None if make is None else make(device.index)
    if found is not None:
        return found
    return Alone(device) if comm.size == 1 else Staged(comm, device)


class Alone:
    """Collectives of a single rank.

    Parameters
    ----------
    device : Device
        The GPU.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    def all_gather(self, out: Span, values: Span, stream: int) -> Wait:
        """Queue a copy of `values` to `out`."""
        if values.nbytes:
            self._device.copy(out.address, values.address, values.nbytes, stream)
        return _done

    all_to_all = all_gather


def _done() -> None:
    pass


class Staged:
    """Collectives of the CPU's memory, by way of page-locked memory; the host waits for what they send.

    Parameters
    ----------
    comm : Comm
        The ranks.
    device : Device
        The GPU.
    """

    def __init__(self, comm: Comm, device: Device) -> None:
        self._comm, self._device = comm, device
        # By what they are copies of: both on the host, and the mark behind the last copy back.
        self._copies: dict[tuple[Span, Span], tuple[NDArray[np.uint8], NDArray[np.uint8], Event]] = {}

    def all_gather(self, out: Span, values: Span, stream: int) -> Wait:
        """Begin to write every rank's `values` into `out`, one rank after the other."""
        return self._begun(self._comm.all_gather, out, values, stream)

    def all_to_all(self, out: Span, values: Span, stream: int) -> Wait:
        """Begin to write into `out` this rank's part of every rank's `values`, one rank after the other."""
        return self._begun(self._comm.all_to_all, out, values, stream)

    def _begun(self, collective: Any, out: Span, values: Span, stream: int) -> Wait:
        # Not every part of a rank has values.
        if not out.nbytes:
            return _done
        told, sent, over = self._on_host(out, values)
        over.wait()
        self._device.fetch(sent, values.address, stream)
        self._device.synchronize(stream)
        wait = collective(told, sent)

        def finish() -> None:
            wait()
            self._device.send(out.address, told, stream)
            over.record(stream)

        return finish

    def _on_host(self, out: Span, values: Span) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Event]:
        if (out, values) not in self._copies:
            told, sent = (
                page_locked(self._device, (span.nbytes,), np.dtype(np.uint8)) for span in (out, values)
            )
            self._copies[out, values] = told, sent, Event(self._device)
        return self._copies[out, values]
