"""What machine code needs, as the assembler wrote it into the ELF file: no tool, no driver, no option to give."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

_SECTIONS_AT, _SECTION_SIZES_AT = 0x28, 0x3A
_SECTION = "<IIQQQQIIQQ"
_VALUED = 4
_FRAME_SIZE, _LEAST_STACK, _REGISTERS = 0x11, 0x12, 0x2F


class Resources(NamedTuple):
    """What one thread takes, counting the functions that the kernel calls; spills would need a stack."""

    registers: int
    stack: int


def resources_of(image: bytes) -> Resources:
    """Return what the kernel in `image` needs.

    Read from section ``.nv.info``: attributes of four bytes (form, number, length) and, for the form that has
    a value, a symbol and a number for it.
    """
    found: dict[int, int] = {}
    for attribute, value in attributes_of(section_of(image, ".nv.info")):
        found[attribute] = max(value, found.get(attribute, 0))
    return Resources(found[_REGISTERS], max(found[_FRAME_SIZE], found.get(_LEAST_STACK, 0)))


def attributes_of(data: bytes) -> Iterator[tuple[int, int]]:
    place = 0
    while place < len(data):
        form, attribute, length = struct.unpack_from("<BBH", data, place)
        place += 4
        if form == _VALUED:
            if length == 8:
                yield attribute, struct.unpack_from("<II", data, place)[1]
            place += length


def section_of(image: bytes, name: str) -> bytes:
    (start,) = struct.unpack_from("<Q", image, _SECTIONS_AT)
    size, count, names_index = struct.unpack_from("<HHH", image, _SECTION_SIZES_AT)
    sections = [struct.unpack_from(_SECTION, image, start + k * size) for k in range(count)]
    names = sections[names_index][4]
    for section in sections:
        begin = names + section[0]
        if image[begin : image.index(b"\0", begin)].decode() == name:
            return image[section[4] : section[4] + section[5]]
    raise LookupError(f"no section {name} in the machine code")
