"""Who takes part: for each competitor its name, what it needs, and the bytes it must move per parameter."""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ADAMW", "COMPETITORS", "SWEEP", "Competitor", "absent", "present"]

ADAMW = "adamw-fused"
SWEEP = "sweep"
"""The pass over memory whose bandwidth makes the floor."""


@dataclass(frozen=True)
class Competitor:
    """One row of the table.

    Parameters
    ----------
    name : str
        What options, workers and JSON call it.
    label : str
        What the table calls it.
    maker : str
        Function that sets it up, as ``"module:function"``; called with the shapes and the number of threads.
    bytes_per_param : float
        Memory traffic of one step per float32 parameter when nothing stays in a cache.
    resident, transient : float
        Memory per parameter held all the time, and on top of that while a step runs.
    needs : tuple of str
        Modules that must be installed.
    profiles : tuple of str or None
        The profiles it is measured with; None for all.
    ours : bool
        Whether it is this package's.
    dtype : str or None
        The dtype of parameters and gradients that it is measured with; None for every one: a yardstick.
    """

    name: str
    label: str
    maker: str
    bytes_per_param: float
    resident: float = 16.0
    transient: float = 0.0
    needs: tuple[str, ...] = ()
    profiles: tuple[str, ...] | None = None
    ours: bool = False
    dtype: str | None = "float32"


_OURS = "numba_lamb.cli.bench.subjects"
_TORCH = "numba_lamb.cli.bench.torch_subjects"
_PEERS = "numba_lamb.cli.bench.peers"

_HALF = "numba_lamb.cli.bench.half_subjects"


def _in_bfloat16(
    name: str, label: str, maker: str, nbytes: float, resident: float, ours: bool = True
) -> Competitor:
    needs = ("torch", "deepspeed") if "deepspeed" in name else ("torch",)
    return Competitor(
        name, label, f"{_HALF}:{maker}", nbytes, resident, needs=needs, ours=ours, dtype="bfloat16"
    )


# Bytes: as below for float32, with 2 of w, of g, and of the rest of a split master. A scale of 8-bit moments is 4
# bytes for 128 elements.
_IN_BFLOAT16 = (
    _in_bfloat16("lamb-bf16", "Lamb, float32 moments", "lamb", 38, 14),
    _in_bfloat16("lamb-bf16-16", "Lamb, bfloat16 moments", "lamb_16", 26, 10),
    _in_bfloat16("lamb-bf16-8", "Lamb, 8-bit moments", "lamb_8", 20.2, 8.1),
    _in_bfloat16("lamb-bf16-random", "Lamb, bfloat16 moments, no master", "lamb_random", 20, 8),
    _in_bfloat16("adamw-bf16", "torch AdamW, fused, no master", "fused_adamw", 14, 8, ours=False),
    _in_bfloat16(
        "adamw-bf16-foreach", "torch AdamW, foreach, no master", "foreach_adamw", 50, 14, ours=False
    ),
    _in_bfloat16("deepspeed-bf16", "DeepSpeed CPUAdam, no master", "deepspeed_adam", 22, 12, ours=False),
)

# Bytes: LAMB reads g w m v, writes m v, reads w m v, writes w; "raise" reads g once more; LARS reads w and g
# for its norms first. Peers' were counted from their operations as they run on a CPU without gradient clipping.
_ALL = (
    Competitor("lamb", 'Lamb, "propagate"', f"{_OURS}:lamb", 40, ours=True),
    Competitor("lamb-checked", 'Lamb, "raise" (default)', f"{_OURS}:lamb_checked", 44, ours=True),
    Competitor(
        "lamb-fresh",
        'Lamb, "propagate", fresh gradients',
        f"{_OURS}:lamb_fresh",
        40,
        transient=4,
        profiles=("200-tiny",),
        ours=True,
    ),
    Competitor("torch-lamb", "Lamb for PyTorch", f"{_TORCH}:lamb", 40, needs=("torch",), ours=True),
    Competitor(
        "torch-lamb-fresh",
        "Lamb for PyTorch, fresh gradients",
        f"{_TORCH}:lamb_fresh",
        40,
        transient=4,
        needs=("torch",),
        profiles=("200-tiny",),
        ours=True,
    ),
    Competitor("lamb-adamw", 'Lamb, "adamw", "propagate"', f"{_OURS}:lamb_adamw", 28, ours=True),
    Competitor("lars", 'Lars, "propagate"', f"{_OURS}:lars", 28, resident=12, ours=True),
    Competitor("momentum", 'Momentum, "propagate"', f"{_OURS}:momentum", 20, resident=12, ours=True),
    Competitor("timm", "timm Lamb", f"{_PEERS}:timm_lamb", 120, transient=12, needs=("torch", "timm")),
    Competitor(
        "optax", "optax lamb, jitted", f"{_PEERS}:optax_lamb", 84, transient=16, needs=("jax", "optax")
    ),
    Competitor(
        "torch-optimizer",
        "torch_optimizer Lamb",
        f"{_PEERS}:torch_optimizer_lamb",
        104,
        transient=8,
        needs=("torch", "torch_optimizer"),
    ),
    Competitor(
        "pytorch-optimizer",
        "pytorch_optimizer Lamb",
        f"{_PEERS}:pytorch_optimizer_lamb",
        116,
        transient=8,
        needs=("torch", "pytorch_optimizer"),
    ),
    Competitor("paddle", "paddle Lamb", f"{_PEERS}:paddle_lamb", 48, transient=8, needs=("paddle",)),
    *_IN_BFLOAT16,
    Competitor(
        ADAMW, "torch AdamW, fused, float32", f"{_PEERS}:fused_adamw", 28, needs=("torch",), dtype=None
    ),
    Competitor(
        "deepspeed", "DeepSpeed CPUAdam", f"{_PEERS}:deepspeed_adam", 28, needs=("torch", "deepspeed")
    ),
    Competitor("sgd-fused", "torch SGD + momentum, fused", f"{_PEERS}:fused_sgd", 20, needs=("torch",)),
    Competitor("copy", "memory copy", f"{_OURS}:memory_copy", 16),
    Competitor(SWEEP, "memory sweep a = c*a + b", f"{_OURS}:memory_sweep", 24, dtype=None),
)

COMPETITORS = {one.name: one for one in _ALL}


def present(competitors: Iterable[Competitor]) -> list[Competitor]:
    """Return those competitors whose modules are installed; nothing is imported for that."""
    return [one for one in competitors if all(_is_installed(name) for name in one.needs)]


def absent(competitors: Iterable[Competitor]) -> dict[str, str]:
    """Return the modules that those competitors lack which are not `present`, by label."""
    lacking = {one.label: [name for name in one.needs if not _is_installed(name)] for one in competitors}
    return {label: ", ".join(names) for label, names in lacking.items() if names}


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    # A mere folder of that name has no origin.
    return spec is not None and spec.origin is not None
