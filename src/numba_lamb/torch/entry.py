"""Entry: one parameter's state, a dict that knows when it is written to."""

from collections.abc import Callable, Mapping
from typing import Any


def _counted(method: Callable[..., Any]) -> Callable[..., Any]:
    def write(self: "Entry", *arguments: Any, **named: Any) -> Any:
        self.writes[0] += 1
        return method(self, *arguments, **named)

    return write


class Entry(dict[str, Any]):
    """A dict whose changes are counted; copies and pickles of it are plain dicts.

    Parameters
    ----------
    values : mapping
        What it holds.
    writes : list of int
        The count, which all entries of an optimizer share.
    """

    __slots__ = ("writes",)

    def __init__(self, values: Mapping[str, Any], writes: list[int]) -> None:
        super().__init__(values)
        self.writes = writes

    __setitem__ = _counted(dict.__setitem__)
    __delitem__ = _counted(dict.__delitem__)
    __ior__ = _counted(dict.__ior__)
    update = _counted(dict.update)
    pop = _counted(dict.pop)
    popitem = _counted(dict.popitem)
    clear = _counted(dict.clear)
    setdefault = _counted(dict.setdefault)

    def __reduce_ex__(self, protocol: object) -> Any:
        return dict, (dict(self),)

    def copy(self) -> dict[str, Any]:
        """Return a plain dict with the same items."""
        return dict(self)
