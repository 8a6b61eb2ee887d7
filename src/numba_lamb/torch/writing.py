"""Writes the groups' options into the tables that kernels read."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numba_lamb.kernels import rows
from numba_lamb.layout import Layer
from numba_lamb.optimizers.checks import passes
from numba_lamb.optimizers.parts import Part
from numba_lamb.torch.model import Model
from numba_lamb.torch.options import GroupRow


def write_options(
    model: Model,
    groups: Sequence[Mapping[str, Any]],
    found: Sequence[GroupRow],
    decays: NDArray[np.float64],
) -> Literal["raise", "skip"]:
    """Write every layer's options; return what is done about gradients that are checked and not finite.

    Parameters
    ----------
    model : Model
        Whose tables are written.
    groups : sequence of mapping
        The parameter groups.
    found : sequence of GroupRow
        What kernels are told of each.
    decays : float64 array
        Each group's weight decay.
    """
    filtered = [
        (_passes(group, "decay_filter", layer), _passes(group, "adapt_filter", layer))
        for layer in model.layout.layers
        for group in (groups[layer.group],)
    ]
    for part, indices, rows_of in zip(model.parts, model.indices, model.rows, strict=True):
        part.decayed[rows_of] = [filtered[k][0] for k in indices]
        adaptable = np.ones(len(part.layers), dtype=np.bool_)
        adaptable[rows_of] = [filtered[k][1] for k in indices]
        part.settings[:, rows.DECAYED] = part.decayed
        for index, group in enumerate(groups):
            own = part.group_of == index
            if own.any():
                _write_group(part, own, group, found[index])
        always = np.array([row.always_adapt for row in found])[part.group_of]
        adapts = np.array([row.adapts for row in found])[part.group_of]
        decayed = decays[part.group_of] * part.decayed != 0
        part.scalars[:, rows.ADAPT] = adapts & adaptable & (always | decayed)
        part.settle()
    return "raise" if any(group["nonfinite"] == "raise" for group in groups) else "skip"


def _write_group(part: Part, own: Any, group: Mapping[str, Any], row: GroupRow) -> None:
    settings, scalars = part.settings, part.scalars
    settings[own, rows.SIGN] = sign = -1.0 if group["maximize"] else 1.0
    settings[own, rows.CHECKED] = group["nonfinite"] != "propagate"
    settings[own, rows.LIMIT] = group["max_grad_norm"] or 0.0
    settings[own, rows.BOUND] = row.bound(part.largest)
    scalars[own, rows.RESCALE] = sign
    for column, value in row.settings.items():
        settings[own, column] = value
    for column, value in row.scalars.items():
        scalars[own, column] = part.cast("eps", value) if column == rows.EPS else value


def _passes(group: Mapping[str, Any], name: str, layer: Layer) -> bool:
    layer_filter = group.get(name)
    return layer_filter is None or passes(name, layer_filter, layer)
