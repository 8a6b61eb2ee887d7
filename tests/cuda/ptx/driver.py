"""A double of the CUDA driver: what `numba_lamb.memory.device` calls, on NumPy memory and the interpreter.

Nothing that is queued on a stream happens before somebody waits for it, which is the latest that the real driver
allows. So a host buffer that is written over too soon, a result that is read without waiting, and a stream that
does not wait for another show up as wrong values rather than by luck. A stream made by `stream` is a non-blocking
one: not even the default stream waits for it.

While a stream is captured, what the real driver forbids then fails and spoils the capture. Captures are as PyTorch
makes them (``torch.cuda.graph``: global mode): what may wait or allocate is forbidden to every thread, unless the
thread is in relaxed mode. No mode allows what does wait, for a capture has nothing that could be waited for.
"""

import ctypes
from typing import Any

import numpy as np

from tests.cuda.ptx.driver_state import LEGACY, DriverState
from tests.cuda.ptx.driver_types import (
    Capture,
    CUdevice_attribute,
    CUevent_flags,
    CUpointer_attribute,
    CUresult,
    CUstreamCaptureMode,
    CUstreamCaptureStatus,
)
from tests.cuda.ptx.interpreter import parse
from tests.cuda.ptx.relaunch import relaunch

CAPABILITY = (9, 0)
ATTRIBUTES = {
    CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: CAPABILITY[0],
    CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: CAPABILITY[1],
    CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: 132,
    CUdevice_attribute.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: 50 << 20,
}
POISON = 0xFF
TOTAL = 1 << 36

OK = (CUresult.CUDA_SUCCESS,)
UNSUPPORTED = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED


class FakeDriver(DriverState):
    """The driver's functions."""

    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUpointer_attribute = CUpointer_attribute
    CUevent_flags = CUevent_flags
    CUstreamCaptureMode = CUstreamCaptureMode
    CUstreamCaptureStatus = CUstreamCaptureStatus

    # -- capture -------------------------------------------------------------------------------------------

    def cuThreadExchangeStreamCaptureMode(self, mode: CUstreamCaptureMode) -> Any:
        before, self.mode = self.mode, mode
        return CUresult.CUDA_SUCCESS, before

    def cuStreamIsCapturing(self, stream: int) -> Any:
        if stream == LEGACY:
            self._spoil("a question about the default stream")
        else:
            assert stream in self.queues, "no such stream"
        return CUresult.CUDA_SUCCESS, CUstreamCaptureStatus(int(stream in self.captures))

    def cuStreamCreate(self, flags: int) -> Any:
        self._need_context()
        return CUresult.CUDA_SUCCESS, self.stream()

    def cuStreamBeginCapture(self, stream: int, mode: CUstreamCaptureMode) -> Any:
        self.begin_capture(stream)
        return OK

    def cuStreamEndCapture(self, stream: int) -> Any:
        if self.captures[stream].spoiled_by:
            del self.captures[stream]
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        return CUresult.CUDA_SUCCESS, self.end_capture(stream)

    # -- contexts and devices ------------------------------------------------------------------------------

    def cuInit(self, flags: int) -> Any:
        self.starts += 1
        return (self._if_own_process(),)

    def cuDriverGetVersion(self) -> Any:
        return CUresult.CUDA_SUCCESS, 13000

    def cuDeviceGet(self, index: int) -> Any:
        known = index < self.devices
        return (CUresult.CUDA_SUCCESS, index) if known else (CUresult.CUDA_ERROR_INVALID_VALUE, None)

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return CUresult.CUDA_SUCCESS, device + 1

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> Any:
        return CUresult.CUDA_SUCCESS, ATTRIBUTES[attribute]

    def cuCtxGetCurrent(self) -> Any:
        return self._if_own_process(), self.contexts[-1]

    def cuCtxPushCurrent(self, context: int) -> Any:
        self.contexts.append(context)
        return OK

    def cuCtxPopCurrent(self) -> Any:
        return CUresult.CUDA_SUCCESS, self.contexts.pop()

    def cuCtxSynchronize(self) -> Any:
        self._need_context()
        if self._spoil("waiting for the device"):
            return (UNSUPPORTED,)
        self._wait_for_all()
        return OK

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
        if self._spoil("freeing memory"):
            return (UNSUPPORTED,)
        self._wait_for_all()
        _, size, _ = self.owners.pop(address)
        if self.bytes_left is not None:
            self.bytes_left += size
        memory = self.memory
        memory.buffers = [buffer for buffer in memory.buffers if buffer.address != address]
        memory.starts = [buffer.address for buffer in memory.buffers]
        memory.views.clear()
        return OK

    def cuMemGetInfo(self) -> Any:
        self._need_context()
        used = sum(size for device, size, _ in self.owners.values() if device == self.contexts[-1] - 1)
        left = TOTAL - used if self.bytes_left is None else self.bytes_left
        return CUresult.CUDA_SUCCESS, left, TOTAL

    def cuMemHostAlloc(self, size: int, flags: int) -> Any:
        self._need_context()
        if self._is_unsafe("page-locking memory"):
            return UNSUPPORTED, None
        if self.host_bytes_left is not None and size > self.host_bytes_left:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        array = np.full(size, POISON, dtype=np.uint8)
        self.host[array.ctypes.data] = array
        return CUresult.CUDA_SUCCESS, array.ctypes.data

    def cuMemFreeHost(self, address: int) -> Any:
        self._need_context()
        # Work that is queued may still use it: unlike freeing device memory, this is not said to wait.
        if self._spoil("freeing page-locked memory"):
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
        if self._spoil("a copy that waits"):
            return (UNSUPPORTED,)
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

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        self._need_context()
        self.queue(stream, lambda: self._put(target, self._bytes(source, size).tobytes()))
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
        one_by_one = self.one_block_at_a_time

        def work() -> None:
            if self.perform is not None:
                self.perform(function.name, arguments)
            elif one_by_one:
                relaunch(function, gx, x, arguments, self.memory, resident=1)
            else:
                relaunch(function, gx, x, arguments, self.memory)

        self.queue(stream, work)
        return OK

    # -- streams and events --------------------------------------------------------------------------------

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
        if self._spoil("waiting for a mark") or isinstance(source, Capture):
            return (UNSUPPORTED,)
        self._wait_for(source, end)
        return OK

    def cuEventQuery(self, event: int) -> Any:
        self._need_context()
        source, end = self.events[event]
        if self._is_unsafe("asking for a mark") or isinstance(source, Capture):
            return (UNSUPPORTED,)
        return OK if source.done >= end else (CUresult.CUDA_ERROR_NOT_READY,)


_parsed: dict[tuple[int, str], Any] = {}


def parsed(text: str, name: str) -> Any:
    """Return a kernel, parsed once for all drivers."""
    key = (hash(text), name)
    if key not in _parsed:
        _parsed[key] = parse(text, name)
    return _parsed[key]
