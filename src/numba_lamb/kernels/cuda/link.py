"""From PTX to machine code by nvJitLink, whose CUDA release may be older than that of NVVM, which wrote the PTX.

PyTorch pins nvJitLink while pip takes the newest NVVM, and nvJitLink refuses PTX that declares a version newer
than its own. It checks target and instructions against the version declared, so to declare an older one is safe:
text that needs the newer one is refused.
"""

import re

from numba_lamb.kernels.cuda.tools import INSTALL, named, nvjitlink_package, nvvm_of, nvvm_package

_VERSION = re.compile(r"^(\s*\.version\s+)([\d.]+)", re.M)
_NEWER = re.compile(r"Unsupported \.version [\d.]+; current version is '([\d.]+)'")
_UNKNOWN_GPU = re.compile(r"Value '\w+' is not defined for option 'gpu-name'")


def link(text: str, capability: tuple[int, int]) -> bytes:
    """Return the machine code that nvJitLink makes of PTX, which it may take for an older version of PTX."""
    code, log = _assemble(text, capability)
    newer = _NEWER.search(log)
    if code is None and newer:
        code, log = _assemble(_VERSION.sub(rf"\g<1>{newer[1]}", text, count=1), capability)
        if code is None:
            raise RuntimeError(_release_message(text, newer[1], log))
    if code is None:
        raise RuntimeError(f"nvJitLink failed: {log}")
    return code


def _assemble(text: str, capability: tuple[int, int]) -> tuple[bytes | None, str]:
    """Return machine code, or None and what nvJitLink complains of."""
    try:
        from cuda.bindings import nvjitlink

        handle = nvjitlink.create(1, [f"-arch=sm_{capability[0]}{capability[1]}"])
    except (ImportError, RuntimeError) as error:
        # The bindings may be there without the library itself.
        raise ImportError(f"arrays on a GPU need nvJitLink ({error}): {INSTALL}") from error
    except nvjitlink.nvJitLinkError as error:
        raise RuntimeError(_unknown_message(capability, str(error))) from error
    try:
        source = text.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, source, len(source), "numba_lamb")
        nvjitlink.complete(handle)
        code = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, code)
    except nvjitlink.nvJitLinkError as error:
        memory = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, memory)
        log = memory.rstrip(b"\0").decode(errors="replace").strip()
        if _UNKNOWN_GPU.search(log):
            raise RuntimeError(_unknown_message(capability, log)) from error
        return None, log
    finally:
        nvjitlink.destroy(handle)
    return bytes(code), ""


def _unknown_message(capability: tuple[int, int], problem: str) -> str:
    return (
        f"nvJitLink must know compute capability {capability[0]}.{capability[1]}, got nvJitLink {_release()} "
        f"({named(nvjitlink_package())}), which does not: {problem}\n"
        f"A newer one may: pip install --upgrade {nvjitlink_package()}"
    )


def _release_message(text: str, accepted: str, log: str) -> str:
    declared = _VERSION.search(text)
    return (
        f"PTX must be of version {accepted} or older for nvJitLink {_release()} ({named(nvjitlink_package())}), "
        f"got {declared[2] if declared else 'none'} from NVVM ({named(nvvm_package())}), "
        f"and as {accepted} it is refused: {log}\n"
        f"Install both from one CUDA release: pip install --upgrade {nvjitlink_package()}\n"
        f"or, where another package pins that: {nvvm_of(*map(int, _release().split('.')))}"
    )


def _release() -> str:
    from cuda.bindings import nvjitlink

    return ".".join(map(str, nvjitlink.version()))
