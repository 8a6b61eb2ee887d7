"""Options as attributes of an optimizer: each works, or raises an AttributeError that tells what does."""

from inspect import signature
from typing import TYPE_CHECKING, Any

from numba_lamb.methods.names import OPTIONS, meant


class GroupOption:
    """What every group without a value of its own has; assigning sets it from the next step on.

    Parameters
    ----------
    key : str, optional
        Its key in the groups, if that is not the attribute's name.
    """

    def __init__(self, key: str | None = None) -> None:
        self._key = key

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = self._key or name

    def meaning(self, text: str) -> "GroupOption":
        """Return the same attribute for a class in whose method it means this."""
        told = GroupOption(self._key)
        told.__doc__ = f"{text} Assigning sets it, from the next step on, in groups without their own."
        return told

    def __get__(self, optimizer: Any, kind: type | None = None) -> Any:
        """Return the value that groups share."""
        return self if optimizer is None else optimizer._groups.shared(self._key)

    def __set__(self, optimizer: Any, value: object) -> None:
        """Set the value that groups share, or raise and change nothing."""
        optimizer._share(self._key, value)


class OptionNames:
    """Attributes with the name of an option work, or raise an AttributeError that tells what does."""

    # A type checker that saw these would take every attribute for one.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            kind = type(self)
            told = f"; {_way(kind, name)}" if name in OPTIONS else ""
            raise AttributeError(
                f"{kind.__name__!r} object has no attribute {name!r}{told}", name=name, obj=self
            )

        def __setattr__(self, name: str, value: object) -> None:
            if name in OPTIONS:
                kind = type(self)
                found = getattr(kind, name, None)
                if found is None or (isinstance(found, property) and found.fset is None):
                    told = f"{name!r} of {kind.__name__} cannot be set; {_way(kind, name)}"
                    raise AttributeError(told, name=name, obj=self)
            super().__setattr__(name, value)


def _way(kind: Any, name: str) -> str:
    """Return what to do about an option that is no attribute, or cannot be set."""
    if name == "lr":
        return "set learning_rate, or param_groups[k]['lr'] for each k"
    if name == "betas" and hasattr(kind, "beta1"):
        return "set beta1 and beta2"
    if name == "loss_scale" and hasattr(kind, name):
        return "load a state_dict() whose ['numbers']['loss_scale'] you changed"
    made_with = {key for cls in kind.__mro__ if "__init__" in vars(cls) for key in signature(cls).parameters}
    if name in made_with:
        return "it is fixed when the optimizer is made: make another, which can load this one's state_dict()"
    right = meant(name, made_with)
    return f"it is no option of {kind.__name__}" if right is None else f"it is called {right!r} here"
