"""leads_on: constructors that tell what to write in place of a keyword that they do not have."""

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec

from numba_lamb.methods.names import instead_of, meant

_Given = ParamSpec("_Given")


def leads_on(
    package: str, look: Callable[[Any], object], inner: type | None = None
) -> Callable[[Callable[_Given, None]], Callable[_Given, None]]:
    """Return a decorator for ``__init__``, whose errors about keywords then name the right one, or say why not.

    Parameters
    ----------
    package : {"numba_lamb", "numba_lamb.torch"}
        Where the class is.
    look : callable
        Called with the first argument where keywords do not fit; raises if that argument is the wrong one.
    inner : type, optional
        A class whose object is the first argument, and which has options of its own.
    """

    def decorate(init: Callable[_Given, None]) -> Callable[_Given, None]:
        _, *parameters = signature(init).parameters.values()
        names = [parameter.name for parameter in parameters]
        needed = {parameter.name for parameter in parameters if parameter.default is Parameter.empty}
        kind = init.__qualname__.split(".")[0]
        inner_names = [] if inner is None else [*signature(inner).parameters]

        def way(name: str) -> str:
            if inner is not None and (name in inner_names or meant(name, inner_names) is not None):
                return (
                    f"give it to the {inner.__name__}: {kind}({inner.__name__}({', '.join(_needed(inner))}))"
                )
            way = instead_of(name, names[1:], for_torch=package.endswith("torch"))
            return f"its options are {', '.join(names[1:])}" if way is None else way

        @wraps(init)
        def checked(*args: _Given.args, **keywords: _Given.kwargs) -> None:
            given = [*names[: len(args) - 1], *keywords]
            unknown = [name for name in keywords if name not in names]
            missing = [name for name in names if name in needed and name not in given]
            if unknown or missing:
                if names[0] in given:
                    # What a group may have is known once the rest is right.
                    with suppress(KeyError):
                        look(args[1] if len(args) > 1 else keywords[names[0]])
                if unknown:
                    raise TypeError(f"{unknown[0]!r} is no option of {package}.{kind}; {way(unknown[0])}")
                raise TypeError(f"{' and '.join(missing)} must be given to {package}.{kind}")
            init(*args, **keywords)

        return checked

    return decorate


def _needed(kind: type) -> list[str]:
    return [name for name, one in signature(kind).parameters.items() if one.default is Parameter.empty]
