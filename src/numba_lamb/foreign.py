"""Values of other libraries where a NumPy array is expected: the way from each to what is expected."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

FOR_PYTORCH = "numba_lamb.torch.Lamb, Lars and Momentum are for PyTorch models"


def kind_of(value: object) -> str:
    """Return the name of a value's type, for messages."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _torch() -> Any:
    # A tensor exists only where torch has been imported.
    return sys.modules.get("torch")


def is_tensor(value: object) -> bool:
    """Return whether `value` is a PyTorch tensor."""
    torch = _torch()
    return torch is not None and isinstance(value, torch.Tensor)


def is_module(value: object) -> bool:
    """Return whether `value` is a PyTorch module."""
    torch = _torch()
    return torch is not None and isinstance(value, torch.nn.Module)


def is_torch_optimizer(value: object) -> bool:
    """Return whether `value` is a PyTorch optimizer."""
    torch = _torch()
    return torch is not None and isinstance(value, torch.optim.Optimizer)


def first_of(params: object) -> Any:
    """Return the first array of a collection, whatever its form; None for an iterator, which it would use up."""
    while isinstance(params, Mapping | list | tuple) and params:
        if isinstance(params, tuple) and len(params) == 2 and isinstance(params[0], str):
            params = params[1]
        elif isinstance(params, Mapping):
            params = params.get("params", next(iter(params.values())))
        else:
            params = params[0]
    return params if not isinstance(params, Iterator) else None


def is_jax(value: object) -> bool:
    """Return whether `value` is a JAX array."""
    return type(value).__module__.split(".")[0] in ("jax", "jaxlib")


def refuse_foreign(what: str, value: object) -> None:
    """Raise if `value` is a tensor with gradients or on the CPU, a module, a JAX array or a dict of arrays.

    Parameters
    ----------
    what : str
        The parameter, for messages.
    value : object
        What was given.
    """
    if is_module(value):
        _refuse(what, f"a {kind_of(value)}", f"{FOR_PYTORCH}: Lamb(model.named_parameters(), lr)")
    if is_tensor(value):
        tensor: Any = value
        if tensor.requires_grad:
            _refuse(what, f"a {kind_of(value)} that requires gradients", FOR_PYTORCH)
        if tensor.device.type == "cpu":
            _refuse(
                what, f"a {kind_of(value)} on the CPU", f"{FOR_PYTORCH}; tensor.numpy() shares its memory"
            )
    if is_jax(value):
        way = "train copies: {name: np.array(array) for name, array in params.items()}"
        _refuse(what, "a JAX array, which cannot be updated in place", way)
    if isinstance(value, Mapping):
        leaf = "np.array(array)" if is_jax(first_of(value)) else "array"
        nested = any(isinstance(inner, Mapping) for inner in value.values())
        way = (
            "give every array a name of its own, joined from the keys on its way"
            if nested
            else f"flatten: {{f'{{outer}}.{{inner}}': {leaf} for outer, layer in params.items() "
            "for inner, array in layer.items()}"
        )
        _refuse(what, f"a {kind_of(value)} of arrays", way)


def _refuse(what: str, found: str, way: str) -> NoReturn:
    one = what.startswith("parameter ")
    allowed = "a NumPy array or an array on a GPU" if one else "NumPy arrays or arrays on a GPU"
    raise TypeError(f"{what} must be {allowed}, got {found}; {way}")


def way_to_array(value: object) -> str:
    """Return how to get a NumPy array from a gradient of another kind, as the end of a message."""
    if is_tensor(value):
        tensor: Any = value
        return (
            "; gradient.numpy() shares its memory"
            if tensor.device.type == "cpu"
            else "; gradient.cpu().numpy()"
        )
    if is_jax(value):
        return "; np.asarray(gradient) is one"
    return "; flatten gradients as the parameters" if isinstance(value, Mapping) else ""
