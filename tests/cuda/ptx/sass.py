"""What machine instructions, as ``nvdisasm`` writes them, say about the memory that is under way."""

import re

from tests.cuda.ptx.compile import Cubin, disassembly

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.M)
REGISTER = re.compile(r"\bR(\d+)\b")


def loads_in_flight(cubin: Cubin) -> int:
    """Return how many loads from global memory are issued, at most, before any of their values is used.

    They are counted in the order of the code, anew after a jump.
    """
    waiting: set[int] = set()
    most = count = 0
    for guard, opcode, operands in INSTRUCTION.findall(disassembly(cubin)):
        registers = [int(number) for number in REGISTER.findall(operands)]
        is_load = opcode.startswith("LDG")
        used = registers[1:] if is_load else registers
        leaves = opcode in ("BRA", "EXIT") and not guard and not re.match(r"!?U?P", operands)
        if leaves or waiting.intersection(used):
            waiting, count = set(), 0
        if is_load:
            width = re.search(r"\.(64|128)\b", opcode)
            waiting.update(range(registers[0], registers[0] + (int(width[1]) // 32 if width else 1)))
            count += 1
            most = max(most, count)
    return most
