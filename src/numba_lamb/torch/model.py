"""Model: the parameters that an optimizer updates, as kernels know them, and whether they still are.

A parameter takes part from the first step on in which it has a gradient, so that frozen ones cost no memory.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from operator import is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from numba_lamb.engine.bucket import Bucket, check_rows
from numba_lamb.engine.columns import write_options
from numba_lamb.engine.precision import Precision, precision_of
from numba_lamb.groups import Parameter
from numba_lamb.kernels.cpu.object_reader import NOWHERE
from numba_lamb.layout import Layer, arithmetic_of
from numba_lamb.memory.tensor_reader import TensorReader, fields_of, form_of
from numba_lamb.methods.checks import passes
from numba_lamb.methods.options import FILTERS, FIXED, Row
from numba_lamb.torch import tensors as tensors_
from numba_lamb.torch.dtensors import check_state, is_dtensor, like, local_of
from numba_lamb.torch.members import Member, Step, layout_of
from numba_lamb.torch.overlaps import joined_spans, levels
from numba_lamb.torch.places import Places
from numba_lamb.torch.runs import Runs
from numba_lamb.torch.state import FlatState
from numba_lamb.torch.stored import pieces_of
from numba_lamb.torch.tensors import (
    NUMPY_DTYPES,
    check_gradient,
    check_row_order,
    is_plain,
    same_order,
    share_elements,
    storage_of,
)


class Model:
    """Parts, pointers and what they were made of.

    Parameters
    ----------
    tensors : sequence of Tensor
        All parameters of all groups.
    sizes : sequence of int
        Parameters in each group.
    members, inactive : sequence of Member
        Those that take part, in order, and those that do not yet. The latter are layers without values, so that a
        sum over layers has its order from the first step on.
    state : dict
        The optimizer's ``state``, which gets moments and steps.
    flat : FlatState
        Gives moments their places.
    make_bucket : callable
        The backend's `new_bucket`.
    groups : sequence of mapping
        The groups, which say how parameters are stored.
    flat_parts : bool
        Whether the state of a part of a parameter is flat; else it has the form of a DTensor's piece.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        sizes: Sequence[int],
        members: Sequence[Member],
        inactive: Sequence[Member],
        state: Any,
        flat: FlatState,
        make_bucket: Callable[..., Bucket],
        groups: Sequence[Mapping[str, Any]],
        flat_parts: bool,
    ) -> None:
        self._groups, self._flat_parts = groups, flat_parts
        self.has_pieces = any(is_dtensor(member.tensor) for member in members)
        """Whether there is only a piece of some parameters here."""
        # A parameter with gaps in its memory, or whose sign is a mark on it, is updated in a copy without.
        self._local = [local_of(member.tensor) for member in members]
        self._dense = [
            local.detach() if is_plain(local) else torch.empty_like(local.detach()) for local in self._local
        ]
        self.members = list(members)
        self._strided = [k for k, local in enumerate(self._local) if not is_plain(local)]
        self._lay_out(members, [(member.place, member.without_values()) for member in inactive], make_bucket)
        self.runs = Runs(self.placement, self._local, self._dense, flat_parts)
        """Which part of each member is here."""
        forms = self.runs.forms
        self.pieces = [
            pieces_of(form, groups[member.group], flat.names)
            for member, form in zip(members, forms, strict=True)
        ]
        """What the state of each consists of."""
        flat.stored = {
            member.tensor: {name: groups[member.group][name] for name in FIXED} for member in members
        }
        for member in members:
            check_state(member.name, member.tensor, state.get(member.tensor, {}))
        found = [
            flat.values(member.name, form, pieces, self.runs.cut(k, state.get(member.tensor, {})))
            for k, (member, form, pieces) in enumerate(zip(members, forms, self.pieces, strict=True))
        ]
        self.steps = flat.adopt(
            [member.tensor for member in members],
            forms,
            self.pieces,
            found,
            *self._step_places(),
            state,
            like,
        )
        """Each layer's step count, float32, bucket by bucket."""
        self._numbers = [np.array(indices, dtype=np.intp) for indices in self.indices]
        self._tensors, self._sizes = list(tensors), list(sizes)
        self._own = [member.tensor for member in members]
        self._inactive = _complement(len(tensors), [member.place for member in members])
        self._places = [member.place for member in members] if self._inactive else None
        self._weights = Places(self._local)
        self._gradients = TensorReader(torch, [*map(form_of, self._dense)], fields_of(torch))
        self._found = np.zeros(len(members), dtype=np.int64)
        self._targets = {k: self._local[k].detach() for k in self._strided}
        self._state = state
        self._entries = [*state.values()]
        self._flat = flat
        self._point_at_state()
        # Of gradients, where it is not what is computed with.
        self._dtypes: Mapping[int, Any] = {}
        self._usual_dtypes = {
            k: parameter.storage.dtype
            for k, parameter in enumerate(self.parameters)
            if parameter.storage.dtype != arithmetic_of(parameter.storage.dtype)
        }

    # -- making --------------------------------------------------------------------------------------------

    def _lay_out(
        self,
        members: Sequence[Member],
        inactive: Sequence[tuple[int, Parameter]],
        make_bucket: Callable[..., Bucket],
    ) -> None:
        self._check_strided(members)
        self.parameters = parameters = [
            Parameter(member.name, member.tensor, member.group, storage_of(dense))
            for member, dense in zip(members, self._dense, strict=True)
        ]
        self._spans = joined_spans(parameters)
        self.layout = layout_of(parameters)
        """All layers, in the members' order."""
        self.buckets: list[Bucket] = []
        # For each bucket the members that are layers of it, and their rows in its tables.
        self.indices: list[list[int]] = []
        self.rows: list[NDArray[np.intp]] = []
        for number, level in enumerate(levels(parameters)):
            entries: list[tuple[int, int | None, Parameter]] = [
                (members[k].place, k, parameters[k]) for k in level
            ]
            if number == 0:
                entries += [(place, None, parameter) for place, parameter in inactive]
            self._add_buckets(sorted(entries, key=lambda entry: entry[0]), make_bucket)
        placement = {
            k: (bucket, row)
            for bucket, indices, rows_of in zip(self.buckets, self.indices, self.rows, strict=True)
            for k, row in zip(indices, rows_of.tolist(), strict=True)
        }
        self.placement = [placement[k] for k in range(len(members))]

    def _add_buckets(
        self, entries: Sequence[tuple[int, int | None, Parameter]], make_bucket: Callable[..., Bucket]
    ) -> None:
        """Make the buckets of these layers; those that are no member's only keep their place."""
        used = {arithmetic_of(parameter.storage.dtype) for _, k, parameter in entries if k is not None}
        kept = [
            (k, parameter) for _, k, parameter in entries if arithmetic_of(parameter.storage.dtype) in used
        ]
        own = [parameter for _, parameter in kept]
        layout = layout_of(own)
        for dtype in layout.dtypes:
            bucket = make_bucket(layout, dtype, own, [self._precision(parameter) for parameter in own], ())
            numbers = [kept[place][0] for place in bucket.indices]
            self.buckets.append(bucket)
            self.indices.append([k for k in numbers if k is not None])
            taken = [row for row, k in enumerate(numbers) if k is not None]
            self.rows.append(np.array(taken, dtype=np.intp))

    def _precision(self, parameter: Parameter) -> Precision:
        group = self._groups[parameter.group]
        return precision_of(parameter.name, parameter.storage.dtype, group["master"], group["moments"])

    def has_late(self) -> bool:
        """Return whether a parameter requires gradients that had no part so far."""
        return any(self._tensors[place].requires_grad for place in self._inactive)

    def _check_strided(self, members: Sequence[Member]) -> None:
        """Raise if a parameter with gaps in its memory shares elements with another."""
        for k in self._strided:
            for j, other in enumerate(members):
                if j != k and share_elements(self._local[k], local_of(other.tensor)):
                    raise ValueError(
                        f"parameters {members[k].name!r} and {other.name!r} share memory, and the first has gaps "
                        "in its; make it contiguous"
                    )

    def _step_places(self) -> tuple[list[int], dict[int, int]]:
        """Return whose count each layer begins with, bucket by bucket, and where each member's own is.

        A layer without values counts with a member, so that counts stay alike where they can.
        """
        order: list[int] = []
        places = {}
        for bucket, indices, rows_of in zip(self.buckets, self.indices, self.rows, strict=True):
            numbers = [indices[0]] * len(bucket.layers)
            for k, row in zip(indices, rows_of.tolist(), strict=True):
                numbers[row] = k
                places[k] = len(order) + row
            order += numbers
        return order, places

    def counts(self, on_gpu: bool) -> list[Any]:
        """Return where each bucket's steps are counted: arrays on the CPU, addresses on a GPU."""
        ends = np.cumsum([0, *(len(bucket.layers) for bucket in self.buckets)]).tolist()
        if on_gpu:
            first, size = tensors_.address_of(self.steps), self.steps.element_size()
            return [first + size * start for start in ends[:-1]]
        shared = self.steps.numpy()
        return [shared[start:end] for start, end in pairwise(ends)]

    def _point_at_state(self) -> None:
        for k, member in enumerate(self.members):
            self.runs.point(k, member.place, self.pieces[k], self._state[member.tensor])

    def write_options(self, groups: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> None:
        """Write every layer's options, or raise before anything is written."""
        centralized = tuple(index for index, group in enumerate(groups) if group["grad_centralization"])
        for bucket in self.buckets:
            bucket.check_whole(centralized)
        for k, layer in enumerate(self.layout.layers):
            if layer.group in centralized:
                check_rows(layer)
                check_row_order(layer.name, self._dense[k])
        passed = [
            [_passes(groups[layer.group], name, layer) for layer in self.layout.layers] for name in FILTERS
        ]
        decayed, adaptable = (
            [self._by_row(bucket, of_layer) for bucket in range(len(self.buckets))] for of_layer in passed
        )
        write_options(self.buckets, rows, decayed, adaptable)
        for bucket in self.buckets:
            if bucket.centralized != centralized:
                bucket.centralize(centralized)

    def _by_row(self, number: int, of_layer: Sequence[bool]) -> list[bool]:
        """Return what was said of each layer by its row in a bucket; True for layers without values."""
        found = [True] * len(self.buckets[number].layers)
        for k, row in zip(self.indices[number], self.rows[number].tolist(), strict=True):
            found[row] = of_layer[k]
        return found

    def keep_norms(self, older: "Model") -> None:
        """Take over the norms of layers that an older model had."""
        known: dict[int, tuple[Any, Any]] = {}
        for bucket, indices, rows_of in zip(older.buckets, older.indices, older.rows, strict=True):
            saved = bucket.saved()
            for k, row in zip(indices, rows_of, strict=True):
                known[id(older._own[k])] = saved["norms"][row], saved["updated"][row]
        for bucket, indices, rows_of in zip(self.buckets, self.indices, self.rows, strict=True):
            blank = bucket.blank()
            norms, updated = blank["norms"].copy(), blank["updated"].copy()
            for k, row in zip(indices, rows_of, strict=True):
                norms[row], updated[row] = known.get(id(self._own[k]), (0, 0))
            bucket.restore({"norms": norms, "updated": updated})

    # -- every step ----------------------------------------------------------------------------------------

    def fits(
        self, tensors: Sequence[Tensor], sizes: Sequence[int], gradients: Sequence[Any], state: Any
    ) -> bool:
        """Return whether all is still where it was, and no other parameter has a gradient."""
        if len(tensors) != len(self._tensors) or sizes != self._sizes or state is not self._state:
            return False
        if not all(map(is_, tensors, self._tensors)):
            return False
        if self.has_pieces and not all(map(is_, map(local_of, self._own), self._local)):
            return False
        if any(gradients[place] is not None for place in self._inactive):
            return False
        entries = state.values()
        if len(entries) != len(self._entries) or not all(map(is_, entries, self._entries)):
            return False
        return self._weights.are_kept() and self._flat.is_in_place()

    def point_at_gradients(self, gradients: Sequence[Any]) -> Step:
        """Write the gradients' addresses, and return what a step must know and hold."""
        if self._places is not None:
            gradients = [gradients[place] for place in self._places]
        gradients = tuple(gradients)
        copies: list[Tensor] = []
        read = self._gradients.read(gradients, self._spans)
        dtypes: Mapping[int, Any] = self._usual_dtypes
        if read is not None:
            found, unusual = read
            others = {
                k: NUMPY_DTYPES.get(gradients[k].dtype)
                for k in unusual.tolist()
                if gradients[k].dtype != self._dense[k].dtype
            }
            dtypes = {**dtypes, **others} if others else dtypes
            for k in unusual.tolist():
                found[k] = self._address(k, gradients[k], copies)
            placed = self.runs.placed(found, dtypes) if self.has_pieces else found
            for bucket, numbers, rows_of in zip(self.buckets, self._numbers, self.rows, strict=True):
                bucket.gradients[rows_of] = placed[numbers]
            # The reader's own is overwritten by the next look.
            self._found = found.copy()
            self._gradients.keep(found)
        if dtypes != self._dtypes:
            self._dtypes = dtypes
        return Step(gradients, copies, self._found, self._dtypes)

    def _address(self, k: int, gradient: Tensor, copies: list[Tensor]) -> int:
        """Return where a gradient lies that is not as usual, or a copy of it in the order of its parameter."""
        dense = self._dense[k]
        check_gradient(self.members[k].name, dense, gradient)
        # Zeros that PyTorch has not written anywhere have no memory yet.
        if gradient.is_neg() or gradient._is_zerotensor() or not same_order(gradient, dense):
            with torch.no_grad():
                gradient = torch.empty_like(dense, dtype=gradient.dtype).copy_(gradient)
            copies.append(gradient)
        else:
            self._check_overlap(k, gradient)
        return tensors_.address_of(gradient) or NOWHERE

    def _check_overlap(self, k: int, gradient: Tensor) -> None:
        start = tensors_.address_of(gradient)
        for parameter in self.parameters:
            own = parameter.storage.address
            if start < own + parameter.storage.nbytes and own < start + gradient.nbytes:
                raise ValueError(
                    f"gradient of {self.members[k].name!r} shares memory with parameter {parameter.name!r}"
                )

    # -- around the kernels --------------------------------------------------------------------------------

    def gather(self, step: Step) -> None:
        """Copy those parameters together that have gaps in their memory."""
        for k in self._strided:
            if self._is_changed(k, step):
                self._dense[k].copy_(self._local[k].detach())

    def scatter(self, step: Step) -> list[Callable[[], Any]]:
        """Return what copies those parameters back."""
        strided = (k for k in self._strided if self._is_changed(k, step))
        return [partial(self._targets[k].copy_, self._dense[k]) for k in strided]

    def _is_changed(self, k: int, step: Step) -> bool:
        # Other ranks may have a gradient that this one has not.
        return step.gradients[k] is not None or self._flat_parts

    def count_versions(self, step: Step) -> None:
        """Tell autograd of the parameters that a step changes."""
        own = self._local
        if not step.found.all():
            own = [own[k] for k in range(len(own)) if self._is_changed(k, step)]
        torch.autograd.graph.increment_version(own)


def _passes(group: Mapping[str, Any], name: str, layer: Layer) -> bool:
    layer_filter = group.get(name)
    return layer_filter is None or passes(name, layer_filter, layer)


def _complement(count: int, places: Sequence[int]) -> list[int]:
    taken = set(places)
    return [place for place in range(count) if place not in taken]
