"""One CUDA device: memory, streams, copies and launches. The only file that calls the driver.

It uses the driver API of ``cuda.bindings`` and each device's primary context, which is also what PyTorch, CuPy and
Numba use, so that addresses and streams mean the same to all of them.
"""

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEGACY_STREAM = 0
"""The default stream, with which all ordinary streams of a device are ordered."""
THREADS = 128
"""Threads in a block: four warps, so that a finished chunk frees its place soon."""
WARPS = THREADS // 32

_devices: dict[int, "Device"] = {}


def driver() -> Any:
    """Return the module of driver functions, or raise how to install it."""
    try:
        from cuda.bindings import driver as functions
    except ImportError as error:
        raise ImportError(
            "arrays on a GPU need the extra that fits its driver: pip install 'numba-lamb[cuda13]' "
            "(driver 580 or newer) or 'numba-lamb[cuda12]'"
        ) from error
    return functions


def call(name: str, *arguments: Any) -> Any:
    """Call a driver function and return what it gives besides its status, or raise what the driver says."""
    functions = driver()
    status, *given = getattr(functions, name)(*arguments)
    if status != functions.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{name} failed: {getattr(status, 'name', status)}")
    return given[0] if len(given) == 1 else tuple(given)


def open_device(index: int) -> "Device":
    """Return the device with this index."""
    if index not in _devices:
        _devices[index] = Device(index)
    return _devices[index]


def device_of(address: int) -> int | None:
    """Return the index of the device that memory belongs to, None for memory that is no device's."""
    functions = driver()
    call("cuInit", 0)
    attribute = functions.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    status, index = functions.cuPointerGetAttribute(attribute, address)
    return int(index) if status == functions.CUresult.CUDA_SUCCESS else None


class Buffer:
    """Device memory, given back when this goes."""

    def __init__(self, device: "Device", nbytes: int) -> None:
        self.device = device
        self.nbytes = nbytes
        self.address = int(call("cuMemAlloc", max(nbytes, 1)))
        weakref.finalize(self, _release, device, "cuMemFree", self.address)


