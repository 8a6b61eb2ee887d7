"""Find products that the assembler may fuse with a following sum, which would round once instead of twice."""

from collections.abc import Iterator

from tests.cuda.ptx.parser import Instruction, Kernel, parse, split_operands

FLOATS = {"f32", "f64", "f32x2"}
# A value may pass through these unchanged but for its sign or place.
PASSING = {"mov", "selp", "neg", "abs"}


def contracted(ptx: str, name: str | None = None) -> list[str]:
    """Return where the result of a ``mul`` without ``.rn`` can reach an ``add`` or ``sub``: ``mul -> add``.

    The way of a value is followed through registers without regard to the order of the code: a place may be
    reported that is never reached, and none that goes through registers is missed.
    """
    kernel = parse(ptx, name)
    origins: dict[str, dict[str, None]] = {}
    for instruction in kernel.code:
        if free_product(instruction):
            for register in registers_of(kernel, instruction.operands[0]):
                origins.setdefault(register, {})[instruction.text] = None
    while spread(kernel, origins):
        pass
    return [f"{origin} -> {place}" for place, origin in arrivals(kernel, origins)]


def free_product(instruction: Instruction) -> bool:
    return (
        instruction.opcode == "mul"
        and instruction.modifiers[-1] in FLOATS
        and "rn" not in instruction.modifiers
    )


def spread(kernel: Kernel, origins: dict[str, dict[str, None]]) -> bool:
    """Follow every move once; say whether that led anywhere new."""
    before = sum(map(len, origins.values()))
    for instruction in kernel.code:
        if instruction.opcode in PASSING:
            arriving = dict.fromkeys(sources(kernel, instruction, origins))
            for register in registers_of(kernel, instruction.operands[0]) if arriving else ():
                origins.setdefault(register, {}).update(arriving)
    return sum(map(len, origins.values())) > before


def sources(kernel: Kernel, instruction: Instruction, origins: dict[str, dict[str, None]]) -> Iterator[str]:
    for operand in instruction.operands[1:]:
        for register in registers_of(kernel, operand):
            yield from origins.get(register, ())


def arrivals(kernel: Kernel, origins: dict[str, dict[str, None]]) -> Iterator[tuple[str, str]]:
    for instruction in kernel.code:
        if instruction.opcode in ("add", "sub") and instruction.modifiers[-1] in FLOATS:
            for origin in dict.fromkeys(sources(kernel, instruction, origins)):
                yield instruction.text, origin


def registers_of(kernel: Kernel, operand: str) -> list[str]:
    """Return the registers in an operand, which may be a vector."""
    return [member for member in split_operands(operand.strip("{} ")) if member in kernel.registers]
