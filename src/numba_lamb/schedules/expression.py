"""Schedules from text, without ``eval``: for command lines and configuration files."""

import ast
import difflib
import inspect
from collections.abc import Callable
from typing import Any

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


def parse(expression: str) -> LearningRateSchedule:
    """Return the schedule that an expression describes.

    .. code-block:: text

        expression = name "(" arguments ")"
        argument   = number | string | True | False | None | list | tuple | expression

    Parameters
    ----------
    expression : str
        A call of a schedule of this package, with literals, lists and tuples of them, and further such calls
        as arguments, by position or by name.

    Returns
    -------
    LearningRateSchedule
        The schedule.

    Raises
    ------
    TypeError
        If ``expression`` is not a string.
    ValueError
        If it is not of this form, names something unknown, or the schedule refuses its arguments; the message
        shows the piece at fault.

    Notes
    -----
    Nothing is evaluated: the text is read by :mod:`ast`, and only the names of this package's schedules,
    tables and ways to compose them are known.

    Examples
    --------
    >>> from numba_lamb.schedules import parse
    >>> parse("CosineWithWarmUpLR(1e-3, warmup_steps=100, total_steps=1000)")(50)
    0.0005
    >>> parse("sequence([WarmUpLR(0.5, 2), 0.5], [2])")([0, 1, 2])
    array([0.  , 0.25, 0.5 ])
    """
    if not isinstance(expression, str):
        raise TypeError(f"expression must be a string, got {expression!r}")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        value = _value(tree, expression.strip())
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"cannot read {_shorten(expression)!r} as a schedule: {error}") from None
    if isinstance(value, LearningRateSchedule):
        return value
    if isinstance(tree, ast.Call):
        raise ValueError(f"{expression!r} is a table: hold_last({expression.strip()}) is a schedule")
    raise ValueError(f"{expression!r} is not a schedule: a call such as WarmUpLR(0.1, 100) is wanted")


def _value(node: ast.expr, text: str) -> Any:
    """Return what a node stands for."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as literal):
            return literal
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            if not isinstance(number, bool):
                return -number
        case ast.List(elts=items):
            return [_value(item, text) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item, text) for item in items)
        case ast.Call(func=ast.Name(id=name)):
            return _call(name, node, text)
        case ast.Name(id=name) if name in _KNOWN:
            raise ValueError(f"{name!r} needs its arguments: {name}(...)")
        case ast.Name(id=name):
            raise ValueError(_unknown(name))
    raise ValueError(f"{_source(node, text)!r} is neither a literal nor a call of a schedule")


def _call(name: str, node: ast.Call, text: str) -> Any:
    """Return what a call of a known name gives."""
    if name not in _KNOWN:
        raise ValueError(_unknown(name))
    arguments = [_value(argument, text) for argument in node.args]
    keywords: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError(f"{_source(node, text)!r}: ** cannot be used here")
        if keyword.arg in keywords:
            raise ValueError(f"{_source(node, text)!r}: {keyword.arg} is given twice")
        keywords[keyword.arg] = _value(keyword.value, text)
    try:
        return _KNOWN[name](*arguments, **keywords)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{_source(node, text)!r}: {error}") from error


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, _KNOWN, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(_KNOWN))}"
    return f"unknown schedule {name!r}: {hint}"


def _source(node: ast.expr, text: str) -> str:
    return _shorten(ast.get_source_segment(text, node) or text)


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
