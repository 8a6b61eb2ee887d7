"""Optimizer: everything but the arithmetic, in the order of a step.

A step evaluates the groups' rates, takes the gradients' addresses, writes the scalar tables, checks the
gradients, and only then lets the kernels write. Whatever can be refused is refused before that point.
"""

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import sharding_of
from numba_lamb.engine.agreement import described_layers, made_alike, plain_options
from numba_lamb.engine.bucket import Bucket, check_rows
from numba_lamb.engine.choose import Shared, choose_backend
from numba_lamb.engine.columns import write_options
from numba_lamb.engine.interface import Plan
from numba_lamb.engine.precision import precisions_of
from numba_lamb.groups import Parameter, ParameterSet, collect, collect_group
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.arrays import MemoryMap
from numba_lamb.memory.gradients import GradientTable, WeightTable
from numba_lamb.methods.checks import passes, real
from numba_lamb.methods.options import Method
from numba_lamb.optimizers.attributes import GroupOption, OptionNames
from numba_lamb.optimizers.copies import Copied
from numba_lamb.optimizers.description import Described
from numba_lamb.optimizers.param_groups import LiveGroups, decayed_by_name
from numba_lamb.optimizers.state import check_state, upgraded
from numba_lamb.rates import RATE_KEYS
from numba_lamb.step_lock import step_lock

Nonfinite: TypeAlias = Literal["raise", "skip", "propagate"]
LayerFilter: TypeAlias = Callable[[Layer], bool]
Gradients: TypeAlias = Mapping[str, Any] | Iterable[Any]
check_loss_scale = partial(real(zero=False), "loss_scale", "")


