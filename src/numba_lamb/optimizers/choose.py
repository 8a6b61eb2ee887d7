"""Which backend an optimizer's arrays need."""

from collections.abc import Sequence

from numba_lamb.groups import Parameter
from numba_lamb.kernels import launch
from numba_lamb.optimizers.backend import Backend
from numba_lamb.optimizers.cpu_backend import CpuBackend


def choose_backend(
    parameters: Sequence[Parameter], num_threads: int | None, capture_steps: int | None
) -> Backend:
    """Return the backend for arrays where these parameters are, or raise if they are not all in one place."""
    on_gpu = [parameter for parameter in parameters if parameter.storage.on_gpu]
    if on_gpu and len(on_gpu) < len(parameters):
        other = next(parameter for parameter in parameters if not parameter.storage.on_gpu)
        raise ValueError(
            f"parameters must be all on the CPU or all on one GPU, but {other.name!r} is a NumPy array and "
            f"{on_gpu[0].name!r} is on a GPU"
        )
    if not on_gpu:
        if capture_steps is not None:
            raise ValueError("capture_steps is for arrays on a GPU; these parameters are NumPy arrays")
        return CpuBackend(launch.check_num_threads(num_threads))
    if num_threads is not None:
        raise ValueError("num_threads is for NumPy arrays; these parameters are on a GPU")
    indices = {
        parameter.storage.device: parameter for parameter in on_gpu if parameter.storage.device is not None
    }
    if len(indices) > 1:
        (one, first), (two, second) = list(indices.items())[:2]
        raise ValueError(
            f"parameters must be on one GPU, but {first.name!r} is on GPU {one} and {second.name!r} on GPU {two}"
        )
    # Only GPU users pay for loading what drives one.
    from numba_lamb.optimizers.cuda_backend import CudaBackend

    libraries = {parameter.storage.library for parameter in on_gpu}
    library = next((name for name in ("torch", "cupy") if name in libraries), None)
    return CudaBackend(next(iter(indices), 0), library, capture_steps)
