"""What the double of the CUDA driver is made of: the driver's own constants, streams and captures."""

from collections.abc import Callable
from enum import IntEnum

Work = Callable[[], None]


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905


class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUpointer_attribute(IntEnum):
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9


class CUevent_flags(IntEnum):
    CU_EVENT_DISABLE_TIMING = 2


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


class CUstreamCaptureStatus(IntEnum):
    CU_STREAM_CAPTURE_STATUS_NONE = 0
    CU_STREAM_CAPTURE_STATUS_ACTIVE = 1


class Queue:
    """The work of one stream: what is done and what is still to come."""

    def __init__(self) -> None:
        self.work: list[Work | None] = []
        self.done = 0

    def run(self, end: int | None = None) -> None:
        end = len(self.work) if end is None else end
        while self.done < end:
            work = self.work[self.done]
            self.work[self.done] = None
            self.done += 1
            if work is not None:
                work()


class Capture:
    """What goes into a graph, in an order that its dependencies allow, and what spoiled it."""

    def __init__(self) -> None:
        self.work: list[Work] = []
        self.spoiled_by: list[str] = []
