"""The optimizers for replicated parameters whose gradients ranks average, and whose state they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from numba_lamb.comm import Disagreement, Sharding, is_comm
from numba_lamb.engine.agreement import digest, made_alike, plain_options
from numba_lamb.engine.choose import Shared, sharded_on
from numba_lamb.engine.interface import Backend
from numba_lamb.engine.shards import Shards
from numba_lamb.foreign import kind_of
from numba_lamb.layout import LANES
from numba_lamb.torch.backends import index_of
from numba_lamb.torch.comm import TorchComm, is_group
from numba_lamb.torch.hooks import uncompiled
from numba_lamb.torch.lamb import Lamb
from numba_lamb.torch.lans import Lans
from numba_lamb.torch.lars import Lars, Momentum
from numba_lamb.torch.members import Member, Step
from numba_lamb.torch.model import Model
from numba_lamb.torch.named import unlike_names
from numba_lamb.torch.optimizer import LayerwiseOptimizer, ParamsT
from numba_lamb.torch.part import ORDER, Part, check_order, order_in, order_of


class Sharded(LayerwiseOptimizer):
    """What optimizers do whose state is cut over ranks; a class of options comes behind it."""

    _backend: Shards
    _index: int | None = None
    """The GPU that parameters are on; None for the CPU's memory."""
    _flat_parts: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        process_group: Any,
        bucket_mb: float,
        timeout: float,
        options: Mapping[str, Any],
    ) -> None:
        if options.get("fused_amp"):
            raise ValueError(
                "fused_amp must be False where ranks share state, got True: a GradScaler follows its own rank's "
                "gradients; torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler follows all of them"
            )
        given = Sharding(None, bucket_mb, timeout)
        if not (process_group is None or is_comm(process_group) or is_group(process_group)):
            raise TypeError(
                f"process_group must be one of torch.distributed or None, got a {kind_of(process_group)}"
            )
        if is_comm(process_group):
            given = replace(given, comm=process_group)
        elif process_group is not None or (dist.is_available() and dist.is_initialized()):
            given = replace(given, comm=TorchComm(process_group, timeout, own=True))
        self._shared = Shared(given.connect(), given.bucket_mb)
        with made_alike(self._shared.comm) as described:
            self._backend = sharded_on(None, None, self._shared, self._centralized)
            super().__init__(params, **options)  # type: ignore[arg-type]
            described["the layers"] = [
                [
                    (name, *_form(tensor), tensor.dtype, tensor.requires_grad)
                    for name, tensor in self._names_in(index)
                ]
                for index in range(len(self.param_groups))
            ]
            described["options"] = plain_options(self.param_groups)
            described["bucket_mb"] = bucket_mb

    def _centralized(self) -> list[int]:
        """Return the groups whose layers stay whole."""
        return [k for k, group in enumerate(self.param_groups) if group["grad_centralization"]]

    def _forget(self) -> None:
        backend = vars(self)["_backend"]
        super()._forget()
        self._backend = backend

    def _backend_for(self, device: torch.device | None, pieces: Sequence[Member]) -> Backend:
        if pieces:
            raise TypeError(
                f"parameter {pieces[0].name!r} must be whole on every rank, got a DTensor; "
                f"{type(self).__name__.removeprefix('Sharded')} takes those"
            )
        index = index_of(device)
        if index != self._index:
            # State follows the parameters, as ranks have it.
            older, self._skipped = self._backend, self.skipped_steps
            self._backend = sharded_on(index, "torch", self._shared, self._centralized)
            self._backend.follow(older)
            self._index = index
        return self._backend

    def _takes_part(self, tensor: Tensor, gradient: Tensor | None) -> bool:
        # Alike on all ranks, of which each may lack other gradients.
        return tensor.requires_grad or super()._takes_part(tensor, gradient)

    def _look(self) -> tuple[Model, Backend, Step] | None:
        if self._model is not None and self._model.has_late():
            self._model = None
        return super()._look()

    def _evaluated(self, closure: Callable[[], Any]) -> Any:
        # Nothing in it waits for the other ranks, which wait in the step.
        try:
            return super()._evaluated(closure)
        except BaseException as error:
            self._backend.tell(error)
            raise

    # -- checkpoints ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an optimizer that ranks share cannot be copied or pickled; use its state_dict()")

    def _made(self) -> Model | None:
        """Return the model, after making state for all parameters that require gradients."""
        with self._lock:
            self._backend.check_whole()
            found = super()._look()
            return None if found is None else found[0]

    @uncompiled
    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of the state, for `torch.distributed.checkpoint` or a file of this rank's own.

        Each tensor but ``step`` is a part of the flat one of its parameter: saved by
        ``torch.distributed.checkpoint.save`` it can be loaded on any number of ranks. Where no step was taken yet
        the state is zeros, to be loaded into.
        """
        model = self._made()
        state = super().state_dict()
        if model is None:
            return state
        places = {member.place: k for k, member in enumerate(model.members)}
        for index, entry in state["state"].items():
            k = places[index]
            state["state"][index] = _parts(model, k, entry) | order_of(model.members[k].tensor)
        return state

    @uncompiled
    def full_state_dict(self) -> dict[str, Any]:
        """Return the whole state, as the optimizer of one process has it; every rank must call it.

        It can be loaded into `numba_lamb.torch` optimizers of one process, and by `load_state_dict` into one of
        this kind on any number of ranks.
        """
        self._backend.check_whole()
        self._backend.agree("full_state_dict")
        model = self._backend.on_all(self._made)
        state = super().state_dict()
        if model is None:
            return state
        gathered = self._gathered(model)
        for k, member in enumerate(model.members):
            entry = state["state"][member.place]
            # As copies, all of it.
            entry.update({**gathered[k], "step": entry["step"].clone()})
        return state

    def _gathered(self, model: Model) -> list[dict[str, Tensor]]:
        """Return each member's whole state."""
        comm = self._backend.comm
        own = [
            self.state[member.tensor][name].reshape(-1).contiguous().view(torch.uint8).cpu().numpy()
            for k, member in enumerate(model.members)
            for name in model.pieces[k]
        ]
        lengths = [_length(model, rank) for rank in range(comm.size)]
        sent = np.zeros(max(lengths), dtype=np.uint8)
        told = np.zeros((comm.size, max(lengths)), dtype=np.uint8)
        joined = np.concatenate(own)
        sent[: len(joined)] = joined
        comm.all_gather(told, sent)()
        whole = [
            {
                name: model.runs.whole(k, piece, self.state[member.tensor][name].dtype)
                for name, piece in model.pieces[k].items()
            }
            for k, member in enumerate(model.members)
        ]
        for rank, row in enumerate(told):
            at = 0
            for k in range(len(model.members)):
                for name, piece in model.pieces[k].items():
                    first, last = model.runs.of_rank(k, rank, piece.shaped)
                    count = (last - first) * piece.dtype.itemsize
                    flat = whole[k][name].as_strided((whole[k][name].numel(),), (1,))[first:last]
                    flat.view(torch.uint8).copy_(torch.from_numpy(row[at : at + count]))
                    at += count
        return whole

    @uncompiled
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` or `full_state_dict` returned; every rank must call it.

        What `state_dict` returned must be of as many ranks. Between numbers of ranks, load through
        ``torch.distributed.checkpoint`` into a new optimizer's `state_dict`, or a `full_state_dict`.

        Raises
        ------
        ValueError, TypeError
            As the optimizer of one process does. No rank takes a step then until a state was loaded.
        CommError
            If another rank raised, or the ranks' parts are not those of one optimizer at one step; likewise.
        """
        # What another rank still sends would be taken for its part.
        self._backend.check_whole(loading=True)
        self._backend.agree("load_state_dict")
        comm, runs = self._backend.comm, self._backend.on_all(lambda: self._runs_in(state_dict))
        told = np.zeros((comm.size, *runs.shape), dtype=np.int64)
        comm.all_gather(told.view(np.uint8), runs.reshape(-1).view(np.uint8))()
        self._check_runs(told)
        load = super().load_state_dict
        self._backend.load(lambda: load(_plain(state_dict)), self._steps)
        self._backend.forget()
        for place, name in enumerate(unlike_names(self.param_groups)):
            if (told[:, place] >= 0).all():
                self._backend.cut_as(name, told[:, place, 0], told[:, place, 1])

    def _tensors(self) -> list[Tensor]:
        return [tensor for group in self.param_groups for tensor in group["params"]]

    def _runs_in(self, state_dict: Mapping[str, Any]) -> NDArray[np.int64]:
        """Return first element and end of the part that a state has of each parameter; -1 for none."""
        tensors = self._tensors()
        runs = np.full((len(tensors), 2), -1, dtype=np.int64)
        for index, entry in state_dict["state"].items():
            if isinstance(index, int) and index < len(tensors) and isinstance(entry, Mapping):
                check_order(index, tensors[index], entry.get(ORDER))
                found = [value for value in entry.values() if isinstance(value, Part)]
                elements = [part for part in found if part.whole == tensors[index].numel()]
                if elements:
                    runs[index] = elements[0].first, elements[0].first + elements[0].numel()
        return runs

    def _steps(self) -> bytes:
        """Return a digest of how many steps each parameter took."""
        entries = map(self.state.get, self._tensors())
        return digest([float(entry["step"]) if entry and "step" in entry else None for entry in entries])

    def _check_runs(self, told: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
        """Raise unless the ranks' runs of each parameter are all of it, or none has one."""
        for place, tensor in enumerate(self._tensors()):
            runs = told[:, place]
            if (runs < 0).all():
                continue
            kept = runs[runs[:, 0] < runs[:, 1]]
            kept = kept[np.argsort(kept[:, 0])]
            borders = [0, *kept[:, 1].tolist()]
            if (runs < 0).any() or kept[:, 0].tolist() != borders[:-1] or borders[-1] != tensor.numel():
                raise Disagreement(
                    f"state_dict must be that of all {len(told)} ranks of one optimizer, got other parts of "
                    f"parameter number {place}; torch.distributed.checkpoint and full_state_dict() go between "
                    "numbers of ranks"
                )


def _form(tensor: Tensor) -> tuple[Any, Any]:
    """Return the shape of a parameter and the order of its axes in memory."""
    return (None, None) if is_lazy(tensor) else (tensor.shape, order_in(tensor))


def _plain(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with plain tensors in place of parts, and nothing of their order."""
    plain = {
        index: {name: v.plain if isinstance(v, Part) else v for name, v in entry.items() if name != ORDER}
        if isinstance(entry, Mapping)
        else entry
        for index, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": plain}


def _parts(model: Model, k: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a member's state as parts of what all ranks have."""
    found = dict(entry)
    run, whole = model.runs.of(k), model.members[k].tensor.numel()
    assert run is not None
    # torch.distributed.checkpoint saves nothing of a part of nothing, and misses it.
    for name, piece in model.pieces[k].items() if whole else ():
        first, count = (run[0], whole) if piece.shaped else (run[0] // LANES, -(-whole // LANES))
        found[name] = Part.of(entry[name].reshape(-1), first, count)
    return found


def _length(model: Model, rank: int) -> int:
    """Return how many bytes of state a rank has."""
    total = 0
    for k in range(len(model.members)):
        for piece in model.pieces[k].values():
            first, last = model.runs.of_rank(k, rank, piece.shaped)
            total += (last - first) * piece.dtype.itemsize
    return total


_DOC = """{name} for data-parallel training: ranks average gradients, and each has its part of the state.

Steps are those of `numba_lamb.torch.{name}` on the averaged gradients, to the bit, on any number of ranks. The
average is added up in float64 in the order of ranks and rounded once, whatever library carries it. A layer may
lie on several ranks; its norms are those of the whole. The model is not wrapped in ``DistributedDataParallel``:
gradients stay this rank's own until `step`, and accumulate without ``no_sync``.

Parameters
----------
params : iterable
    As for `numba_lamb.torch.{name}`, whole, alike on all ranks. Parameters that require gradients have state from
    the first step on. A gradient that is None on some ranks counts as zeros there; one that is
    None on all ranks leaves its parameter as it is.
process_group : ProcessGroup, optional
    The ranks; by default all processes of `torch.distributed`, or this one alone where that is not initialized.
    Where parameters are on a GPU, NCCL's are used if it has them; else what it has for the CPU's memory.
bucket_mb : float, default 25.0
    MiB of gradients that travel together, > 0. Two such buffers are under way at most.
timeout : float, default 300.0
    Seconds that the other ranks may take to answer, > 0. Then a step raises.
**options
    All options of `numba_lamb.torch.{name}`.

Raises
------
TypeError, ValueError
    If an argument is refused.
CommError
    In a step: if a rank failed, is gone, or is not at the same step with the same layers and options. If that was
    found before anything changed, the message says so, and the next step may be taken.

Examples
--------
>>> import torch
>>> from numba_lamb.torch import Sharded{name}
>>> model = torch.nn.Linear(2, 1, bias=False)
>>> _ = torch.nn.init.constant_(model.weight, 2.0)
>>> opt = Sharded{name}(model.named_parameters(), lr=0.1)
>>> model(torch.tensor([[1.0, -1.0]])).sum().backward()
>>> opt.step()
>>> opt.full_state_dict()["state"][0]["step"]
tensor(1.)
"""


def _made_of(plain: type[LayerwiseOptimizer]) -> Any:
    """Return the class of `plain` whose state ranks share."""

    def __init__(
        self: Any,
        params: ParamsT,
        *,
        process_group: Any = None,
        bucket_mb: float = 25.0,
        timeout: float = 300.0,
        **options: Any,
    ) -> None:
        Sharded.__init__(self, params, process_group, bucket_mb, timeout, options)

    name = f"Sharded{plain.__name__}"
    body = {"__doc__": _DOC.format(name=plain.__name__), "__init__": __init__, "__module__": __name__}
    return type(name, (Sharded, plain), body)


ShardedLamb = _made_of(Lamb)
ShardedLans = _made_of(Lans)
ShardedLars = _made_of(Lars)
ShardedMomentum = _made_of(Momentum)
