"""Where the arrays of ``numba-lamb verify`` are: in the CPU's memory, or on a GPU by CuPy or PyTorch."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Place(NamedTuple):
    """How arrays get there, as copies, and back."""

    title: str
    put: Callable[[NDArray[Any]], Any]
    get: Callable[[Any], NDArray[Any]]


class NoGpu(Exception):
    """There is no GPU that arrays could be put on; the message says why."""


HOST = Place("the CPU", np.copy, np.asarray)


def gpu() -> Place:
    """Return the first GPU, through CuPy or else PyTorch, or raise `NoGpu`."""
    problems = []
    for name, place in (("cupy", _of_cupy), ("torch", _of_torch)):
        if find_spec(name) is not None:
            try:
                return place(import_module(name))
            # Whatever a library raises where its CUDA cannot be used: it differs from release to release.
            except Exception as error:
                problems.append(
                    f"{name} finds no GPU ({' '.join(str(error).split()) or type(error).__name__})"
                )
    raise NoGpu(" and ".join(problems) or "neither CuPy nor PyTorch is installed")


def _of_cupy(cupy: Any) -> Place:
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return Place(f"{name}, CuPy's arrays", cupy.array, cupy.asnumpy)


def _of_torch(torch: Any) -> Place:
    torch.cuda.init()

    def put(values: NDArray[Any]) -> Any:
        return torch.from_numpy(np.copy(values)).cuda()

    return Place(
        f"{torch.cuda.get_device_name(0)}, PyTorch's tensors", put, lambda tensor: tensor.cpu().numpy()
    )
