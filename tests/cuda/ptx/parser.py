"""PTX text as data: one kernel's parameters, registers, variables, labels and instructions."""

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.cuda.ptx.errors import PtxError

NAME = r"[%$\w][\w$]*"
ENTRY = re.compile(rf"\.entry\s+({NAME})\s*(?:\((.*?)\))?([^{{;]*)\{{", re.S)
LABEL = re.compile(rf"({NAME})\s*:(?!:)")
GUARD = re.compile(rf"@(!?)\s*({NAME})\s+")
VARIABLE = re.compile(r"\.(shared|local)\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]")
TABLE = re.compile(r"\.branchtargets\s+(.*)", re.S)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
LINE_MARK = re.compile(r"^\s*\.(loc|file)\b[^\n]*$", re.M)


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@!guard opcode operands``; `text` is as written."""

    text: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False


class Parameter(NamedTuple):
    """A kernel parameter: its name, and its type without the dot."""

    name: str
    kind: str


class Variable(NamedTuple):
    """A variable in shared or local memory: where it begins, counted from the start of that memory."""

    space: str
    offset: int


@dataclass
class Kernel:
    """A kernel that can be run by `ptx.interpreter.launch`."""

    name: str
    parameters: list[Parameter]
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)
    static_shared: int = 0
    local: int = 0
    max_threads: int | None = None


def parse(ptx: str, name: str | None = None) -> Kernel:
    """Return the kernel called `name`, or the only one, of a PTX module."""
    ptx = LINE_MARK.sub("", COMMENT.sub("", ptx))
    entries = {match[1]: match for match in ENTRY.finditer(ptx)}
    if name is None and len(entries) != 1:
        raise PtxError(f"give the name of a kernel: the module has {len(entries)}")
    if name is not None and name not in entries:
        raise PtxError(f"no kernel {name}; the module has: {', '.join(entries)}")
    entry = entries[name] if name is not None else next(iter(entries.values()))
    kernel = Kernel(entry[1], [parameter(text) for text in split_operands(entry[2] or "")])
    bounds = re.search(r"\.maxntid\s+([\d\s,]+)", entry[3])
    if bounds:
        kernel.max_threads = math.prod(int(size) for size in bounds[1].split(","))
    body = ptx[entry.end() : end_of_scope(ptx, entry.end())]
    outside = ptx[: ptx.index(".entry")]
    declare_variables(kernel, outside + body)
    BodyParser(kernel, body).run()
    return kernel


def parameter(text: str) -> Parameter:
    """Read ``.param .u64 .ptr .align 1 name``."""
    words = text.split()
    if words[0] != ".param" or "[" in words[-1]:
        raise PtxError(f"unknown kind of parameter: {text}")
    return Parameter(words[-1], words[1].removeprefix("."))


def declare_variables(kernel: Kernel, text: str) -> None:
    """Lay out shared and local variables; dynamic shared memory comes last, at its own alignment."""
    ends = {"shared": 0, "local": 0}
    dynamic = []
    for space, alignment, name, size in VARIABLE.findall(text):
        if not size or size == "0":
            dynamic.append((space, int(alignment), name))
            continue
        offset = round_up(ends[space], int(alignment))
        kernel.variables[name] = Variable(space, offset)
        ends[space] = offset + int(size)
    for space, alignment, name in dynamic:
        kernel.variables[name] = Variable(space, round_up(ends[space], alignment))
    kernel.static_shared, kernel.local = ends["shared"], ends["local"]


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def end_of_scope(text: str, start: int) -> int:
    """Return where the brace closes that was opened just before `start`."""
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return start + match.start()
    raise PtxError("a brace is not closed")


def split_operands(text: str) -> list[str]:
    """Split at the commas outside braces and brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()] if current.strip() else parts


class BodyParser:
    """Reads a kernel's body; registers declared in an inner scope are renamed, so that scopes may reuse names."""

    def __init__(self, kernel: Kernel, body: str) -> None:
        self.kernel, self.body = kernel, body
        self.scopes: list[dict[str, str]] = [{}]
        self.scopes_seen = 0

    def run(self) -> None:
        position, label = 0, ""
        while position < len(self.body):
            character = self.body[position]
            if character.isspace():
                position += 1
            elif character in "{}":
                self.change_scope(character)
                position += 1
            elif match := LABEL.match(self.body, position):
                label = match[1]
                self.kernel.labels[label] = len(self.kernel.code)
                position = match.end()
            else:
                end = self.body.find(";", position)
                if end < 0:
                    raise PtxError(f"unfinished statement: {self.body[position:].strip()}")
                self.statement(" ".join(self.body[position:end].split()), label)
                position = end + 1

    def change_scope(self, brace: str) -> None:
        if brace == "}":
            self.scopes.pop()
            return
        self.scopes_seen += 1
        self.scopes.append({})

    def statement(self, text: str, label: str) -> None:
        if not text.startswith("."):
            if text:
                self.kernel.code.append(self.instruction(text))
        elif text.startswith(".reg"):
            self.declare_registers(text)
        elif match := TABLE.match(text):
            self.kernel.tables[label] = split_operands(match[1])
        elif not (VARIABLE.match(text) or text.startswith(".pragma")):
            raise PtxError(f"unknown directive: {text}")

    def declare_registers(self, text: str) -> None:
        _, kind, names = text.split(maxsplit=2)
        for name in split_operands(names):
            family = re.fullmatch(r"(.+)<(\d+)>", name)
            members = [f"{family[1]}{k}" for k in range(int(family[2]))] if family else [name]
            for member in members:
                self.kernel.registers[self.declare(member)] = kind.removeprefix(".")

    def declare(self, name: str) -> str:
        unique = name if len(self.scopes) == 1 else f"{name}@{self.scopes_seen}"
        self.scopes[-1][name] = unique
        return unique

    def instruction(self, text: str) -> Instruction:
        guard = GUARD.match(text)
        rest = text[guard.end() :] if guard else text
        opcode, _, operands = rest.partition(" ")
        name, *modifiers = opcode.split(".")
        return Instruction(
            text,
            name,
            tuple(modifiers),
            tuple(self.resolve(operand) for operand in split_operands(operands)),
            self.resolve(guard[2]) if guard else "",
            bool(guard and guard[1]),
        )

    def resolve(self, operand: str) -> str:
        """Replace the names of inner registers by their unique names."""
        if len(self.scopes) == 1:
            return operand
        return re.sub(NAME, lambda match: self.unique(match[0]), operand)

    def unique(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)
