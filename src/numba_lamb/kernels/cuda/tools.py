"""The packages that CUDA kernels are compiled with: their names and versions, and how to install them."""

import importlib.metadata

from numba_lamb._install import how_to_install

INSTALL = f"{how_to_install('cuda13')} (driver 580 or newer; cuda12 in its place serves older ones)"

PACKAGES = (
    "numba-cuda",
    "cuda-bindings",
    "nvidia-nvvm",
    "nvidia-cuda-nvcc-cu12",
    "nvidia-nvjitlink",
    "nvidia-nvjitlink-cu12",
)
"""Whatever has a bucket in the machine code: NVVM and nvJitLink for CUDA 13, and for CUDA 12."""


def version(package: str) -> str:
    """Return the version of an installed package, ``"none"`` where pip has not installed it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def named(package: str) -> str:
    """Return a package with its version, as it stands in an error."""
    found = version(package)
    return f"{package} {found}" if found != "none" else f"{package} is not installed by pip"


def nvvm_package() -> str:
    """Return the name of the package that brings NVVM."""
    return "nvidia-cuda-nvcc-cu12" if _is_cuda_12() else "nvidia-nvvm"


def nvjitlink_package() -> str:
    """Return the name of the package that brings nvJitLink."""
    return "nvidia-nvjitlink-cu12" if _is_cuda_12() else "nvidia-nvjitlink"


def nvvm_of(major: int, minor: int) -> str:
    """Return the command that installs the NVVM of one CUDA release."""
    return f"pip install 'cuda-toolkit[{'nvcc' if major == 12 else 'nvvm'}]=={major}.{minor}.*'"


def _is_cuda_12() -> bool:
    return version("cuda-bindings").startswith("12.")
