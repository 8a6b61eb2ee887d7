"""A double of the CUDA driver: the functions that `numba_lamb.device` calls, on NumPy memory and the interpreter.

Nothing that is queued on a stream happens before somebody waits for it, which is the latest that the real driver
allows. So a host buffer that is written over too soon, a result that is read without waiting, and a stream that
does not wait for another show up as wrong values rather than by luck.
"""

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from ptx.interpreter import Memory, launch, parse

CAPABILITY = (9, 0)
POISON = 0xFF


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUpointer_attribute(IntEnum):
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9


class CUevent_flags(IntEnum):
    CU_EVENT_DISABLE_TIMING = 2


class CUstreamCaptureStatus(IntEnum):
    CU_STREAM_CAPTURE_STATUS_NONE = 0
    CU_STREAM_CAPTURE_STATUS_ACTIVE = 1


OK = (CUresult.CUDA_SUCCESS,)


class Queue:
    """The work of one stream: what is done and what is still to come."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.done = 0

    def run(self, end: int | None = None) -> None:
        end = len(self.work) if end is None else end
        while self.done < end:
            self.done += 1
            self.work[self.done - 1]()


class FakeDriver:
    """One process's driver with `devices` GPUs that share one address space."""

    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUpointer_attribute = CUpointer_attribute
    CUevent_flags = CUevent_flags
    CUstreamCaptureStatus = CUstreamCaptureStatus

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.memory = Memory()
        self.owners: dict[int, tuple[int, int, np.ndarray]] = {}
        self.host: dict[int, np.ndarray] = {}
        self.queues: dict[int, Queue] = {0: Queue()}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, tuple[int, int]] = {}
        self.contexts: list[int] = [0]
        self.launches: list[str] = []
        self.waits = 0
        self._next = 1000

    # -- what tests use ------------------------------------------------------------------------------------

    def stream(self) -> int:
        """Return a new stream that no other waits for by itself."""
        handle = self._handle()
        self.queues[handle] = Queue()
        return handle

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        """Queue work on a stream, or record it where the stream is being captured."""
        if stream in self.graphs:
            self.graphs[stream].append(work)
        else:
            self.queues[stream].work.append(work)

    def begin_capture(self, stream: int) -> None:
        self.graphs[stream] = []

    def end_capture(self, stream: int) -> list[Callable[[], None]]:
        return self.graphs.pop(stream)

    def replay(self, graph: list[Callable[[], None]], stream: int) -> None:
        for work in graph:
            self.queue(stream, work)

    def finish(self) -> None:
        """Do everything that is queued."""
        while any(queue.done < len(queue.work) for queue in self.queues.values()):
            for queue in self.queues.values():
                queue.run()

    def allocate(self, array: np.ndarray, device: int = 0, misaligned_by: int = 0) -> int:
        """Put a host array's memory on a device and return its address there."""
        address = self.memory.add(array, misaligned_by=misaligned_by)
        self.owners[address] = (device, array.nbytes, array)
        return address

    # -- contexts and devices ------------------------------------------------------------------------------

    def cuInit(self, flags: int) -> Any:
        return OK

    def cuDeviceGet(self, index: int) -> Any:
        return (
            (CUresult.CUDA_SUCCESS, index) if index < self.devices else (CUresult.CUDA_ERROR_INVALID_VALUE, 0)
        )

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
        if self.graphs:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        self.waits += 1
        self.finish()
        return OK

    # -- memory --------------------------------------------------------------------------------------------

    def cuMemAlloc(self, size: int) -> Any:
        self._need_context()
        if self.graphs:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 0
        array = np.full(size, POISON, dtype=np.uint8)
        return CUresult.CUDA_SUCCESS, self.allocate(array, self.contexts[-1] - 1)

    def cuMemFree(self, address: int) -> Any:
        self.finish()
        _, _, array = self.owners.pop(address)
        array.reshape(-1).view(np.uint8)[:] = POISON
        return OK

    def cuMemHostAlloc(self, size: int, flags: int) -> Any:
        if self.graphs:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 0
        array = np.full(size, POISON, dtype=np.uint8)
        self.host[array.ctypes.data] = array
        return CUresult.CUDA_SUCCESS, array.ctypes.data

    def cuMemFreeHost(self, address: int) -> Any:
        self.host.pop(address)[:] = POISON
        return OK

    def cuPointerGetAttribute(self, attribute: int, address: int) -> Any:
        for start, (device, size, _) in self.owners.items():
            if start <= address < start + size:
                return CUresult.CUDA_SUCCESS, device
        return CUresult.CUDA_ERROR_INVALID_VALUE, 0

    def _bytes(self, address: int, size: int) -> np.ndarray:
        for start, (_, length, array) in self.owners.items():
            if start <= address and address + size <= start + length:
                return array.reshape(-1).view(np.uint8)[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} lie in no allocation")

    def cuMemsetD8(self, address: int, value: int, size: int) -> Any:
        self._bytes(address, size)[:] = value
        return OK

    def cuMemcpyHtoD(self, target: int, source: int, size: int) -> Any:
        self.queues[0].run()
        self._bytes(target, size)[:] = np.frombuffer(ctypes.string_at(source, size), np.uint8)
        return OK

    def cuMemcpyDtoH(self, target: int, source: int, size: int) -> Any:
        self.queues[0].run()
        ctypes.memmove(target, self._bytes(source, size).tobytes(), size)
        return OK

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        self._need_pinned(source, size)

        def copy() -> None:
            self._bytes(target, size)[:] = np.frombuffer(ctypes.string_at(source, size), np.uint8)

        self.queue(stream, copy)
        return OK

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        self._need_pinned(target, size)
        self.queue(stream, lambda: ctypes.memmove(target, self._bytes(source, size).tobytes(), size) and None)
        return OK

    def _need_pinned(self, address: int, size: int) -> None:
        inside = (start <= address and address + size <= start + len(a) for start, a in self.host.items())
        assert any(inside), "an asynchronous copy from or to memory that is not page-locked"

    def _need_context(self) -> None:
        assert self.contexts[-1], "no device is current"

    # -- kernels -------------------------------------------------------------------------------------------

    def cuModuleLoadData(self, image: bytes) -> Any:
        self._need_context()
        return CUresult.CUDA_SUCCESS, image.decode()

    def cuModuleGetFunction(self, module: str, name: bytes) -> Any:
        return CUresult.CUDA_SUCCESS, parsed(module, name.decode())

    def cuLaunchKernel(
        self,
        function: Any,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        block_x: int,
        block_y: int,
        block_z: int,
        shared: int,
        stream: int,
        pointers: int,
        extra: int,
    ) -> Any:
        self._need_context()
        places = (ctypes.c_uint64 * 2).from_address(pointers)
        arguments = [ctypes.c_uint64.from_address(place).value for place in places]
        self.launches.append(function.name)
        self.queue(stream, lambda: launch(function, grid_x, block_x, arguments, self.memory) and None)
        return OK

    # -- streams and events --------------------------------------------------------------------------------

    def cuStreamSynchronize(self, stream: int) -> Any:
        if self.graphs:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        self.waits += 1
        self.queues[stream].run()
        return OK

    def cuStreamIsCapturing(self, stream: int) -> Any:
        return CUresult.CUDA_SUCCESS, CUstreamCaptureStatus(int(stream in self.graphs))

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        other, end = self.events[event]
        self.queue(stream, lambda: self.queues[other].run(end))
        return OK

    def cuEventCreate(self, flags: int) -> Any:
        handle = self._handle()
        self.events[handle] = (0, 0)
        return CUresult.CUDA_SUCCESS, handle

    def cuEventDestroy(self, event: int) -> Any:
        del self.events[event]
        return OK

    def cuEventRecord(self, event: int, stream: int) -> Any:
        self.events[event] = (stream, len(self.queues[stream].work))
        return OK

    def cuEventSynchronize(self, event: int) -> Any:
        if self.graphs:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        stream, end = self.events[event]
        self.waits += self.queues[stream].done < end
        self.queues[stream].run(end)
        return OK

    def cuEventQuery(self, event: int) -> Any:
        if self.graphs:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        stream, end = self.events[event]
        return OK if self.queues[stream].done >= end else (CUresult.CUDA_ERROR_NOT_READY,)

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