class Event:
    """A point in a stream's work."""

    def __init__(self, device: "Device") -> None:
        self._handle = call("cuEventCreate", driver().CUevent_flags.CU_EVENT_DISABLE_TIMING)
        weakref.finalize(self, _release, device, "cuEventDestroy", self._handle)

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
        functions = driver()
        call("cuInit", 0)
        self.index = index
        handle = call("cuDeviceGet", index)
        self._context = call("cuDevicePrimaryCtxRetain", handle)
        numbers = functions.CUdevice_attribute
        self.capability: tuple[int, int] = (
            int(call("cuDeviceGetAttribute", numbers.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle)),
            int(call("cuDeviceGetAttribute", numbers.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle)),
        )
        self._functions: dict[tuple[str, str], Any] = {}
        self.spare: dict[tuple[tuple[int, ...], str], list[_Piece]] = {}
        """Page-locked pieces that nobody uses now, by form."""

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the calling thread's device for a while."""
        if int(call("cuCtxGetCurrent")) == int(self._context):
            yield
            return
        call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent")

    def function(self, name: str, dtype: np.dtype[Any], image: Any) -> Any:
        """Return a loaded kernel; `image` is called for its machine code when it is first asked for."""
        key = (name, dtype.name)
        if key not in self._functions:
            module = call("cuModuleLoadData", image())
            self._functions[key] = call("cuModuleGetFunction", module, name.encode())
        return self._functions[key]

    def zeros(self, nbytes: int) -> Buffer:
        """Return device memory filled with zero bytes."""
        buffer = Buffer(self, nbytes)
        if nbytes:
            call("cuMemsetD8", buffer.address, 0, nbytes)
        return buffer

    def write(self, address: int, values: NDArray[Any]) -> None:
        """Copy a contiguous host array to `address` and wait for it."""
        if values.nbytes:
            call("cuMemcpyHtoD", address, values.ctypes.data, values.nbytes)

    def read(self, address: int, values: NDArray[Any]) -> None:
        """Copy from `address` into a contiguous host array, after all work queued on the device so far."""
        self.finish()
        if values.nbytes:
            call("cuMemcpyDtoH", values.ctypes.data, address, values.nbytes)

    def finish(self) -> None:
        """Wait for all work queued on the device so far."""
        call("cuCtxSynchronize")

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

    def __init__(self, function: Any, warps: int, book: int, scalars: int) -> None:
        self._function = function
        self._blocks = max(1, -(-warps // WARPS))
        self._values = np.array([book, scalars], dtype=np.uint64)
        first = self._values.ctypes.data
        self._pointers = np.array([first, first + 8], dtype=np.uint64)
        self._arguments = self._pointers.ctypes.data
        self._start = driver().cuLaunchKernel
        self._success = driver().CUresult.CUDA_SUCCESS

    def __call__(self, stream: int) -> None:
        """Queue the kernel on `stream`."""
        (status,) = self._start(
            self._function, self._blocks, 1, 1, THREADS, 1, 1, 0, stream, self._arguments, 0
        )
        if status != self._success:
            raise RuntimeError(f"cuLaunchKernel failed: {getattr(status, 'name', status)}")


class Mirror:
    """A small host table and its copy on the device, which follows it in stream order without waiting.

    Copies start from page-locked memory, of which there are several pieces in turn, so that one can be written
    while the copy from another is still to come. A copy that a graph captures keeps its piece for good, because
    each replay reads it.

    Parameters
    ----------
    device : Device
        Where the copy lives.
    values : array
        The table; what changes in it is sent by `send`.
    pieces : int
        Copies that can be under way before `send` waits for the oldest.
    """

    def __init__(self, device: Device, values: NDArray[Any], pieces: int = 8) -> None:
        self.device = device
        self.values = values
        self.buffer = Buffer(device, values.nbytes)
        self._sent = b""
        self._pieces = [_Piece(device, values) for _ in range(pieces)]
        self._captured: list[_Piece] = []
        self._next = 0
        self.send(LEGACY_STREAM)
        device.synchronize(LEGACY_STREAM)

    @property
    def address(self) -> int:
        """Where the device's copy lies."""
        return self.buffer.address

    def send(self, stream: int, capturing: bool = False) -> None:
        """Queue a copy of the table on `stream` if it differs from what was sent last."""
        content = self.values.tobytes()
        if content == self._sent or not content:
            return
        piece = self._take(capturing)
        piece.host[...] = self.values
        call("cuMemcpyHtoDAsync", self.address, piece.host.ctypes.data, piece.host.nbytes, stream)
        if not capturing:
            piece.event.record(stream)
        self._sent = content

    def forget(self) -> None:
        """Have the next `send` copy whatever the table holds: a replayed graph may have sent something else."""
        self._sent = b""

    def _take(self, capturing: bool) -> "_Piece":
        if capturing:
            if len(self._pieces) == 1:
                raise RuntimeError(
                    "too many captured graphs hold a table of this optimizer; run one step outside of capture"
                )
            piece = self._pieces.pop(self._next % len(self._pieces))
            self._captured.append(piece)
            return piece
        if len(self._pieces) < 4:
            self._pieces += [_Piece(self.device, self.values) for _ in range(4)]
        piece = self._pieces[self._next % len(self._pieces)]
        self._next += 1
        piece.event.wait()
        return piece


class _Piece:
    """Page-locked host memory shaped as a table, and the mark behind the last copy from or to it."""

    def __init__(self, device: Device, like: NDArray[Any]) -> None:
        self.host = page_locked(device, like.shape, like.dtype)
        self.event = Event(device)


class Snapshot:
    """A small table as it is on the device at one point of a stream; only reading it waits.

    Parameters
    ----------
    device : Device
        Where the table is.
    address : int
        Where it begins.
    like : array
        Its form.
    stream : int
        The stream that writes it.
    """

    def __init__(self, device: Device, address: int, like: NDArray[Any], stream: int) -> None:
        spare = device.spare.setdefault((like.shape, like.dtype.str), [])
        # Page-locking memory takes far longer than copying into it, so pieces are used again.
        self._piece: _Piece = spare.pop() if spare else _Piece(device, like)
        weakref.finalize(self, spare.append, self._piece)
        if like.nbytes:
            call("cuMemcpyDtoHAsync", self._piece.host.ctypes.data, address, like.nbytes, stream)
        self._piece.event.record(stream)

    def is_ready(self) -> bool:
        """Return whether reading would not wait."""
        return self._piece.event.is_reached()

    def read(self) -> NDArray[Any]:
        """Return the values, after waiting for the copy."""
        self._piece.event.wait()
        return self._piece.host.copy()


class _Memory:
    """Memory that NumPy can look at and that somebody else owns."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


def page_locked(device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a host array that copies to and from the device need not wait for; given back when it goes."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    address = int(call("cuMemHostAlloc", max(nbytes, 1), 0))
    memory = _Memory(address, shape, dtype)
    weakref.finalize(memory, _release, device, "cuMemFreeHost", address)
    return np.asarray(memory)


def stream_address(stream: object) -> int:
    """Return the address of a stream given as an int or as an object of PyTorch, CuPy, Numba or cuda.core."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    for attribute in ("cuda_stream", "ptr", "handle"):
        value = getattr(stream, attribute, None)
        if value is not None:
            # A ctypes pointer holds None for address 0.
            return int(getattr(value, "value", value) or 0)
    raise TypeError(
        "stream must be an int address or a stream of PyTorch, CuPy, Numba or cuda.core, "
        f"not {type(stream).__name__}"
    )


def current_stream(library: str | None, index: int) -> int:
    """Return the stream on which `library` (``"torch"``, ``"cupy"`` or None) queues work of this thread now."""
    module: Any = sys.modules.get(library) if library else None
    if library == "torch" and module is not None:
        return int(module.cuda.current_stream(index).cuda_stream)
    if library == "cupy" and module is not None:
        return int(module.cuda.get_current_stream().ptr)
    return LEGACY_STREAM


def _release(device: Device, name: str, handle: Any) -> None:
    # At the end of a process the driver may be gone before us, and takes all its memory with it.
    if sys.is_finalizing():
        return
    try:
        with device.current():
            call(name, handle)
    except RuntimeError:
        pass
