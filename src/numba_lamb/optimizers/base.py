"""Optimizer: everything but the arithmetic, in the order of a step.

A step evaluates the groups' rates, takes the gradients' addresses, writes the scalar tables, checks the
gradients, and only then lets the kernels write. Whatever can be refused is refused before that point.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from numba_lamb.arrays import GradientTable, MemoryMap
from numba_lamb.groups import Parameter, ParameterSet, collect, collect_group
from numba_lamb.kernels import cpu, launch, rows
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.optimizers.live import LiveGroups
from numba_lamb.optimizers.parts import Part
from numba_lamb.optimizers.state import check_state
from numba_lamb.rates import Rate, RateLike

Nonfinite: TypeAlias = Literal["raise", "skip", "propagate"]
LayerFilter: TypeAlias = Callable[[Layer], bool]
Gradients: TypeAlias = Mapping[str, NDArray[Any] | None] | Iterable[NDArray[Any] | None]

_NONFINITE = ("raise", "skip", "propagate")


def decayed_by_name(layer: Layer) -> bool:
    """Return whether weight decay applies to a layer where no groups are given: not to `beta` and `gamma`."""
    return "beta" not in layer.name and "gamma" not in layer.name


def check_float(name: str, value: object, *, zero: bool = False, below: float = math.inf) -> None:
    """Raise unless `value` is a float above 0 (or 0 itself, with `zero`) and less than `below`."""
    if not isinstance(value, float):
        raise TypeError(f"{name} must be a float, not {type(value).__name__}")
    if not (0 < value < below or (zero and value == 0)):
        sign = ">=" if zero else ">"
        allowed = f"{sign} 0 and finite" if below == math.inf else f"between 0 and {below:g}, both excluded"
        raise ValueError(f"{name} must be {allowed}, not {value!r}")


def check_filter(name: str, layer_filter: object) -> None:
    """Raise unless `layer_filter` is None or callable."""
    if layer_filter is not None and not callable(layer_filter):
        raise TypeError(f"{name} must be a callable of a layer or None, not {type(layer_filter).__name__}")


class Optimizer(ABC):
    """Parameters, groups, state and the phases of a step; subclasses add the arithmetic.

    A subclass names its state buffers and hyper-parameters, writes the scalar rows, and runs its kernel.
    """

    _state_names: ClassVar[tuple[str, ...]]
    _number_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        params: Any,
        learning_rate: RateLike,
        weight_decay: RateLike,
        *,
        decay_filter: LayerFilter | None,
        nonfinite: Nonfinite,
        num_threads: int | None,
    ) -> None:
        Rate(learning_rate, "learning_rate")
        if nonfinite not in _NONFINITE:
            raise ValueError(
                f"nonfinite must be one of {', '.join(map(repr, _NONFINITE))}, not {nonfinite!r}"
            )
        check_filter("decay_filter", decay_filter)
        found = collect(params)
        Rate(weight_decay, "weight_decay")
        self._groups = LiveGroups(learning_rate, weight_decay)
        self._decay_filter = decay_filter
        self._nonfinite: Nonfinite = nonfinite
        self._num_threads = launch.check_num_threads(num_threads)
        self._parts: list[Part] = []
        self._parameters: list[Parameter] = []
        self.param_groups = self._groups.dicts
        """The groups' options, live: what is assigned here holds from the next step on."""
        self.global_step: int = 0
        """Steps taken so far; the next step's rate is the schedule's value at this number."""
        self.skipped_steps: int = 0
        """Steps left out because a gradient was not finite (``nonfinite="skip"``)."""
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
        try:
            for options in found.options:
                self._groups.add(options, by_name=not found.grouped)
            self._groups.check_tables()
            self._place(found.parameters)
        except BaseException:
            self._groups.keep(count)
            raise

    def _place(self, parameters: list[Parameter]) -> None:
        """Lay out all parameters, whose first ones may have a place and state already."""
        memory = MemoryMap([p.name for p in parameters], [p.array for p in parameters])
        layout = FlatLayout((p.name, p.array.shape, p.array.dtype, p.group) for p in parameters)
        decayed = [self._is_decayed(layer) for layer in layout.layers]
        parts = [Part(layout, dtype, parameters, decayed, self._state_names) for dtype in layout.dtypes]
        for part in parts:
            for older in self._parts:
                if older.dtype == part.dtype:
                    part.adopt(older)
            self._write_constants(part)
        slots = [(part, row) for part in parts for row in range(len(part.indices))]
        slots.sort(key=lambda slot: slot[0].indices[slot[1]])
        self._centralized = self._centralize(layout, parts)
        self._slots = slots
        self._parts = parts
        self._parameters = parameters
        self._arrays = [parameter.array for parameter in parameters]
        self.layout = layout
        """Where each layer lies: names, shapes, offsets and chunks."""
        self._gradients = GradientTable(
            layout.layers, memory, [(part.addresses[:, rows.GRADIENT], row) for part, row in slots]
        )
        for index, group in enumerate(self.param_groups):
            group["params"] = [parameter.array for parameter in parameters if parameter.group == index]

    def _is_decayed(self, layer: Layer) -> bool:
        if self._decay_filter is not None:
            return bool(self._decay_filter(layer))
        return not self._groups.decays_by_name(layer.group) or decayed_by_name(layer)

    def _centralize(self, layout: FlatLayout, parts: list[Part]) -> tuple[int, ...]:
        groups = self._groups.centralized()
        for layer in layout.layers:
            if layer.group in groups and layer.ndim < 3:
                raise ValueError(
                    f"'grad_centralization' of group {layer.group} is True, but parameter {layer.name!r} is no "
                    f"convolution kernel: it has {layer.ndim} dimensions, and 3 are the least"
                )
        for part in parts:
            part.centralize(groups)
        return groups

    @property
    def params(self) -> Mapping[str, NDArray[Any]]:
        """The parameter arrays by name, in the order gradients are given in."""
        return MappingProxyType({parameter.name: parameter.array for parameter in self._parameters})

    def __copy__(self) -> "Optimizer":
        raise TypeError(
            "an optimizer cannot share its state with a copy; use copy.deepcopy, which copies the parameters too, "
            "or state_dict and load_state_dict"
        )

    def __getstate__(self) -> dict[str, Any]:
        derived = ("_parts", "_slots", "_gradients", "layout", "_centralized", "_arrays")
        kept = {key: value for key, value in vars(self).items() if key not in derived}
        return {**kept, "_saved": [part.saved() for part in self._parts]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Addresses are those of the original's arrays: everything that holds them is made anew.
        saved = state.pop("_saved")
        vars(self).update(state, _parts=[])
        self._place(self._parameters)
        for part, values in zip(self._parts, saved, strict=True):
            part.restore(values)

    # -- rates ---------------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> RateLike:
        """The rate of every group without one of its own, as given; assigning sets it from the next step on."""
        return self._groups.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: RateLike) -> None:
        self._groups.learning_rate = value

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

    # -- the step ------------------------------------------------------------------------------------------

    def step(self, gradients: Gradients) -> None:
        """Update every parameter in place from its gradient.

        Parameters
        ----------
        gradients : mapping or iterable
            By parameter name, or in parameter order: arrays with the parameter's dtype and shape,
            C-contiguous, never written. None leaves that parameter, its state and its step count as they are.

        Raises
        ------
        TypeError, ValueError, KeyError
            If `gradients` does not fit the parameters, or a rate is not a finite number >= 0; nothing has
            changed then.
        IndexError
            If a table of rates has no value for this step; nothing has changed then.
        FloatingPointError
            If a gradient is infinite or NaN and `nonfinite` is ``"raise"``; nothing has changed then.
        """
        self._apply(gradients)

    def __call__(self, gradients: Gradients) -> tuple[bool, ...]:
        """Take a `step` and return for each parameter whether it was updated."""
        applied = self._apply(gradients)
        return tuple(applied and given for given in self._gradients.given())

    def _apply(self, gradients: Gradients) -> bool:
        self._groups.check()
        rates = self._values("lr")
        decays = self._values("weight_decay")
        if self._groups.centralized() != self._centralized:
            self._centralized = self._centralize(self.layout, self._parts)
        for array in self._arrays:
            if not array.flags.writeable:
                name = next(p.name for p in self._parameters if p.array is array)
                raise ValueError(f"parameter {name!r} became read-only and cannot be updated in place")
        # Held by name until the kernels are done: a generator's arrays are held by nobody else.
        held = self._gradients.update(gradients)
        for part in self._parts:
            if part.written_rates != rates:
                part.rates[:] = np.array(rates)[part.group_of]
                part.written_rates = rates
            if part.written_decays != decays:
                self._write_decays(part, np.array(decays)[part.group_of] * part.decayed)
                part.written_decays = decays
            self._write_step(part)
        if self._nonfinite != "propagate" and not self._all_finite():
            self.skipped_steps += 1
            return False
        for part in self._parts:
            self._run(part)
        del held
        for part in self._parts:
            part.count_step(self._gradients.complete)
        self.global_step += 1
        return True

    def _values(self, key: str) -> list[float]:
        values = self._groups.values(key, self.global_step)
        for part in self._parts:
            if max(values) > part.largest and max(values[k] for k in part.group_of) > part.largest:
                index = max(part.group_of.tolist(), key=values.__getitem__)
                raise ValueError(
                    f"{key!r} of group {index} at step {self.global_step} is {values[index]!r}, "
                    f"more than the {part.dtype} of its parameters can hold"
                )
        return values

    def _all_finite(self) -> bool:
        for part in self._parts:
            arguments = (part.addresses, part.scalars, part.table.sizes, part.table.chunks, part.nonfinite)
            launch.run(cpu.check_gradients, len(part.table.chunks), self._num_threads, *arguments)
        bad = next((part for part in self._parts if part.nonfinite.any()), None)
        if bad is not None and self._nonfinite == "raise":
            row = bad.table.chunks[np.flatnonzero(bad.nonfinite)[0], 0]
            first, last = bad.table.first_chunk[row : row + 2]
            raise FloatingPointError(
                f"gradient of {bad.layers[row].name!r} has {bad.nonfinite[first:last].sum()} values that are "
                'infinite or NaN; nothing was changed (nonfinite="skip" leaves such a step out)'
            )
        return bad is None

    @abstractmethod
    def _check_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Raise unless these hyper-parameters are allowed."""

    @abstractmethod
    def _write_constants(self, part: Part) -> None:
        """Write what stays the same from step to step into the scalar rows of `part`."""

    @abstractmethod
    def _write_decays(self, part: Part, decays: NDArray[np.float64]) -> None:
        """Write each layer's weight decay into the scalar rows of `part`."""

    def _write_step(self, part: Part) -> None:  # noqa: B027  (Momentum has nothing that counts steps)
        """Write what every step changes into the scalar rows of `part`."""

    @abstractmethod
    def _run(self, part: Part) -> None:
        """Run the kernels on `part`."""

    # -- statistics and checkpoints ------------------------------------------------------------------------

    @abstractmethod
    def stats(self) -> dict[str, float]:
        """Return norms and trust ratios of each layer at its last update."""

    def _stat(self, quantity: str, column: int, adapted_only: bool = False) -> dict[str, float]:
        return {
            f"{quantity}/{part.layers[row].name}": float(part.norms[row, column])
            for part, row in self._slots
            if part.updated[row] and not (adapted_only and part.scalars[row, rows.ADAPT] == 0)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state: nested dicts of plain values and arrays, without the parameters.

        Numbers (hyper-parameters, constant rates and decays) travel with the state; schedules, tables and
        filters stay with the optimizer they were given to.
        """
        return self._state(lambda view: view.copy())

    def _state(self, taken: Callable[[NDArray[Any]], NDArray[Any]]) -> dict[str, Any]:
        return {
            "format_version": 1,
            "optimizer": type(self).__name__,
            "global_step": self.global_step,
            "skipped_steps": self.skipped_steps,
            "numbers": {name: getattr(self, name) for name in self._number_names},
            "groups": [
                {key: self._groups.rate(index, key).number for key in ("lr", "weight_decay")}
                for index in range(len(self.param_groups))
            ],
            "layers": {
                part.layers[row].name: {
                    "step": int(part.steps[row]),
                    **{name: taken(part.view(name, row)) for name in self._state_names},
                }
                for part, row in self._slots
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
        check_state(state, self._state(lambda view: view))
        self._check_numbers(state["numbers"])
        before = {name: getattr(self, name) for name in self._number_names}
        try:
            self._set_numbers(state["numbers"])
        except ValueError:
            # The parameters' dtype cannot hold one of them.
            self._set_numbers(before)
            raise
        for index, saved in enumerate(state["groups"]):
            self.param_groups[index].update({key: value for key, value in saved.items() if value is not None})
        self.global_step = state["global_step"]
        self.skipped_steps = state["skipped_steps"]
        for part, row in self._slots:
            layer = state["layers"][part.layers[row].name]
            part.steps[row] = layer["step"]
            for name in self._state_names:
                part.view(name, row)[...] = layer[name]
        for part in self._parts:
            part.updated[:] = False
            part.forget_written()

    def _set_numbers(self, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            setattr(self, f"_{name}", number)
        for part in self._parts:
            self._write_constants(part)
