"""Options under a name or in a place where they would have no effect: refused, with the right way."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

from numba_lamb.methods.names import OPTIONS, TORCH_WAYS, meant
from numba_lamb.methods.options import Row

_ELSEWHERE = {**TORCH_WAYS, "fused_amp": "give it to the constructor"}
"""What to do about options that no group has."""


def check_keys(where: str, kind: str, group: Mapping[str, Any], own: Collection[str]) -> None:
    """Raise if a group has an option that `kind` has not, or that is misspelt; others' keys pass.

    Parameters
    ----------
    where : str
        Which group, for messages.
    kind : str
        The class.
    group : mapping
        The group.
    own : collection of str
        The options of `kind` that a group has.
    """
    for key in group:
        if key in own or key in ("params", "param_names") or not isinstance(key, str):
            continue
        right = meant(key, own)
        if right is not None or key in OPTIONS or key == "order_params":
            raise ValueError(f"{key!r}{where} is no option of a group of {kind}; {_way(key, right, own)}")


def _way(key: str, right: str | None, own: Collection[str]) -> str:
    if right is not None:
        return f"did you mean {right!r}?"
    return _ELSEWHERE.get(key, f"its options are {', '.join(own)}")


def check_stays(where: str, row: Row, kept: Iterable[Mapping[str, Any] | None]) -> None:
    """Raise if the parameters of a group were stored otherwise before."""
    for name, before in (pair for stored in kept for pair in (stored or {}).items()):
        if getattr(row, name) != before:
            raise ValueError(
                f"{name}{where} must stay {before!r}, got {getattr(row, name)!r}; from_optimizer makes an "
                "optimizer with another"
            )


def where(index: int) -> str:
    """Return what messages call a group by: nothing for the first, which may be the only one."""
    return f" of group {index}" if index else ""


class InGroups:
    """An option's name as an optimizer's attribute: using it says where the option is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, kind: type | None = None) -> Any:
        """Return itself, or raise for an optimizer: options are in its groups."""
        return self if optimizer is None else self._refuse(optimizer)

    def __set__(self, optimizer: Any, value: object) -> None:
        """Raise: options are set in groups."""
        self._refuse(optimizer)

    def _refuse(self, optimizer: Any) -> NoReturn:
        own, name, kind = vars(optimizer).get("defaults", ()), self._name, type(optimizer).__name__
        right = name if name in own else meant(name, own)
        way = (
            f"options are in the groups: param_groups[k][{right!r}], for each k"
            if right is not None
            else _way(name, None, own)
        )
        raise AttributeError(f"{name!r} is no attribute of {kind}; {way}", name=name, obj=optimizer)
