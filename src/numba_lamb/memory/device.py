"""One CUDA device: streams, copies and launches. Only this file and `cuda_memory` call the driver.

It uses the driver API of ``cuda.bindings`` and each device's primary context, which is also what PyTorch, CuPy and
Numba use, so that addresses and streams mean the same to all of them.
"""

import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import call as call_without_arguments
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb._install import how_to_install
from numba_lamb.kernels.cuda.fields import THREADS

LEGACY_STREAM = 0
"""The default stream, with which all ordinary streams of a device are ordered."""
PER_THREAD_STREAM = 2
"""A stream that each thread has its own of."""

_LEGACY_BY_NAME = 1
_devices: dict[int, "Device"] = {}
_process: int | None = None
"""The process that started the driver."""


def driver() -> Any:
    """Return the module of driver functions, or raise how to install it."""
    try:
        from cuda.bindings import driver as functions
    except ImportError as error:
        raise ImportError(
            f"arrays on a GPU need the extra that fits its driver: {how_to_install('cuda13')} (driver 580 or "
            "newer; cuda12 in its place serves older ones)"
        ) from error
    return functions


def call(name: str, *arguments: Any) -> Any:
    """Call a driver function and return what it gives besides its status, or raise what the driver says."""
    status, *given = getattr(driver(), name)(*arguments)
    check(name, status)
    return given[0] if len(given) == 1 else tuple(given)


def check(name: str, status: Any) -> None:
    """Raise what the driver says unless its function `name` succeeded."""
    if status != driver().CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{name} failed: {getattr(status, 'name', status)}")


def start() -> None:
    """Start the driver, once in a process; raise in a process that was forked from one that did."""
    global _process
    if _process is None:
        results = driver().CUresult
        (status,) = driver().cuInit(0)
        # Said where another library had started the driver before the fork.
        if status != results.CUDA_ERROR_NOT_INITIALIZED:
            check("cuInit", status)
            _process = os.getpid()
    if _process != os.getpid():
        raise RuntimeError(
            f"arrays on a GPU must be used in the process that started CUDA, got process {os.getpid()}, which was "
            "forked from it; start processes with multiprocessing.get_context('spawn')"
        )


def open_device(index: int) -> "Device":
    """Return the device with this index."""
    if index not in _devices:
        _devices[index] = Device(index)
    return _devices[index]


def device_of(address: int) -> int | None:
    """Return the index of the device that memory belongs to, None for memory that is no device's."""
    start()
    functions = driver()
    attribute = functions.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    status, index = functions.cuPointerGetAttribute(attribute, address)
    return int(index) if status == functions.CUresult.CUDA_SUCCESS else None


@contextmanager
def allocating() -> Iterator[None]:
    """Allow this thread what touches no stream, as allocating memory, while a stream is captured.

    PyTorch captures in global mode, in which all threads are forbidden it.
    """
    mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = call("cuThreadExchangeStreamCaptureMode", mode)
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", before)


class Event:
    """A point in a stream's work."""

    def __init__(self, device: "Device") -> None:
        self._handle = call("cuEventCreate", driver().CUevent_flags.CU_EVENT_DISABLE_TIMING)
        weakref.finalize(self, _destroy, device, self._handle)

    def record(self, stream: int) -> None:
        """Mark what is queued on `stream` so far."""
        call("cuEventRecord", self._handle, stream)

    def hold(self, stream: int) -> None:
        """Have `stream` wait for the mark, without waiting here."""
        call("cuStreamWaitEvent", stream, self._handle, 0)

    def wait(self) -> None:
        """Wait for the mark to be reached."""
        call("cuEventSynchronize", self._handle)

    def is_reached(self) -> bool:
        """Return whether everything before the mark is done."""
        functions = driver()
        (status,) = functions.cuEventQuery(self._handle)
        return bool(status == functions.CUresult.CUDA_SUCCESS)