class Optimizer(OptionNames, Described, Copied, ABC):
    """Parameters, groups, state and the phases of a step, for every method."""

    _loss_scale: float = 1.0
    """What gradients were multiplied by."""
    _has_loss_scale: ClassVar[bool] = False
    """Whether that is an option."""
    _lars_filter: LayerFilter | None = None
    """What keeps LARS and weight decay away from layers."""

    def __init__(
        self,
        method: Method,
        params: Any,
        options: Mapping[str, Any],
        num_threads: int | None,
        capture_steps: int | None,
        comm: Any = None,
    ) -> None:
        sharding = sharding_of(comm)
        ranks = None if sharding is None else Shared(sharding.connect(), sharding.bucket_mb)
        with made_alike(None if ranks is None else ranks.comm) as described:
            self._groups = LiveGroups(method, options)
            found = collect(params, self._groups.keys)
            given = found.parameters, num_threads, capture_steps, ranks, self._groups.centralized
            self._backend = choose_backend(*given)
            self._groups.usual_nonfinite = self._backend.nonfinite
            self._lock = step_lock()
            self._buckets: list[Bucket] = []
            self._parameters: list[Parameter] = []
            self.param_groups = self._groups.dicts
            """The groups' options, live: what is assigned here holds from the next step on."""
            self._add(found)
            described["the layers"] = described_layers(self.layout)
            described["options"] = plain_options(self.param_groups)
            described["bucket_mb"] = None if ranks is None else ranks.bucket_mb

    learning_rate = GroupOption("lr")
    weight_decay = GroupOption()
    maximize = GroupOption()
    max_grad_norm = GroupOption()
    grad_centralization = GroupOption()
    decay_filter = GroupOption()
    master, moments, seed = GroupOption(), GroupOption(), GroupOption()
    nonfinite = GroupOption()

    @property
    def _method(self) -> Method:
        return self._groups.method

    # -- parameters and groups -----------------------------------------------------------------------------

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group of parameters; those already here keep their place and state.

        Parameters
        ----------
        group : dict
            ``params`` as in the constructor, and any of the options that groups have.
            Gradients of the new parameters come after all others.

        Raises
        ------
        KeyError, RuntimeError, TypeError, ValueError
            As the constructor does for a group; nothing has changed then.
        """
        added, options = collect_group(group, self._parameters, len(self.param_groups), self._groups.keys)
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
                self._backend.place(self._plan)
            raise

    def _place(self, parameters: list[Parameter]) -> None:
        """Lay out all parameters, whose first ones may have a place and state already."""
        memory = MemoryMap([p.name for p in parameters], [p.storage for p in parameters])
        layout = FlatLayout((p.name, p.storage.shape, p.storage.dtype, p.group) for p in parameters)
        new_bucket, state = self._backend.new_bucket, self._method.numpy_state
        precisions = precisions_of(parameters, self._groups.rows())
        buckets = [new_bucket(layout, dtype, parameters, precisions, state) for dtype in layout.dtypes]
        for bucket in buckets:
            for older in self._buckets:
                if older.dtype == bucket.dtype:
                    bucket.adopt(older)
        placement = [(bucket, row) for bucket in buckets for row in range(len(bucket.indices))]
        placement.sort(key=lambda slot: slot[0].indices[slot[1]])
        options = self._write_columns(buckets)
        self._placement = placement
        self._buckets = buckets
        self._parameters = parameters
        self._arrays = [parameter.array for parameter in parameters]
        self.layout = layout
        """Where each layer lies: names, shapes, offsets and chunks."""
        reader = self._backend.new_reader(layout.layers, self._arrays)
        weights = WeightTable(memory, [(bucket.weights, bucket.indices) for bucket in buckets], reader)
        places = [(bucket.gradients, bucket.indices) for bucket in buckets]
        self._gradients = GradientTable(layout.layers, places, reader, weights)
        for index, group in enumerate(self.param_groups):
            group["params"] = [parameter.array for parameter in parameters if parameter.group == index]
        self._plan = Plan(
            self._method,
            layout,
            buckets,
            placement,
            self._groups,
            nonfinite=self._groups.nonfinite(),
            loss_scale=self._loss_scale,
        )
        self._backend.place(self._plan)
        self._groups.written(options)

    def _write_columns(self, buckets: Sequence[Bucket]) -> list[Any]:
        """Write the groups' options into the columns, or raise before anything is written; return them."""
        groups = self._groups
        # Before filters are called, which may change them.
        options = groups.now()
        rows = groups.rows()
        centralized = groups.centralized()
        for bucket in buckets:
            for layer in bucket.layers:
                if layer.group in centralized:
                    check_rows(layer)
            bucket.check_whole(centralized)
        decayed = [[self._is_decayed(layer) for layer in bucket.layers] for bucket in buckets]
        adaptable = [[self._is_adaptable(layer) for layer in bucket.layers] for bucket in buckets]
        # If this is interrupted, the next step writes all of it anew, whatever the options are then.
        groups.look_again()
        write_options(buckets, rows, decayed, adaptable, self._loss_scale)
        for bucket in buckets:
            if bucket.centralized != centralized:
                bucket.centralize(centralized)
        return options

    def _rewrite_columns(self) -> None:
        """Write the groups' options as they are now, or raise before anything is written."""
        options = self._write_columns(self._buckets)
        self._plan.method, self._plan.nonfinite = self._method, self._groups.nonfinite()
        self._plan.loss_scale = self._loss_scale
        self._backend.columns_changed()
        self._groups.written(options)

    def _is_decayed(self, layer: Layer) -> bool:
        if self._lars_filter is not None and not passes("lars_filter", self._lars_filter, layer):
            return False
        decay_filter = self._groups.filter_of("decay_filter", layer.group)
        if decay_filter is not None:
            return passes("decay_filter", decay_filter, layer)
        return not self._groups.decays_by_name(layer.group) or decayed_by_name(layer)

    def _is_adaptable(self, layer: Layer) -> bool:
        if self._lars_filter is not None and not passes("lars_filter", self._lars_filter, layer):
            return False
        adapt_filter = self._groups.filter_of("adapt_filter", layer.group)
        return adapt_filter is None or passes("adapt_filter", adapt_filter, layer)

    def _share(self, key: str, value: object) -> None:
        """Set what groups without a value of their own have, or raise and change nothing."""
        before = self._groups.share(key, value)
        if key not in RATE_KEYS:
            try:
                self._rewrite_columns()
            except BaseException:
                self._groups.unshare(key, before)
                raise

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameter arrays by name, in the order gradients are given in."""
        return MappingProxyType({parameter.name: parameter.array for parameter in self._parameters})

    # -- rates ---------------------------------------------------------------------------------------------

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
        try:
            self._groups.follow(self._rewrite_columns)
        except BaseException as error:
            self._backend.tell(error)
            raise
        passed = self._backend.prepare(partial(self._gradients.read, gradients), stream)
        if passed:
            self._backend.commit()
        return passed

    @property
    def global_step(self) -> int:
        """Steps taken so far; the next step has the schedule's value at it. On a GPU this waits for it."""
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

    # -- statistics and checkpoints ------------------------------------------------------------------------

    def stats(self) -> Mapping[str, float]:
        """Return norms and trust ratios of each layer at its last update."""
        return self._backend.stats()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state: nested dicts of plain values and arrays, without the parameters.

        The groups' options and constant rates travel with the state; schedules, tables and filters stay with the
        optimizer they were given to.
        """
        return self._state([self._backend.whole_state(bucket) for bucket in self._buckets], np.copy)

    def _state(
        self, values: list[dict[str, NDArray[Any]]], taken: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> dict[str, Any]:
        of_bucket = {id(bucket): value for bucket, value in zip(self._buckets, values, strict=True)}
        applied, skipped = self._backend.counters()
        return {
            "format_version": 2,
            "optimizer": self._method.name,
            "global_step": applied,
            "skipped_steps": skipped,
            "numbers": {"loss_scale": self._loss_scale} if self._has_loss_scale else {},
            "groups": [self._groups.saved(index) for index in range(len(self.param_groups))],
            "layers": {
                bucket.layers[row].name: {
                    "step": int(of_bucket[id(bucket)]["steps"][row]),
                    **{
                        name: taken(bucket.full.part(of_bucket[id(bucket)], name, row))
                        for name in bucket.state.names(row)
                    },
                }
                for bucket, row in self._placement
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned; the parameters are not part of it.

        Raises
        ------
        TypeError, ValueError
            If `state` is another optimizer's or format version's, made for another number of groups or for
            parameters with other names, shapes or dtypes, or has an option that is refused; nothing has
            changed then.
        """
        values = [self._backend.whole_blank(bucket) for bucket in self._buckets]
        own = self._state(values, lambda view: view)
        state = upgraded(state, own)
        check_state(state, own)
        self._take_options(state)
        of_bucket = {id(bucket): value for bucket, value in zip(self._buckets, values, strict=True)}
        for bucket, row in self._placement:
            layer = state["layers"][bucket.layers[row].name]
            of_bucket[id(bucket)]["steps"][row] = layer["step"]
            for name in bucket.state.names(row):
                bucket.full.part(of_bucket[id(bucket)], name, row)[...] = layer[name]
        for bucket, value in zip(self._buckets, values, strict=True):
            value["updated"][:] = 0
            self._backend.take_state(bucket, value)
        self._backend.set_counters(state["global_step"], state["skipped_steps"])

    def _take_options(self, state: Mapping[str, Any]) -> None:
        """Take over the options of a state, or raise and change nothing."""
        given = [
            {key: value for key, value in group.items() if value is not None or key not in RATE_KEYS}
            for group in state["groups"]
        ]
        for index, options in enumerate(given):
            self._groups.row(index, {**self.param_groups[index], **options})
        loss_scale = check_loss_scale(state["numbers"].get("loss_scale", 1.0))
        before = [dict(group) for group in self.param_groups], self._loss_scale
        for group, options in zip(self.param_groups, given, strict=True):
            group.update(options)
        self._loss_scale = loss_scale
        try:
            self._rewrite_columns()
        except BaseException:
            for group, kept in zip(self.param_groups, before[0], strict=True):
                group.update(kept)
            self._loss_scale = before[1]
            raise
