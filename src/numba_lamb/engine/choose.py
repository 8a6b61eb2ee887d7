"""Which backend an optimizer's arrays need."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from numba_lamb.comm import Comm
from numba_lamb.engine.cpu.backend import CpuBackend
from numba_lamb.engine.cpu.parts import PartBackend
from numba_lamb.engine.cpu.sharded import ShardedBackend
from numba_lamb.engine.interface import Backend
from numba_lamb.engine.ranks import Ranks
from numba_lamb.engine.shards import Shards
from numba_lamb.groups import Parameter
from numba_lamb.kernels.cpu import launch
from numba_lamb.memory.arrays import check_one_place


class Shared(NamedTuple):
    """The ranks that share state, and MiB of gradients that travel together."""

    comm: Comm
    bucket_mb: float


def choose_backend(
    parameters: Sequence[Parameter],
    num_threads: int | None,
    capture_steps: int | None,
    shared: Shared | None,
    centralized: Callable[[], Sequence[int]],
) -> Backend:
    """Return the backend for arrays where these parameters are, or raise if they are not all in one place."""
    storages = [parameter.storage for parameter in parameters]
    check_one_place([parameter.name for parameter in parameters], storages)
    on_gpu = storages[0].on_gpu
    if not on_gpu:
        if capture_steps is not None:
            raise ValueError("capture_steps is for arrays on a GPU; these parameters are NumPy arrays")
        num_threads = launch.check_num_threads(num_threads)
        if shared is None:
            return CpuBackend(num_threads)
        return sharded_on(None, None, shared, centralized, num_threads)
    if num_threads is not None:
        raise ValueError("num_threads is for NumPy arrays; these parameters are on a GPU")
    libraries = {storage.library for storage in storages}
    library = next((name for name in ("torch", "cupy") if name in libraries), None)
    # Parameters without values are on no GPU in particular.
    index = next((storage.device for storage in storages if storage.device is not None), 0)
    if shared is None:
        return backend_on(index, library, capture_steps)
    if capture_steps is not None:
        raise ValueError(f"capture_steps must be None where ranks share state, got {capture_steps!r}")
    return sharded_on(index, library, shared, centralized)


def sharded_on(
    index: int | None,
    library: str | None,
    shared: Shared,
    centralized: Callable[[], Sequence[int]],
    num_threads: int | None = None,
) -> Shards:
    """Return the backend for state that ranks share; `centralized` returns the groups whose layers stay whole."""
    if index is None:
        return ShardedBackend(num_threads, *shared, centralized)
    from numba_lamb.engine.cuda.sharded import CudaShardedBackend

    return CudaShardedBackend(index, library, *shared, centralized)


def parts_on(index: int | None, library: str | None, comm: Comm) -> Ranks:
    """Return the backend for layers of which ranks have parts."""
    if index is None:
        return PartBackend(None, comm)
    from numba_lamb.engine.cuda.parts import CudaPartBackend

    return CudaPartBackend(index, library, comm)


def backend_on(index: int | None, library: str | None = None, capture_steps: int | None = None) -> Backend:
    """Return the backend for the arrays of `library` on a GPU, or for the CPU's memory where `index` is None."""
    if index is None:
        return CpuBackend(None)
    # Only GPU users pay for loading what drives one.
    from numba_lamb.engine.cuda.backend import CudaBackend

    return CudaBackend(index, library, capture_steps)
