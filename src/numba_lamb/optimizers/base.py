"""Optimizer: everything but the arithmetic, in the order of a step.

A step evaluates the groups' rates, takes the gradients' addresses, writes the scalar tables, checks the
gradients, and only then lets the kernels write. Whatever can be refused is refused before that point.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from numba_lamb.checks import check_filter, check_limit, check_nonfinite, passes
from numba_lamb.engine.bucket import Bucket, view_of
from numba_lamb.engine.choose import choose_backend
from numba_lamb.groups import Parameter, ParameterSet, collect, collect_group
from numba_lamb.kernels import columns
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.arrays import MemoryMap
from numba_lamb.memory.gradients import GradientTable, WeightTable
from numba_lamb.optimizers.attributes import OptionNames
from numba_lamb.optimizers.description import Described
from numba_lamb.optimizers.param_groups import LiveGroups, decayed_by_name
from numba_lamb.optimizers.state import check_state
from numba_lamb.rates import RATE_KEYS, Rate, RateLike
from numba_lamb.step_lock import step_lock

Nonfinite: TypeAlias = Literal["raise", "skip", "propagate"]
LayerFilter: TypeAlias = Callable[[Layer], bool]
Gradients: TypeAlias = Mapping[str, Any] | Iterable[Any]


class Optimizer(OptionNames, Described, ABC):
    """Parameters, groups, state and the phases of a step; subclasses add the arithmetic.

    A subclass names its state buffers and hyper-parameters, writes the scalar rows, and runs its kernel.
    """

    _state_names: ClassVar[tuple[str, ...]]
    _number_names: ClassVar[tuple[str, ...]]
    _statistics: ClassVar[tuple[tuple[str, int, bool], ...]]
    """What `stats` tells: a name, its column of norms, and whether only layers that adapt have it."""
    _loss_scale: float = 1.0
    _has_two_moments: ClassVar[bool] = False

    def __init__(
        self,
        params: Any,
        learning_rate: RateLike,
        weight_decay: RateLike,
        *,
        decay_filter: LayerFilter | None,
        max_grad_norm: float | None,
        nonfinite: Nonfinite | None,
        num_threads: int | None,
        capture_steps: int | None,
    ) -> None:
        Rate(learning_rate, "learning_rate")
        check_nonfinite(nonfinite)
        check_filter("decay_filter", decay_filter)
        self._max_grad_norm = check_limit(max_grad_norm)
        found = collect(params)
        Rate(weight_decay, "weight_decay")
        self._groups = LiveGroups(learning_rate, weight_decay)
        self._decay_filter = decay_filter
        self._backend = choose_backend(found.parameters, num_threads, capture_steps)
        self._lock = step_lock()
        self._nonfinite: Nonfinite = nonfinite or self._backend.nonfinite
        self._buckets: list[Bucket] = []
        self._parameters: list[Parameter] = []
        self.param_groups = self._groups.dicts
        """The groups' options, live: what is assigned here holds from the next step on."""
        self._add(found)

    # -- parameters and groups -----------------------------------------------------------------------------

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group of parameters; those already here keep their place and state.

        Parameters
        ----------
        group : dict
            ``params`` as in the constructor, and any of ``lr``, ``weight_decay`` and ``grad_centralization``.
            Gradients of the new parameters come after all others.

        Raises
        ------
        KeyError, RuntimeError, TypeError, ValueError
            As the constructor does for a group; nothing has changed then.
        """
        added, options = collect_group(group, self._parameters, len(self.param_groups))
        self._add(ParameterSet([*self._parameters, *added], [options], grouped=True))

    def _add(self, found: ParameterSet) -> None:
        count = len(self.param_groups)
        kept, before = dict(vars(self)), self._buckets
        try:
            for options in found.options:
                self._groups.add(options, by_name=not found.grouped)
            self._groups.check_tables()
            self._place(found.parameters)
        except BaseException:
            self._groups.keep(count)
            if before and self._buckets is not before:
                vars(self).update(kept)
                self._backend.placed(self)
            raise

    def _place(self, parameters: list[Parameter]) -> None:
        """Lay out all parameters, whose first ones may have a place and state already."""
        memory = MemoryMap([p.name for p in parameters], [p.storage for p in parameters])
        layout = FlatLayout((p.name, p.storage.shape, p.storage.dtype, p.group) for p in parameters)
        decayed = [self._is_decayed(layer) for layer in layout.layers]
        new_bucket = self._backend.new_bucket
        buckets = [
            new_bucket(layout, dtype, parameters, decayed, self._state_names) for dtype in layout.dtypes
        ]
        for bucket in buckets:
            for older in self._buckets:
                if older.dtype == bucket.dtype:
                    bucket.adopt(older)
            self._write_columns(bucket)
        placement = [(bucket, row) for bucket in buckets for row in range(len(bucket.indices))]
        placement.sort(key=lambda slot: slot[0].indices[slot[1]])
        self._centralized = self._centralize(layout, buckets)
        self._placement = placement
        self._buckets = buckets
        self._parameters = parameters
        self._arrays = [parameter.array for parameter in parameters]
        self.layout = layout
        """Where each layer lies: names, shapes, offsets and chunks."""
        reader = self._backend.new_reader(layout.layers, self._arrays)
        found = [
            [(bucket.addresses[:, k], bucket.indices) for bucket in buckets]
            for k in (columns.WEIGHTS, columns.GRADIENT)
        ]
        weights = WeightTable(memory, found[0], reader)
        self._gradients = GradientTable(layout.layers, found[1], reader, weights)
        for index, group in enumerate(self.param_groups):
            group["params"] = [parameter.array for parameter in parameters if parameter.group == index]
        self._backend.placed(self)

    def _is_decayed(self, layer: Layer) -> bool:
        if self._decay_filter is not None:
            return passes("decay_filter", self._decay_filter, layer)
        return not self._groups.decays_by_name(layer.group) or decayed_by_name(layer)

    def _centralize(self, layout: FlatLayout, buckets: list[Bucket]) -> tuple[int, ...]:
        groups = self._groups.centralized()
        for layer in layout.layers:
            if layer.group in groups and layer.ndim < 3:
                raise ValueError(
                    f"'grad_centralization' of group {layer.group} is True, but parameter {layer.name!r} is no "
                    f"convolution kernel: it has {layer.ndim} dimensions; centralization needs at least 3"
                )
        for bucket in buckets:
            bucket.centralize(groups)
        return groups

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameter arrays by name, in the order gradients are given in."""
        return MappingProxyType({parameter.name: parameter.array for parameter in self._parameters})

    def __copy__(self) -> "Optimizer":
        raise TypeError(
            "an optimizer cannot share its state with a copy; use copy.deepcopy, which copies the parameters too, "
            "or state_dict and load_state_dict"
        )

    def __getstate__(self) -> dict[str, Any]:
        self._backend.check_copyable()
        derived = ("_buckets", "_placement", "_gradients", "layout", "_centralized", "_arrays", "_lock")
        kept = {key: value for key, value in vars(self).items() if key not in derived}
        return {**kept, "_saved": [bucket.saved() for bucket in self._buckets]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Addresses are those of the original's arrays: everything that holds them is made anew.
        saved = state.pop("_saved")
        vars(self).update(state, _buckets=[], _lock=step_lock())
        self._place([parameter.found_again() for parameter in self._parameters])
        for bucket, values in zip(self._buckets, saved, strict=True):
            bucket.restore(values)

    # -- rates ---------------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> RateLike:
        """The rate of every group without one of its own, as given; assigning sets it from the next step on."""
        return self._groups.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: RateLike) -> None:
        self._groups.learning_rate = value

    @property
    def weight_decay(self) -> RateLike:
        """The decay of every group without one of its own, as given; assigning sets it from the next step on."""
        return self._groups.weight_decay

    @weight_decay.setter
    def weight_decay(self, value: RateLike) -> None:
        self._groups.weight_decay = value

    def get_lr(self) -> float | tuple[float, ...]:
        """Return the next step's rate: one number, or one per parameter where groups have rates of their own."""
        return self._by_parameter("lr", self._groups.have_rates)

    def get_weight_decay(self) -> float | tuple[float, ...]:
        """Return the next step's weight decay: one number, or one per parameter for several groups."""
        return self._by_parameter("weight_decay", len(self.param_groups) > 1)

    def _by_parameter(self, key: str, several: bool) -> float | tuple[float, ...]:
        self._groups.check()
        values = self._groups.values(key, self.global_step)
        return tuple(values[layer.group] for layer in self.layout.layers) if several else values[0]

    @property
    def max_grad_norm(self) -> float | None:
        """What a step's gradients are clipped to by norm, or None; assigning sets it from the next step on."""
        return self._max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        self._max_grad_norm = check_limit(value)
        for bucket in self._buckets:
            self._write_columns(bucket)

    @property
    def nonfinite(self) -> Nonfinite:
        """What is done about a gradient that is infinite or NaN; assigning sets it from the next step on."""
        return self._nonfinite

    @nonfinite.setter
    def nonfinite(self, value: Nonfinite | None) -> None:
        check_nonfinite(value)
        self._nonfinite = value or self._backend.nonfinite
        for bucket in self._buckets:
            self._write_columns(bucket)

    # -- the step ------------------------------------------------------------------------------------------

    def step(self, gradients: Gradients, stream: object = None) -> None:
        """Update every parameter in place from its gradient.

        Parameters
        ----------
        gradients : mapping or iterable
            By parameter name, or in parameter order: arrays with the parameter's dtype and shape,
            C-contiguous, never written. None leaves that parameter, its state and its step count as they are.
        stream : int or stream object, optional
            For arrays on a GPU, the stream to queue the step on: an address, or a stream of PyTorch, CuPy,
            Numba or cuda.core. By default the current stream of the library that owns the parameters, else
            the default stream. Nothing waits for the step but what is queued behind it.

        Raises
        ------
        TypeError, ValueError, KeyError
            If `gradients` does not fit the parameters, or a rate is not a finite number >= 0; nothing has
            changed then.
        IndexError
            If a table of rates has no value for this step; nothing has changed then.
        FloatingPointError
            If a gradient is infinite or NaN, or the norm to be clipped is, and `nonfinite` is ``"raise"``;
            nothing has changed then.
        """
        with self._lock:
            self._apply(gradients, stream)

    def __call__(self, gradients: Gradients, stream: object = None) -> tuple[bool, ...]:
        """Take a `step` and return for each parameter whether it was updated; on a GPU, whether it was queued."""
        with self._lock:
            applied = self._apply(gradients, stream)
            return tuple(applied and given for given in self._gradients.given())

    def _apply(self, gradients: Gradients, stream: object) -> bool:
        self._groups.check()
        if self._groups.centralized() != self._centralized:
            self._centralized = self._centralize(self.layout, self._buckets)
        return self._backend.step(self, gradients, stream)

    @property
    def global_step(self) -> int:
        """Steps taken so far: the next step's rate is the schedule's value here. On a GPU this waits for it."""
        return self._backend.counters()[0]

    @property
    def skipped_steps(self) -> int:
        """Steps left out because a gradient was not finite (``nonfinite="skip"``). On a GPU this waits for it."""
        return self._backend.counters()[1]

    def check(self) -> None:
        """Raise if a GPU refused a step because of its rates, which are known there alone; waits for the GPU.

        That happens where a rate lives in device memory and is negative or not finite, and where a captured
        step is replayed past `capture_steps`. Such steps change nothing. NumPy arrays raise at the step.

        Raises
        ------
        RuntimeError
            If steps were refused since the optimizer was made or loaded.
        """
        count, reasons = self._backend.refusals()
        if count:
            raise RuntimeError(f"{count} steps changed nothing: {' and '.join(reasons)}")

    @abstractmethod
    def _check_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Raise unless these hyper-parameters are allowed."""

    def _write_columns(self, bucket: Bucket) -> None:
        self._write_constants(bucket)
        bucket.refresh_flags()

    def _write_constants(self, bucket: Bucket) -> None:
        """Write what stays the same from step to step into `hyper` and `hyper64` of `bucket`."""
        bucket.hyper64[:, columns.DECAYED] = bucket.decayed
        bucket.hyper64[:, columns.CHECKED] = self._nonfinite != "propagate"
        bucket.hyper64[:, columns.MAX_GRAD_NORM] = self._max_grad_norm or 0.0

    # -- statistics and checkpoints ------------------------------------------------------------------------

    def stats(self) -> Mapping[str, float]:
        """Return norms and trust ratios of each layer at its last update."""
        return self._backend.stats(self)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state: nested dicts of plain values and arrays, without the parameters.

        Numbers (hyper-parameters, constant rates and decays) travel with the state; schedules, tables and
        filters stay with the optimizer they were given to.
        """
        return self._state([bucket.saved() for bucket in self._buckets], np.copy)

    def _state(
        self, values: list[dict[str, NDArray[Any]]], taken: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> dict[str, Any]:
        of_bucket = {id(bucket): value for bucket, value in zip(self._buckets, values, strict=True)}
        applied, skipped = self._backend.counters()
        return {
            "format_version": 1,
            "optimizer": type(self).__name__,
            "global_step": applied,
            "skipped_steps": skipped,
            "numbers": {name: getattr(self, name) for name in self._number_names},
            "groups": [
                {key: self._groups.rate(index, key).number for key in RATE_KEYS}
                for index in range(len(self.param_groups))
            ],
            "layers": {
                bucket.layers[row].name: {
                    "step": int(of_bucket[id(bucket)]["steps"][row]),
                    **{
                        name: taken(view_of(of_bucket[id(bucket)][name], bucket.layers[row]))
                        for name in self._state_names
                    },
                }
                for bucket, row in self._placement
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned; the parameters are not part of it.

        Raises
        ------
        ValueError
            If `state` is another optimizer's or format version's, or made for another number of groups or
            for parameters with other names, shapes or dtypes; nothing has changed then.
        """
        values = [bucket.blank() for bucket in self._buckets]
        check_state(state, self._state(values, lambda view: view))
        self._check_numbers(state["numbers"])
        check_limit(state["numbers"].get("max_grad_norm"))
        before = {name: getattr(self, name) for name in self._number_names}
        try:
            self._set_numbers(state["numbers"])
        except ValueError:
            # The parameters' dtype cannot hold one of them.
            self._set_numbers(before)
            raise
        for index, saved in enumerate(state["groups"]):
            self.param_groups[index].update({key: value for key, value in saved.items() if value is not None})
        of_bucket = {id(bucket): value for bucket, value in zip(self._buckets, values, strict=True)}
        for bucket, row in self._placement:
            layer = state["layers"][bucket.layers[row].name]
            of_bucket[id(bucket)]["steps"][row] = layer["step"]
            for name in self._state_names:
                view_of(of_bucket[id(bucket)][name], bucket.layers[row])[...] = layer[name]
        for bucket, value in zip(self._buckets, values, strict=True):
            value["updated"][:] = 0
            bucket.restore(value)
        self._backend.set_counters(state["global_step"], state["skipped_steps"])

    def _set_numbers(self, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            setattr(self, f"_{name}", number)
        for bucket in self._buckets:
            self._write_columns(bucket)
