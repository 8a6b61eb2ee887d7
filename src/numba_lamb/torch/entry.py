"""Entry: one parameter's state, a dict that knows when it is written to."""

from collections.abc import Callable
from typing import Any

from torch.utils import _pytree


def _counted(method: Callable[..., Any]) -> Callable[..., Any]:
    def write(self: "StateEntry", *arguments: Any, **named: Any) -> Any:
        self.writes[0] += 1
        return method(self, *arguments, **named)

    return write


class StateEntry(dict[str, Any]):
    """A dict whose changes are counted; copies and pickles of it are plain dicts.

    Parameters
    ----------
    values : mapping or iterable of pairs
        What it holds.
    writes : list of int, optional
        The count, which all entries of an optimizer share.
    """

    __slots__ = ("writes",)

    def __init__(self, values: Any = (), writes: list[int] | None = None) -> None:
        super().__init__(values)
        # Trainers make another of the same type, to put it in this one's place.
        self.writes = [0] if writes is None else writes

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


# What maps functions over nested dicts goes by exact type.
_pytree.register_pytree_node(
    StateEntry,
    lambda entry: (list(entry.values()), list(entry)),
    lambda values, keys: dict(zip(keys, values, strict=True)),
    serialized_type_name="numba_lamb.torch.entry.Entry",
)
