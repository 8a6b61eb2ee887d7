"""What the double of the CUDA driver keeps: memory, streams, captures and counts, and what tests do with them."""

import os
import threading
from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.driver_types import Capture, CUresult, CUstreamCaptureMode, Queue, Work
from tests.cuda.ptx.interpreter import Memory

LEGACY = 0


class DriverState:
    """One process's driver with `devices` GPUs that share one address space; its functions are added to it."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.memory = Memory()
        self.owners: dict[int, tuple[int, int, np.ndarray]] = {}
        self.host: dict[int, np.ndarray] = {}
        self.queues: dict[int, Queue] = {LEGACY: Queue()}
        self.captures: dict[int, Capture] = {}
        self.mode = CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        self.events: dict[int, tuple[Queue | Capture, int]] = {}
        self._of_thread = threading.local()
        self.launches: list[str] = []
        self.waits = 0
        """Calls that the host had to wait in."""
        self.one_block_at_a_time = False
        """Whether the blocks of a kernel run one after another, rather than all in step."""
        self.perform: Callable[[str, list[int]], None] | None = None
        """What is done in place of a kernel, from its name and arguments."""
        self.bytes_left: int | None = None
        """What may still be allocated on the devices."""
        self.host_bytes_left: int | None = None
        """What may still be page-locked."""
        self.starts = 0
        """Calls of cuInit."""
        self.process = os.getpid()
        self._next = 1000

    # -- what tests use ------------------------------------------------------------------------------------

    @property
    def contexts(self) -> list[int]:
        """The calling thread's contexts, the current one last."""
        return vars(self._of_thread).setdefault("contexts", [0])

    def stream(self) -> int:
        """Return a new stream that no other waits for by itself."""
        handle = self._handle()
        self.queues[handle] = Queue()
        return handle

    def destroy(self, stream: int) -> None:
        """End a stream, whose handle must not be used any more."""
        self.queues.pop(stream).run()

    def queue(self, stream: int, work: Work) -> None:
        """Queue work on a stream, or record it where the stream is being captured."""
        if stream in self.captures:
            self.captures[stream].work.append(work)
            return
        if stream == LEGACY:
            self._spoil("work on the default stream")
        self.queues[stream].work.append(work)

    def progress(self) -> None:
        """Let the GPUs do all that is queued, which no call of the host waits for."""
        while any(queue.done < len(queue.work) for queue in self.queues.values()):
            for queue in self.queues.values():
                queue.run()

    def begin_capture(self, stream: int) -> None:
        assert stream != LEGACY, "the default stream cannot be captured"
        self.captures[stream] = Capture()

    def end_capture(self, stream: int) -> list[Work]:
        """Return the graph that was captured."""
        capture = self.captures[stream]
        self.captures = {handle: other for handle, other in self.captures.items() if other is not capture}
        assert not capture.spoiled_by, f"spoiled by {capture.spoiled_by}"
        return capture.work

    def replay(self, graph: list[Work], stream: int) -> None:
        for work in graph:
            self.queue(stream, work)

    def allocate(self, array: np.ndarray, device: int = 0, misaligned_by: int = 0) -> int:
        """Put a host array's memory on a device and return its address there."""
        address = self.memory.add(array, misaligned_by=misaligned_by)
        self.owners[address] = (device, array.nbytes, array)
        return address

    # -- capture -------------------------------------------------------------------------------------------

    def _spoil(self, what: str) -> bool:
        """Return whether something is captured, which `what` spoils."""
        for capture in self.captures.values():
            capture.spoiled_by.append(what)
        return bool(self.captures)

    def _is_unsafe(self, what: str) -> bool:
        """Return whether `what` is forbidden now, unless the thread said that it knows better."""
        return self.mode != CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED and self._spoil(what)

    # -- what its functions share -----------------------------------------------------------------------------

    def _if_own_process(self) -> CUresult:
        """Return what every call does in a process that was forked from the one that started the driver."""
        own = os.getpid() == self.process
        return CUresult.CUDA_SUCCESS if own else CUresult.CUDA_ERROR_NOT_INITIALIZED

    def _need_context(self) -> None:
        assert self.contexts[-1], "no device is current"

    def _wait_for(self, queue: Queue, end: int | None = None) -> None:
        end = len(queue.work) if end is None else end
        self.waits += queue.done < end
        queue.run(end)

    def _wait_for_all(self) -> None:
        self.waits += any(queue.done < len(queue.work) for queue in self.queues.values())
        self.progress()

    def _handle(self) -> int:
        self._next += 1
        return self._next
