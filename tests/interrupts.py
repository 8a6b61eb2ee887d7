"""Interrupts at chosen places: a KeyboardInterrupt where Python itself would raise one for a signal."""

import dis
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# After these the interpreter looks whether a signal came.
_LOOKS = ("CALL", "RESUME", "JUMP_BACKWARD", "SEND")
_cache: dict[Any, dict[int, bool]] = {}


def _looks(frame: FrameType, at: int) -> bool:
    code = frame.f_code
    if code not in _cache:
        _cache[code] = {
            instruction.offset: instruction.opname.startswith(_LOOKS)
            for instruction in dis.get_instructions(code)
        }
    return _cache[code].get(at, False)


class Interrupter:
    """Raises KeyboardInterrupt at the `number`-th place that a call passes in files under `inside`, from 0 on."""

    def __init__(self, number: int, inside: str) -> None:
        self.left, self.inside = number, inside
        self.passed: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self.inside not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            before = self.passed.get(frame, -1)
            self.passed[frame] = frame.f_lasti
            if before >= 0 and _looks(frame, before):
                self.left -= 1
                if self.left < 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
        return self


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector off: an interrupt in a callback of it (JAX has one) reaches nobody."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def interrupted(call: Callable[[], Any], number: int, inside: str = "") -> bool:
    """Make a call, interrupted at its `number`-th place; return whether it has so many."""
    before = sys.gettrace()
    with uncollected():
        sys.settrace(Interrupter(number, inside))
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
    return False
