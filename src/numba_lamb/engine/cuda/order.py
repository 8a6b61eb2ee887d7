"""Order: what steps wait for on a GPU, across streams, and what must live until they have run."""

import sys
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

from numba_lamb.memory import device


class Order:
    """The order of one optimizer's work on the streams of a GPU.

    Parameters
    ----------
    device : Device
        The GPU.
    """

    def __init__(self, gpu: device.Device) -> None:
        self._device = gpu
        self._held: deque[tuple[device.Event, Any]] = deque()
        # The last stream that is known to have work, and the end of it there.
        self._stream = device.LEGACY_STREAM
        self._last = device.Event(gpu)

    def before(self, producers: Collection[int], target: int, capturing: bool) -> None:
        """Have `target` wait for the step before this one, and for the streams that make its gradients."""
        if not capturing:
            self.follow(target)
        for producer in producers:
            # A graph can wait only for what it holds itself; what is outside is there before it is replayed.
            if not capturing or self._device.is_capturing(producer):
                self._device.order(producer, target)

    def follow(self, stream: int) -> None:
        """Have `stream` wait for what this optimizer queued on another."""
        if self._stream == device.LEGACY_STREAM:
            self._device.order(self._stream, stream)
        elif stream != self._stream or stream == device.PER_THREAD_STREAM:
            # The stream itself may be gone, but the mark on it stays.
            self._last.hold(stream)

    def mark(self, stream: int) -> None:
        """Note that this optimizer's work on `stream` ends here."""
        self._stream = stream
        if stream != device.LEGACY_STREAM:
            self._last.record(stream)

    def hold(self, gradients: Sequence[Any], stream: int, usual: int) -> None:
        """Keep gradients that another stream than the usual one reads from being given away before it has."""
        while self._held and self._held[0][0].is_reached():
            self._held.popleft()
        if stream == usual:
            return
        torch: Any = sys.modules.get("torch")
        others = []
        for gradient in gradients:
            if torch is not None and isinstance(gradient, torch.Tensor):
                gradient.record_stream(torch.cuda.ExternalStream(stream, device=self._device.index))
            elif gradient is not None:
                others.append(gradient)
        if others:
            event = device.Event(self._device)
            event.record(stream)
            self._held.append((event, others))

    def release(self) -> None:
        """Let go of all gradients: nothing is under way."""
        self._held.clear()
