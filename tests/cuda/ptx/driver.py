"""A double of the CUDA driver: what `numba_lamb.memory.device` calls, on NumPy memory and the interpreter.

Nothing that is queued on a stream happens before somebody waits for it, which is the latest that the real driver
allows. So a host buffer that is written over too soon, a result that is read without waiting, and a stream that
does not wait for another show up as wrong values rather than by luck. A stream made by `stream` is a non-blocking
one: not even the default stream waits for it.

While a stream is captured, what the real driver forbids then fails and spoils the capture.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.ptx.driver_types import (
    Capture,
    CUdevice_attribute,
    CUevent_flags,
    CUpointer_attribute,
    CUresult,
    CUstreamCaptureMode,
    CUstreamCaptureStatus,
    Queue,
    Work,
)
from tests.cuda.ptx.interpreter import Memory, parse
from tests.cuda.ptx.relaunch import relaunch

CAPABILITY = (9, 0)
POISON = 0xFF
LEGACY = 0
WARP = 32

OK = (CUresult.CUDA_SUCCESS,)
UNSUPPORTED = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED


class FakeDriver:
    """One process's driver with `devices` GPUs that share one address space."""

    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUpointer_attribute = CUpointer_attribute
    CUevent_flags = CUevent_flags
    CUstreamCaptureMode = CUstreamCaptureMode
    CUstreamCaptureStatus = CUstreamCaptureStatus

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.memory = Memory()
        self.owners: dict[int, tuple[int, int, np.ndarray]] = {}
        self.host: dict[int, np.ndarray] = {}
        self.queues: dict[int, Queue] = {LEGACY: Queue()}
        self.captures: dict[int, Capture] = {}
        self.mode = CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        self.events: dict[int, tuple[Queue | Capture, int]] = {}
        self.contexts: list[int] = [0]
        self.launches: list[str] = []
        self.waits = 0
        """Calls that the host had to wait in."""
        self.one_warp_at_a_time = False
        """Whether the warps of a kernel run one after another, rather than all in step."""
        self.perform: Callable[[str, list[int]], None] | None = None
        """What is done in place of a kernel, from its name and arguments."""
        self.bytes_left: int | None = None
        """What may still be allocated."""
        self._next = 1000

    # -- what tests use ------------------------------------------------------------------------------------

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

    def cuThreadExchangeStreamCaptureMode(self, mode: CUstreamCaptureMode) -> Any:
        before, self.mode = self.mode, mode
        return CUresult.CUDA_SUCCESS, before

    def cuStreamIsCapturing(self, stream: int) -> Any:
        if stream == LEGACY:
            self._spoil("a question about the default stream")
        else:
            assert stream in self.queues, "no such stream"
        return CUresult.CUDA_SUCCESS, CUstreamCaptureStatus(int(stream in self.captures))

    # -- contexts and devices ------------------------------------------------------------------------------

    def cuInit(self, flags: int) -> Any:
        return OK

    def cuDeviceGet(self, index: int) -> Any:
        known = index < self.devices
        return (CUresult.CUDA_SUCCESS, index) if known else (CUresult.CUDA_ERROR_INVALID_VALUE, None)

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return CUresult.CUDA_SUCCESS, device + 1

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> Any:
        major = attribute == CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return CUresult.CUDA_SUCCESS, CAPABILITY[0 if major else 1]

    def cuCtxGetCurrent(self) -> Any:
        return CUresult.CUDA_SUCCESS, self.contexts[-1]

    def cuCtxPushCurrent(self, context: int) -> Any:
        self.contexts.append(context)
        return OK

    def cuCtxPopCurrent(self) -> Any:
        return CUresult.CUDA_SUCCESS, self.contexts.pop()

    def cuCtxSynchronize(self) -> Any:
        self._need_context()
        if self.captures:
            self._is_unsafe("waiting for the device")
            return (UNSUPPORTED,)
        self.waits += any(queue.done < len(queue.work) for queue in self.queues.values())
        self.progress()
        return OK

    def _need_context(self) -> None:
        assert self.contexts[-1], "no device is current"

    # -- memory --------------------------------------------------------------------------------------------

    def cuMemAlloc(self, size: int) -> Any:
        self._need_context()
        if self._is_unsafe("allocating memory"):
            return UNSUPPORTED, None
        if self.bytes_left is not None:
            if size > self.bytes_left:
                return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
            self.bytes_left -= size
        array = np.full(size, POISON, dtype=np.uint8)
        return CUresult.CUDA_SUCCESS, self.allocate(array, self.contexts[-1] - 1)

    def cuMemFree(self, address: int) -> Any:
        self._need_context()
        if self._is_unsafe("freeing memory"):
            return (UNSUPPORTED,)
        if not self.captures:
            self.progress()
        self.owners.pop(address)
        memory = self.memory
        memory.buffers = [buffer for buffer in memory.buffers if buffer.address != address]
        memory.starts = [buffer.address for buffer in memory.buffers]
        memory.views.clear()
        return OK

    def cuMemHostAlloc(self, size: int, flags: int) -> Any:
        self._need_context()
        if self._is_unsafe("page-locking memory"):
            return UNSUPPORTED, None
        array = np.full(size, POISON, dtype=np.uint8)
        self.host[array.ctypes.data] = array
        return CUresult.CUDA_SUCCESS, array.ctypes.data

    def cuMemFreeHost(self, address: int) -> Any:
        self._need_context()
        if self._is_unsafe("freeing page-locked memory"):
            return (UNSUPPORTED,)
        self.host.pop(address)[:] = POISON
        return OK

    def cuPointerGetAttribute(self, attribute: int, address: int) -> Any:
        for start, (device, size, _) in self.owners.items():
            if start <= address < start + size:
                return CUresult.CUDA_SUCCESS, device
        return CUresult.CUDA_ERROR_INVALID_VALUE, None

    def _bytes(self, address: int, size: int) -> np.ndarray:
        for start, (_, length, array) in self.owners.items():
            if start <= address and address + size <= start + length:
                return array.reshape(-1).view(np.uint8)[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} lie in no allocation")

    def cuMemsetD8(self, address: int, value: int, size: int) -> Any:
        self._need_context()

        def fill() -> None:
            self._bytes(address, size)[:] = value

        # The real one comes back before it is done, too.
        self.queue(LEGACY, fill)
        return OK

    def cuMemcpyHtoD(self, target: int, source: int, size: int) -> Any:
        self._need_context()
        self._wait_for(self.queues[LEGACY])
        values = ctypes.string_at(source, size)
        # It comes back when the host's memory was read, which can be before the device's was written.
        self.queue(LEGACY, lambda: self._put(target, values))
        return OK

    def cuMemcpyDtoH(self, target: int, source: int, size: int) -> Any:
        self._need_context()
        if self._spoil("a copy that waits"):
            return (UNSUPPORTED,)
        self._wait_for(self.queues[LEGACY])
        ctypes.memmove(target, self._bytes(source, size).tobytes(), size)
        return OK

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        self._need_context()

        def copy() -> None:
            self._need_pinned(source, size)
            self._put(target, ctypes.string_at(source, size))

        self._need_pinned(source, size)
        self.queue(stream, copy)
        return OK

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        self._need_context()

        def copy() -> None:
            self._need_pinned(target, size)
            ctypes.memmove(target, self._bytes(source, size).tobytes(), size)

        self._need_pinned(target, size)
        self.queue(stream, copy)
        return OK

    def _put(self, target: int, values: bytes) -> None:
        self._bytes(target, len(values))[:] = np.frombuffer(values, np.uint8)

    def _need_pinned(self, address: int, size: int) -> None:
        inside = (start <= address and address + size <= start + len(a) for start, a in self.host.items())
        assert any(inside), "an asynchronous copy from or to memory that is not page-locked"

    # -- kernels -------------------------------------------------------------------------------------------

    def cuModuleLoadData(self, image: bytes) -> Any:
        self._need_context()
        if self._is_unsafe("loading a kernel"):
            return UNSUPPORTED, None
        return CUresult.CUDA_SUCCESS, image.decode()

    def cuModuleGetFunction(self, module: str, name: bytes) -> Any:
        return CUresult.CUDA_SUCCESS, parsed(module, name.decode())

    def cuLaunchKernel(
        self, function: Any, gx: int, gy: int, gz: int, x: int, y: int, z: int, shared: int, stream: int,
        pointers: int, extra: int,
    ) -> Any:  # fmt: skip
        self._need_context()
        places = (ctypes.c_uint64 * 2).from_address(pointers)
        arguments = [ctypes.c_uint64.from_address(place).value for place in places]
        self.launches.append(function.name)
        one_by_one = self.one_warp_at_a_time

        def work() -> None:
            if self.perform is not None:
                self.perform(function.name, arguments)
            elif one_by_one:
                relaunch(function, gx * x // WARP, WARP, arguments, self.memory, resident=1)
            else:
                relaunch(function, gx, x, arguments, self.memory)

        self.queue(stream, work)
        return OK

    # -- streams and events --------------------------------------------------------------------------------

    def _wait_for(self, queue: Queue, end: int | None = None) -> None:
        end = len(queue.work) if end is None else end
        self.waits += queue.done < end
        queue.run(end)

    def cuStreamSynchronize(self, stream: int) -> Any:
        self._need_context()
        if self._spoil("waiting for a stream"):
            return (UNSUPPORTED,)
        self._wait_for(self.queues[stream])
        return OK

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        self._need_context()
        source, end = self.events[event]
        if isinstance(source, Capture):
            # Who waits for captured work is captured from then on.
            self.captures[stream] = source
        elif stream in self.captures:
            self._spoil("waiting for what is not captured")
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_ISOLATION,)
        else:
            self.queue(stream, lambda: source.run(end))
        return OK

    def cuEventCreate(self, flags: int) -> Any:
        self._need_context()
        handle = self._handle()
        self.events[handle] = (self.queues[LEGACY], 0)
        return CUresult.CUDA_SUCCESS, handle

    def cuEventDestroy(self, event: int) -> Any:
        self._need_context()
        del self.events[event]
        return OK

    def cuEventRecord(self, event: int, stream: int) -> Any:
        self._need_context()
        if stream in self.captures:
            self.events[event] = (self.captures[stream], 0)
            return OK
        if stream == LEGACY:
            self._spoil("a mark on the default stream")
        queue = self.queues[stream]
        self.events[event] = (queue, len(queue.work))
        return OK

    def cuEventSynchronize(self, event: int) -> Any:
        self._need_context()
        source, end = self.events[event]
        if self._is_unsafe("waiting for a mark") or isinstance(source, Capture):
            return (UNSUPPORTED,)
        self._wait_for(source, end)
        return OK

    def cuEventQuery(self, event: int) -> Any:
        self._need_context()
        source, end = self.events[event]
        if self._is_unsafe("asking for a mark") or isinstance(source, Capture):
            return (UNSUPPORTED,)
        return OK if source.done >= end else (CUresult.CUDA_ERROR_NOT_READY,)

    def _handle(self) -> int:
        self._next += 1
        return self._next


_parsed: dict[tuple[int, str], Any] = {}


def parsed(text: str, name: str) -> Any:
    """Return a kernel, parsed once for all drivers."""
    key = (hash(text), name)
    if key not in _parsed:
        _parsed[key] = parse(text, name)
    return _parsed[key]