class Device:
    """A GPU and its primary context.

    Parameters
    ----------
    index : int
        As the driver counts devices.
    """

    def __init__(self, index: int) -> None:
        start()
        functions = driver()
        self.index = index
        handle = call("cuDeviceGet", index)
        self._context = call("cuDevicePrimaryCtxRetain", handle)
        numbers = functions.CUdevice_attribute
        self.capability: tuple[int, int] = (
            int(call("cuDeviceGetAttribute", numbers.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle)),
            int(call("cuDeviceGetAttribute", numbers.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle)),
        )
        self._functions: dict[tuple[str, str], Any] = {}
        self._parked: deque[tuple[str, int]] = deque()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the calling thread's device for a while."""
        start()
        if int(call("cuCtxGetCurrent")) == int(self._context):
            yield
            return
        call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent")

    def has_function(self, name: str, dtype: np.dtype[Any]) -> bool:
        """Return whether a kernel is loaded."""
        return (name, dtype.name) in self._functions

    def function(self, name: str, dtype: np.dtype[Any], image: Callable[[], bytes]) -> Any:
        """Return a loaded kernel; `image` is called for its machine code when it is first asked for."""
        if not self.has_function(name, dtype):
            module = call("cuModuleLoadData", image())
            self._functions[name, dtype.name] = call("cuModuleGetFunction", module, name.encode())
        return self._functions[name, dtype.name]

    def write(self, address: int, values: NDArray[Any]) -> None:
        """Copy a contiguous host array to `address` and wait for it."""
        if values.nbytes:
            call("cuMemcpyHtoD", address, values.ctypes.data, values.nbytes)
            # It returns when the host array may change, which can be before the copy is there.
            self.synchronize(LEGACY_STREAM)

    def read(self, address: int, values: NDArray[Any]) -> None:
        """Copy from `address` into a contiguous host array, after all work queued on the device so far."""
        self.finish()
        if values.nbytes:
            call("cuMemcpyDtoH", values.ctypes.data, address, values.nbytes)

    def send(self, address: int, values: NDArray[Any], stream: int) -> None:
        """Queue a copy of a page-locked array to `address`."""
        call("cuMemcpyHtoDAsync", address, values.ctypes.data, values.nbytes, stream)

    def fetch(self, values: NDArray[Any], address: int, stream: int) -> None:
        """Queue a copy from `address` into a page-locked array."""
        call("cuMemcpyDtoHAsync", values.ctypes.data, address, values.nbytes, stream)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy within the device."""
        call("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def park(self, name: str, address: int) -> None:
        """Have the driver's function `name` free memory later, at the next wait for the device.

        Finalizers free memory so: they run at any time, and the driver waits for the device before memory is
        free, which spoils whatever capture is under way.
        """
        self._parked.append((name, address))

    def free_parked(self, *streams: int) -> None:
        """Free what is parked, for which the device is waited for, unless one of `streams` is being captured."""
        if self._parked and not any(map(self.is_capturing, streams)):
            self.finish()

    def finish(self) -> None:
        """Wait for all work queued on the device so far; free what was parked before."""
        # Each is one thread's to free; what is parked during the wait stays for the next.
        parked = list(self._take_parked())
        try:
            call("cuCtxSynchronize")
            while parked:
                call(*parked.pop())
        finally:
            self._parked.extend(parked)

    def _take_parked(self) -> Iterator[tuple[str, int]]:
        while self._parked:
            try:
                yield self._parked.popleft()
            except IndexError:
                # Another thread took the last.
                return

    def synchronize(self, stream: int) -> None:
        """Wait for what is queued on `stream`."""
        call("cuStreamSynchronize", stream)

    def is_capturing(self, stream: int) -> bool:
        """Return whether `stream` is being captured into a graph."""
        functions = driver()
        if stream == LEGACY_STREAM:
            # It cannot be captured, and asking while another stream is would end that capture.
            return False
        status = call("cuStreamIsCapturing", stream)
        return bool(status == functions.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE)

    def order(self, before: int, after: int) -> None:
        """Have stream `after` wait for what is queued on stream `before`."""
        if before != after:
            event = Event(self)
            event.record(before)
            event.hold(after)


class Launch:
    """A kernel bound to its grid and its two pointers, so that starting it costs one driver call."""

    def __init__(self, function: Any, blocks: int, args: int, hyper: int) -> None:
        self._function = function
        self._blocks = max(1, blocks)
        self._values = np.array([args, hyper], dtype=np.uint64)
        first = self._values.ctypes.data
        self._pointers = np.array([first, first + 8], dtype=np.uint64)
        self._arguments = self._pointers.ctypes.data
        self._start = driver().cuLaunchKernel

    def on(self, stream: int) -> Callable[[], Any]:
        """Return what queues the kernel on `stream`: a call of the driver, with no Python around it."""
        # The pointers are this object's.
        form = self._blocks, 1, 1, THREADS, 1, 1
        return partial(self._start, self._function, *form, 0, stream, self._arguments, 0)


def launch(calls: Sequence[Callable[[], Any]]) -> None:
    """Queue kernels: all of them or, if this is interrupted at any time, none."""
    # No Python instruction stands between two of them, at which a signal could be noticed.
    statuses = [*map(call_without_arguments, calls)]
    success = driver().CUresult.CUDA_SUCCESS
    for (status,) in statuses:
        if status != success:
            raise RuntimeError(f"cuLaunchKernel failed: {getattr(status, 'name', status)}")


def stream_address(stream: object) -> int:
    """Return the address of a stream given as an int or as an object of PyTorch, CuPy, Numba or cuda.core."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return _known_stream(stream)
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return _known_stream((protocol() if callable(protocol) else protocol)[1])
    for attribute in ("cuda_stream", "ptr", "handle"):
        value = getattr(stream, attribute, None)
        if value is not None:
            # A ctypes pointer holds None for address 0.
            return _known_stream(getattr(value, "value", value) or 0)
    raise TypeError(
        "stream must be an int address or a stream of PyTorch, CuPy, Numba or cuda.core, "
        f"not {type(stream).__name__}"
    )


def _known_stream(address: Any) -> int:
    """Return an address with the default stream, which has two, by the one that is used here."""
    if int(address) < 0:
        raise ValueError(f"stream must be the address of a stream, not {address}")
    return LEGACY_STREAM if int(address) == _LEGACY_BY_NAME else int(address)


def current_stream(library: str | None, index: int) -> int:
    """Return the stream on which `library` (``"torch"``, ``"cupy"`` or None) queues work of this thread now."""
    module: Any = sys.modules.get(library) if library else None
    if library == "torch" and module is not None:
        return _known_stream(module.cuda.current_stream(index).cuda_stream)
    if library == "cupy" and module is not None:
        return _known_stream(module.cuda.get_current_stream().ptr)
    return LEGACY_STREAM


def _destroy(device: Device, event: Any) -> None:
    # Waits for nothing. At the end of a process the driver may be gone before us, and its events with it.
    if sys.is_finalizing():
        return
    try:
        with device.current(), allocating():
            call("cuEventDestroy", event)
    except RuntimeError:
        pass
