"""Schedules from text, without ``eval``: for command lines and configuration files."""

import ast
import difflib
import inspect
import math
import operator as operators
from collections.abc import Callable
from typing import Any

from numba_lamb._text import shorten

from . import (
    compose,
    cosine,
    decay,
    layerwise,
    paddle,
    phases,
    piecewise,
    samples,
    tables,
    warmbooting,
    warmup,
)
from ._base import LearningRateSchedule

__all__ = ["parse"]

MAX_TABLE = 1_000_000
"""Values that the tables of one expression may have together: a few characters can ask for any number."""


def _known() -> dict[str, Callable[..., Any]]:
    """Return the public schedules and functions that make schedules or tables, by name."""
    modules = (
        compose,
        cosine,
        decay,
        layerwise,
        paddle,
        phases,
        piecewise,
        samples,
        tables,
        warmbooting,
        warmup,
    )
    public = {name: getattr(module, name) for module in modules for name in module.__all__}
    return {
        name: item
        for name, item in public.items()
        if inspect.isfunction(item) or issubclass(item, LearningRateSchedule)
    }


_KNOWN = _known()

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operators.add,
    ast.Sub: operators.sub,
    ast.Mult: operators.mul,
    ast.Div: operators.truediv,
    ast.FloorDiv: operators.floordiv,
    ast.Pow: operators.pow,
}
_LARGEST = 2**63
"""The largest whole result: a few characters can ask for one that would take all memory."""

_LENGTHS = {**dict.fromkeys(tables.__all__, "total_step"), **dict.fromkeys(piecewise.__all__, "milestone")}
"""The argument that says how long a table is."""


def parse(expression: str) -> LearningRateSchedule:
    """Return the schedule that an expression describes.

    .. code-block:: text

        expression = name "(" arguments ")"
        argument   = number | string | True | False | None | list | tuple | expression
        number     = literal | number operator number | "(" number ")" | "-" number
        operator   = "+" | "-" | "*" | "/" | "//" | "**"

    Parameters
    ----------
    expression : str
        A call of a schedule of this package, with literals, constant arithmetic such as ``10**5``, lists and
        tuples of them, and further such calls as arguments, by position or by name. A whole result of
        arithmetic is at most 2**63.

    Returns
    -------
    LearningRateSchedule
        The schedule.

    Raises
    ------
    TypeError
        If ``expression`` is not a string.
    ValueError
        If it is not of this form, names something unknown, asks for tables of more than 1,000,000 values
        together, or the schedule refuses its arguments; the message shows the piece at fault.

    Notes
    -----
    The text is read by :mod:`ast` and never evaluated: only arithmetic of numbers and the names of this package's
    schedules, tables and ways to compose them are known.

    Examples
    --------
    >>> from numba_lamb.schedules import parse
    >>> parse("CosineWithWarmUpLR(1e-3, warmup_steps=100, total_steps=1000)")(50)
    0.0005
    >>> parse("WarmUpLR(0.1, 10**5 // 2)")(10**4)
    0.02
    >>> parse("sequence([WarmUpLR(0.5, 2), 0.5], [2])")([0, 1, 2])
    array([0.  , 0.25, 0.5 ])
    """
    if not isinstance(expression, str):
        raise TypeError(f"expression must be a string, got {expression!r}")
    text = expression.strip()
    try:
        tree = ast.parse(text, mode="eval").body
        value = _Reading(text).value(tree)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"cannot read {shorten(expression)!r} as a schedule: {shorten(str(error))}"
        ) from None
    if isinstance(value, LearningRateSchedule):
        return value
    shown = shorten(text)
    if isinstance(tree, ast.Call):
        raise ValueError(f"{shown!r} is a table: hold_last({shown}) is a schedule")
    raise ValueError(f"{shown!r} is not a schedule: a call such as WarmUpLR(0.1, 100) is wanted")


class _Reading:
    """One expression while it is read: its text, and how many values its tables may still have."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._left = MAX_TABLE

    def value(self, node: ast.expr) -> Any:
        """Return what a node stands for."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as literal):
                return literal
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                number = self._number(operand, node)
                return -number if isinstance(sign, ast.USub) else number
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
                return self._result(node, self._number(left, node), operator, self._number(right, node))
            case ast.List(elts=items):
                return [self.value(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self.value(item) for item in items)
            case ast.Call(func=ast.Name(id=name)):
                return self._call(name, node)
            case ast.Name(id=name) if name in _KNOWN:
                raise ValueError(f"{name!r} needs its arguments: {name}(...)")
            case ast.Name(id=name):
                raise ValueError(_unknown(name))
        raise ValueError(f"{self._source(node)!r} is neither a literal nor a call of a schedule")

    def _number(self, node: ast.expr, whole: ast.expr) -> int | float:
        """Return what a node of the arithmetic `whole` stands for."""
        found = self.value(node)
        if type(found) not in (int, float):
            raise ValueError(
                f"{self._source(whole)!r} is neither a literal nor a call of a schedule, nor arithmetic of numbers"
            )
        number: int | float = found
        return number

    def _result(self, node: ast.expr, left: int | float, operator: ast.operator, right: int | float) -> Any:
        """Return a result, of which none that is too large is ever made."""
        allowed = f"{self._source(node)!r} must be a real number of at most 2**63 if it is whole"
        if isinstance(operator, ast.Pow) and isinstance(left, int) and isinstance(right, int):
            bits = (abs(left).bit_length() - 1) * right
            if bits > _LARGEST.bit_length():
                raise ValueError(f"{allowed}, got more")
        try:
            found = _ARITHMETIC[type(operator)](left, right)
        except (ArithmeticError, ValueError) as error:
            raise ValueError(f"{allowed}: {error}") from None
        if isinstance(found, complex) or (isinstance(found, float) and not math.isfinite(found)):
            raise ValueError(f"{allowed}, got {found}")
        if isinstance(found, int) and abs(found) > _LARGEST:
            raise ValueError(f"{allowed}, got more")
        return found

    def _call(self, name: str, node: ast.Call) -> Any:
        """Return what a call of a known name gives."""
        if name not in _KNOWN:
            raise ValueError(_unknown(name))
        arguments = [self.value(argument) for argument in node.args]
        keywords: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ValueError(f"{self._source(node)!r}: ** cannot be used here")
            if keyword.arg in keywords:
                raise ValueError(f"{self._source(node)!r}: {shorten(keyword.arg)} is given twice")
            keywords[keyword.arg] = self.value(keyword.value)
        try:
            self._make_room(name, arguments, keywords)
            return _KNOWN[name](*arguments, **keywords)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self._source(node)!r}: {shorten(str(error), 300)}") from error

    def _make_room(self, name: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
        """Raise if a call asks for a table that is too long; before it is made."""
        if name not in _LENGTHS:
            return
        argument = _LENGTHS[name]
        given = inspect.signature(_KNOWN[name]).bind(*arguments, **keywords).arguments.get(argument)
        lengths = given if isinstance(given, list | tuple) else [given]
        longest = max((length for length in lengths if isinstance(length, int)), default=0)
        if longest > self._left:
            raise ValueError(
                f"{argument} must be at most {self._left:,}, got {longest}: "
                f"tables of an expression have at most {MAX_TABLE:,} values together"
            )
        self._left -= longest

    def _source(self, node: ast.expr) -> str:
        return shorten(ast.get_source_segment(self._text, node) or self._text)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, _KNOWN, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(_KNOWN))}"
    return f"unknown schedule {shorten(name)!r}: {hint}"
