"""Writes the groups' options into the tables that kernels read."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numba_lamb.checks import passes
from numba_lamb.engine.bucket import Bucket
from numba_lamb.kernels import columns
from numba_lamb.layout import Layer
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
    for bucket, indices, rows_of in zip(model.buckets, model.indices, model.rows, strict=True):
        bucket.decayed[rows_of] = [filtered[k][0] for k in indices]
        adaptable = np.ones(len(bucket.layers), dtype=np.bool_)
        adaptable[rows_of] = [filtered[k][1] for k in indices]
        bucket.hyper64[:, columns.DECAYED] = bucket.decayed
        for index, group in enumerate(groups):
            own = bucket.group_of == index
            if own.any():
                _write_group(bucket, own, group, found[index])
        always = np.array([row.always_adapt for row in found])[bucket.group_of]
        adapts = np.array([row.adapts for row in found])[bucket.group_of]
        decayed = decays[bucket.group_of] * bucket.decayed != 0
        bucket.hyper[:, columns.ADAPT] = adapts & adaptable & (always | decayed)
        bucket.refresh_flags()
    return "raise" if any(group["nonfinite"] == "raise" for group in groups) else "skip"


def _write_group(bucket: Bucket, own: Any, group: Mapping[str, Any], row: GroupRow) -> None:
    hyper64, hyper = bucket.hyper64, bucket.hyper
    hyper64[own, columns.SIGN] = sign = -1.0 if group["maximize"] else 1.0
    hyper64[own, columns.CHECKED] = group["nonfinite"] != "propagate"
    hyper64[own, columns.MAX_GRAD_NORM] = group["max_grad_norm"] or 0.0
    hyper64[own, columns.BOUND] = row.bound(bucket.largest)
    hyper[own, columns.RESCALE] = sign
    for column, value in row.hyper64.items():
        hyper64[own, column] = value
    for column, value in row.hyper.items():
        hyper[own, column] = bucket.cast("eps", value) if column == columns.EPS else value


def _passes(group: Mapping[str, Any], name: str, layer: Layer) -> bool:
    layer_filter = group.get(name)
    return layer_filter is None or passes(name, layer_filter, layer)
