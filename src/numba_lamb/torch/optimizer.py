"""LayerwiseOptimizer: what PyTorch asks of an optimizer, around the kernels.

A step reads everything anew that others may have written since: the groups' options, which parameters there are,
where they, their gradients and their state lie. What has not changed costs a comparison.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from numba_lamb.engine.interface import Backend, Plan
from numba_lamb.methods.checks import MOST_LOOKS, compared, flag, is_mutable, never_still
from numba_lamb.methods.names import OPTIONS
from numba_lamb.methods.options import FILTERS, Method, Row
from numba_lamb.rates import RATE_KEYS
from numba_lamb.step_lock import step_lock
from numba_lamb.torch.backends import backend_of, find_pieces
from numba_lamb.torch.dtensors import alike, gatherable, is_dtensor, local_of
from numba_lamb.torch.hooks import uncompiled, watched
from numba_lamb.torch.keys import InGroups, check_keys, check_stays, where
from numba_lamb.torch.loading import loadable, uncast, unwrap
from numba_lamb.torch.members import Member, Step
from numba_lamb.torch.merging import Shapes, check_layer, check_layers, shapes_of
from numba_lamb.torch.migration import adopt_state_dict, optax_state_dict, options_of, state_dict_of
from numba_lamb.torch.model import Model
from numba_lamb.torch.named import device_of, names_in, unlike_names
from numba_lamb.torch.rates import GroupRates, checked_rates
from numba_lamb.torch.scaler import scaler_values
from numba_lamb.torch.state import FlatState
from numba_lamb.torch.stored import with_beyond_float16
from numba_lamb.torch.tensors import NUMPY_DTYPES, check_gradient, check_group, check_parameter, check_params

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class LayerwiseOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose step is a Numba kernel; subclasses say which options they have."""

    _method: ClassVar[Method]
    _flat_parts: ClassVar[bool] = False
    """Whether the state of a part of a parameter is flat."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any], fused_amp: bool) -> None:
        check_params(params)
        flag("fused_amp", "", fused_amp)
        self._fused_amp = fused_amp
        self._shapes: Shapes = []
        self._lock = step_lock()
        self._forget()
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Invalidate all caches; the next step rebuilds them."""
        self._model: Model | None = None
        self._flat = FlatState(self._method.state, self._method.needs_steps)
        self._backend: Backend | None = None
        self._backend_is_on: tuple[torch.device | None, bool] | None = None
        self._rates = GroupRates()
        self._written: list[Any] = []
        self._given: list[Any] = []
        self._keys: list[list[str]] = []
        self._follows, self._skipped = False, 0

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return self._fused_amp

    @property
    def skipped_steps(self) -> int:
        """Steps left out because a gradient was not finite (``nonfinite="skip"``, or by a GradScaler)."""
        return self._skipped + (0 if self._backend is None else self._backend.counters()[1])

    # -- groups --------------------------------------------------------------------------------------------

    @uncompiled
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with any of the constructor's options for it; others keep their state.

        Raises
        ------
        TypeError, ValueError
            If an option or a parameter is refused; no group was added then.
        """
        index = len(self.param_groups)
        check_group(param_group, where(index))
        super().add_param_group(param_group)
        try:
            check_keys(where(index), self._method.name, self.param_groups[-1], self.defaults)
            self._check_group(where(index), self.param_groups[-1])
            seen: set[int] = set()
            for name, tensor in self._names_in(index):
                check_parameter(name, tensor)
                check_layer(name, tensor, self.param_groups[-1], self._method)
                if id(tensor) in seen:
                    raise ValueError(f"parameter {name!r} is given twice")
                seen.add(id(tensor))
            device_of(self.param_groups)
        except BaseException:
            del self.param_groups[-1]
            raise
        self._shapes += shapes_of(self.param_groups[-1:])

    def _names_in(self, index: int) -> list[tuple[str, Tensor]]:
        """Return the names and parameters of one group."""
        return names_in(self.param_groups, index)

    def _check_group(self, where: str, group: Mapping[str, Any]) -> Row:
        """Return what kernels are told of a group, or raise if an option is refused."""
        return self._method.row(where, group)

    # -- the step ------------------------------------------------------------------------------------------

    @watched
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, in place.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model anew, with gradients, and returns the loss.

        Returns
        -------
        loss
            What `closure` returned, else None.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            If an option, a parameter or a gradient is refused; nothing has changed then.
        FloatingPointError
            If a gradient is infinite or NaN and ``nonfinite`` is ``"raise"``; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = self._evaluated(closure)
        self._update()
        return loss

    def _evaluated(self, closure: Callable[[], Any]) -> Any:
        """Return the loss of a closure."""
        return closure()

    @uncompiled
    def _update(self) -> None:
        with self._lock:
            try:
                found = self._look()
            except BaseException as error:
                if self._backend is not None:
                    self._backend.tell(error)
                raise
            if found is None:
                return
            model, backend, step = found
            model.gather(step)
            plan, said = self._plan, (getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
            plan.grad_scale, plan.found_inf, held = scaler_values(
                *said, model.steps if backend.waits else None
            )
            if backend.prepare(step.read):
                model.count_versions(step)
                backend.commit(model.scatter(step))
            # Copies live until the step is queued; after that the stream's order protects them.
            del held

    def _look(self) -> tuple[Model, Backend, Step] | None:
        """Return what takes the next step, and its gradients, None if no parameter has one."""
        for _ in range(MOST_LOOKS):
            self._look_at_groups()
            groups = self.param_groups
            tensors = (
                groups[0]["params"] if len(groups) == 1 else [t for group in groups for t in group["params"]]
            )
            sizes = [len(group["params"]) for group in groups]
            model = self._model
            gradients = self._gradients_of(tensors, model)
            if model is None or not model.fits(tensors, sizes, gradients, self.state):
                model = self._make_model(tensors, sizes, [tensor.grad for tensor in tensors])
                if model is None:
                    return None
                gradients = self._gradients_of(tensors, model)
            backend = self._backend
            assert backend is not None
            if self._follows or not self._follow_options(model, backend):
                return model, backend, model.point_at_gradients(gradients)
            # Filters were called: the user's code, after which all must be looked at again.
        raise never_still()

    @staticmethod
    def _gradients_of(tensors: Sequence[Any], model: Model | None) -> list[Any]:
        """Return the gradients; of those that lie in pieces what there is here."""
        if model is None or not model.has_pieces:
            return [tensor.grad for tensor in tensors]
        return [local_of(alike(tensor.grad, tensor)) for tensor in tensors]

    def _make_model(self, tensors: list[Any], sizes: list[int], gradients: list[Any]) -> Model | None:
        """Return a model of the parameters that have a gradient or state, None if there are none."""
        # Validate before anything is modified.
        self._shapes = check_layers(self._shapes, self.param_groups, self._checked_groups())
        members, inactive, place = [], [], 0
        unlike = unlike_names(self.param_groups)
        for index in range(len(self.param_groups)):
            for _, tensor in self._names_in(index):
                gradient, name = gradients[place], unlike[place]
                if self._takes_part(tensor, gradient):
                    check_parameter(name, tensor)
                    check_layer(name, tensor, self.param_groups[index], self._method)
                    if gradient is not None:
                        check_gradient(name, tensor, alike(gradient, tensor))
                    members.append(Member(name, index, place, tensor))
                elif tensor.dtype in NUMPY_DTYPES:
                    inactive.append(Member(f"{name} (inactive {place})", index, place, tensor))
                place += 1
        if not members:
            return None
        backend = self._backend_for(
            device_of(self.param_groups), [m for m in members if is_dtensor(m.tensor)]
        )
        older = self._model
        # What is made here is for steps outside of inference mode too.
        with torch.inference_mode(False):
            given = tensors, sizes, members, inactive, self.state, self._flat
            model = Model(*given, backend.new_bucket, self.param_groups, self._flat_parts)
        counts, nonfinite = model.counts(backend.waits), "propagate"
        self._plan = Plan(
            self._method, model.layout, model.buckets, model.placement, self._rates, counts, nonfinite
        )
        backend.place(self._plan)
        if older is not None:
            model.keep_norms(older)
        self._model, self._written, self._follows = model, [], False
        return model

    def _takes_part(self, tensor: Tensor, gradient: Tensor | None) -> bool:
        """Return whether a parameter is to have state."""
        return gradient is not None or bool(self.state.get(tensor))

    def _backend_for(self, device: torch.device | None, pieces: Sequence[Member]) -> Backend:
        if self._backend is None or (device, bool(pieces)) != self._backend_is_on:
            self._skipped = self.skipped_steps
            self._backend = backend_of(device, pieces)
            self._backend_is_on = device, bool(pieces)
        find_pieces(self._backend, pieces)
        return self._backend

    # -- options -------------------------------------------------------------------------------------------

    def _checked_groups(self) -> list[Row]:
        rows = [self._check_group(where(index), group) for index, group in enumerate(self.param_groups)]
        for index, row in enumerate(rows):
            check_stays(where(index), row, map(self._flat.stored.get, self.param_groups[index]["params"]))
        return rows

    def _look_at_groups(self) -> None:
        """Take note of the groups' options, checked, where any may have changed since the last step."""
        groups = self.param_groups
        given = [*chain.from_iterable(map(dict.values, groups))]
        keys = [*map(list, groups)]
        if keys == self._keys and all(map(is_, given, self._given)) and self._given:
            return
        if keys != self._keys:
            for index, group in enumerate(groups):
                check_keys(where(index), self._method.name, group, self.defaults)
            self._keys = keys
        # Until all is noted, an interrupt has the next step look at all of it again.
        self._given, self._follows = [], False
        self._rates.give(*checked_rates(groups))
        # Values that can change in place are looked at in each step.
        known = [group[name] for group in groups for name in self.defaults if name in group]
        self._given = [] if any(map(is_mutable, known)) else given

    def _follow_options(self, model: Model, backend: Backend) -> bool:
        """Write what changed in the groups' options but their rates; return whether anything did."""
        names = [name for name in self._method.names if name not in RATE_KEYS]
        options = [[compared(group[name]) for name in names] for group in self.param_groups]
        if changed := options != self._written:
            self._written = []
            model.write_options(self.param_groups, self._checked_groups())
            found = {group["nonfinite"] for group in self.param_groups}
            self._plan.nonfinite = next((name for name in ("raise", "skip") if name in found), "propagate")
            backend.columns_changed()
            self._written = options
        self._follows = True
        return changed

    # -- statistics ----------------------------------------------------------------------------------------

    def stats(self) -> Mapping[str, float]:
        """Return each layer's norms and trust ratio at its last update, by ``"<quantity>/<name>"``.

        Names are those of ``model.named_parameters()`` where they were given, else ``param_<index>``. Ready for
        ``wandb.log`` or, one by one, TensorBoard's ``add_scalar``; nothing of it is in ``state``. For a float16
        parameter with a master ``beyond_float16`` is how many of its elements are infinite and their masters not.
        """
        if self._model is None or self._backend is None:
            return {}
        return with_beyond_float16(self._backend.stats(), self._model.members, self.state)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        kept: dict[str, Any] = super().__getstate__()
        return {**kept, "_fused_amp": self._fused_amp, "_skipped": self.skipped_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        skipped = state.get("_skipped", self.skipped_steps if "_skipped" in vars(self) else 0)
        before, shapes = vars(self).get("param_groups", []), vars(self).get("_shapes")
        if "_fused_amp" not in vars(self):
            self._fused_amp = False
        if "_lock" not in vars(self):
            self._lock = step_lock()
        super().__setstate__(state)
        unwrap(self.state)
        for index, group in enumerate(self.param_groups):
            for name in FILTERS:
                if name in self.defaults and index < len(before) and group.get(name) is None:
                    group[name] = before[index].get(name)
            for name, value in self.defaults.items():
                if name not in ("lr", "differentiable"):
                    group.setdefault(name, value)
        self._forget()
        self._skipped = skipped
        self._shapes = shapes_of(self.param_groups) if shapes is None else shapes

    @uncompiled
    def state_dict(self) -> dict[str, Any]:
        """Return the state as PyTorch's optimizers do; `decay_filter` and `adapt_filter` are None there."""
        if self._backend is not None:
            self._backend.check_whole()
        state: dict[str, Any] = super().state_dict()
        state["state"] = {
            key: gatherable(entry) if isinstance(entry, dict) else entry
            for key, entry in state["state"].items()
        }
        for group in state["param_groups"]:
            group.update({name: None for name in FILTERS if name in group})
        return state

    @uncompiled
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` returned, of this optimizer or of one that this class can take over from.

        Filters stay as they are. See ``docs/moving-in.md`` for what is taken from other packages' optimizers.

        Raises
        ------
        ValueError, TypeError
            If it is another kind of optimizer's, or of a formula that is not here; nothing has changed then.
        """
        adopted = adopt_state_dict(self._method.name, state_dict, self.defaults)
        for index, group in enumerate(adopted["param_groups"]):
            check_keys(where(index), self._method.name, group, self.defaults)
        names = [name for index in range(len(self.param_groups)) for name, _ in self._names_in(index)]
        with uncast(self):
            super().load_state_dict(loadable(adopted, names, self.param_groups))

    @classmethod
    def from_optimizer(cls, other: torch.optim.Optimizer, **overrides: Any) -> Self:
        """Return an optimizer that goes on where `other` stopped: its parameters, groups, formula and state.

        Parameters
        ----------
        other : torch.optim.Optimizer
            One of those in ``docs/moving-in.md``. It and its state stay as they are.
        **overrides
            Options of this class to have in place of those of `other`, in all groups.

        Raises
        ------
        ValueError, TypeError
            If something that `other` does has no counterpart here.
        """
        defaults, groups = options_of(cls._method.name, other, overrides)
        made = cls(groups, **defaults)
        made.load_state_dict(dict(state_dict_of(cls._method.name, other, made.param_groups)))
        return made

    def load_optax_state(self, opt_state: Any, names: Sequence[str] | None = None) -> None:
        """Take over moments and step count from the state of an optax optimizer.

        Parameters
        ----------
        opt_state : Any
            What optax's ``init`` and ``update`` return.
        names : sequence of str, optional
            The parameter name of each of its leaves, where they are not those of the tree.
        """
        self.load_state_dict(optax_state_dict(self._method.name, opt_state, names, self))


for _name in OPTIONS:
    setattr(LayerwiseOptimizer, _name, InGroups(_name))
