"""From what the user calls parameters and groups to named, checked arrays in the optimizer's order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numba_lamb.foreign import first_of, is_module, is_tensor, refuse_foreign
from numba_lamb.memory.arrays import Storage, check_parameter, is_array
from numba_lamb.methods.names import meant


@dataclass(frozen=True, eq=False)
class Parameter:
    """One named parameter array, the index of its group, and where it lies."""

    name: str
    array: Any
    group: int
    storage: Storage

    def found_again(self) -> "Parameter":
        """Return this parameter with its place in memory looked up anew, as a copy needs."""
        return Parameter(self.name, self.array, self.group, check_parameter(self.name, self.array))


@dataclass(frozen=True, eq=False)
class ParameterSet:
    """The validated parameters.

    Attributes
    ----------
    parameters : list of Parameter
        In the order that gradients are given in.
    options : list of dict
        For each group the options it was given, without ``params``.
    grouped : bool
        Whether group dicts were given, which turns the rule by name (`beta`, `gamma`) off.
    """

    parameters: list[Parameter]
    options: list[dict[str, Any]]
    grouped: bool


def collect(params: Any, keys: Sequence[str] = ("params",)) -> ParameterSet:
    """Return the parameters in `params`: a mapping, pairs, arrays, or a list of group dicts with `keys`."""
    if is_module(params) or is_tensor(params):
        refuse_foreign("params", params)
    if params is None:
        raise ValueError("params must hold at least one parameter, not None")
    if isinstance(params, Mapping):
        entries: list[Any] = list(params.items())
    elif is_array(params) or isinstance(params, str) or not isinstance(params, Iterable):
        raise TypeError(
            "params must be a mapping from name to array, an iterable of arrays or of (name, array) pairs, "
            f"or a list of group dicts, not {type(params).__name__}"
        )
    else:
        entries = list(params)
    if not entries:
        raise ValueError("params must hold at least one parameter, and is empty")
    dicts = sum(isinstance(entry, dict) for entry in entries)
    if dicts == 0:
        parameters = _name(entries, "params", group=0, first=0)
        _check_distinct(parameters, ValueError)
        return ParameterSet(parameters, [{}], grouped=False)
    if dicts < len(entries):
        raise TypeError("params must hold either arrays or group dicts, not both")
    return _collect_groups(entries, keys)


def collect_group(
    group: Any, existing: Sequence[Parameter], index: int, keys: Sequence[str]
) -> tuple[list[Parameter], dict[str, Any]]:
    """Return the parameters and options of a `group` dict that is added to `existing` parameters."""
    if not isinstance(group, dict):
        raise TypeError(f"a parameter group must be a dict, not {type(group).__name__}")
    options = _check_group(group, index, keys)
    added = _group_parameters(group, index, first=len(existing))
    _check_distinct([*existing, *added], RuntimeError)
    return added, options


def _collect_groups(entries: list[dict[str, Any]], keys: Sequence[str]) -> ParameterSet:
    parameters: list[Parameter] = []
    options: list[dict[str, Any]] = []
    order: list[Any] | None = None
    for entry in entries:
        if "order_params" in entry:
            order = _check_order_dict(entry)
            continue
        options.append(_check_group(entry, len(options), keys))
        parameters += _group_parameters(entry, len(options) - 1, first=len(parameters))
    if not options:
        raise ValueError("params must hold at least one group with 'params' beside 'order_params'")
    _check_distinct(parameters, RuntimeError)
    if order:
        parameters = _reorder(parameters, order)
    return ParameterSet(parameters, options, grouped=True)


def _check_group(group: dict[str, Any], index: int, keys: Sequence[str]) -> dict[str, Any]:
    unknown = [key for key in group if key not in keys]
    if unknown:
        if is_tensor(first_of(group)):
            refuse_foreign(f"'params' of group {index}", first_of(group))
        raise _unknown_key(unknown[0], index, keys)
    if "params" not in group:
        raise KeyError(f"group {index} has no 'params'")
    return {key: value for key, value in group.items() if key != "params"}


def check_live_group(group: dict[str, Any], index: int, keys: Sequence[str]) -> None:
    """Raise unless a group of a working optimizer has the keys it had; schedulers may add ``initial_lr``."""
    for key in group:
        if key not in keys and key != "initial_lr":
            raise _unknown_key(key, index, keys)
    for key in keys:
        if key not in group:
            raise KeyError(f"group {index} has no {key!r}")


def _unknown_key(key: object, index: int, keys: Sequence[str]) -> KeyError:
    right = meant(key, keys) if isinstance(key, str) else None
    way = f"did you mean {right!r}?"
    if right is None:
        way = f"a group has {', '.join(map(repr, keys))}, or 'order_params' alone"
    return KeyError(f"group {index} has the unknown key {key!r}; {way}")


def _group_parameters(group: dict[str, Any], index: int, first: int) -> list[Parameter]:
    given = group["params"]
    what = f"'params' of group {index}"
    if given is None:
        raise ValueError(f"{what} must hold at least one parameter, not None")
    if isinstance(given, Mapping):
        entries = list(given.items())
    elif is_array(given) or isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(
            f"{what} must be an iterable of arrays or (name, array) pairs, not {type(given).__name__}"
        )
    else:
        entries = list(given)
    if not entries:
        raise ValueError(f"{what} is empty; an iterator that was used before has nothing left to give")
    return _name(entries, what, index, first)


def _name(entries: list[Any], what: str, group: int, first: int) -> list[Parameter]:
    named = []
    for position, entry in enumerate(entries):
        if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
            name, array = entry
        elif isinstance(entry, tuple) and len(entry) == 2 and is_array(entry[1]):
            raise TypeError(
                f"the name in entry {position} of {what} must be a str, not {type(entry[0]).__name__}"
            )
        elif isinstance(entry, tuple | list | str):
            raise TypeError(
                f"entry {position} of {what} must be an array or a (name, array) pair, not {type(entry).__name__}"
            )
        else:
            name, array = f"param_{first + position}", entry
        named.append(Parameter(name, array, group, check_parameter(name, array)))
    return named


def _check_distinct(parameters: Sequence[Parameter], error: type[Exception]) -> None:
    arrays: dict[int, str] = {}
    names: set[str] = set()
    for parameter in parameters:
        twin = arrays.get(id(parameter.array))
        if twin is not None:
            raise error(f"parameter {parameter.name!r} is given twice, also as {twin!r}")
        if parameter.name in names:
            raise ValueError(f"two parameters are named {parameter.name!r}; names must be distinct")
        arrays[id(parameter.array)] = parameter.name
        names.add(parameter.name)


def _check_order_dict(entry: dict[str, Any]) -> list[Any]:
    if len(entry) > 1:
        other = next(key for key in entry if key != "order_params")
        raise ValueError(f"a dict with 'order_params' must hold no other key, and has {other!r}")
    order = entry["order_params"]
    if isinstance(order, str) or is_array(order) or not isinstance(order, Iterable):
        raise TypeError(f"'order_params' must be an iterable of arrays or names, not {type(order).__name__}")
    return list(order.items()) if isinstance(order, Mapping) else list(order)


def _reorder(parameters: list[Parameter], order: list[Any]) -> list[Parameter]:
    if len(order) != len(parameters):
        raise ValueError(
            f"'order_params' has {len(order)} entries for {len(parameters)} grouped parameters; "
            "it must name each of them once"
        )
    by_name = {parameter.name: parameter for parameter in parameters}
    by_identity = {id(parameter.array): parameter for parameter in parameters}
    ordered: dict[str, Parameter] = {}
    for position, entry in enumerate(order):
        array = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        found = by_name.get(array) if isinstance(array, str) else by_identity.get(id(array))
        if found is not None and isinstance(entry, tuple) and entry[0] != found.name:
            raise ValueError(
                f"entry {position} of 'order_params' must have its array's name {found.name!r}, got {entry[0]!r}"
            )
        if found is None:
            shown = repr(array) if isinstance(array, str) else "an array"
            raise ValueError(f"entry {position} of 'order_params' is {shown} that is in no group")
        if found.name in ordered:
            raise ValueError(f"'order_params' names {found.name!r} twice")
        ordered[found.name] = found
    return list(ordered.values())
