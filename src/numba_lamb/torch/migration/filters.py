"""Filters for what other optimizers do to some parameters only; functions of a module can be pickled."""

from numba_lamb.layout import Layer


def two_or_more_dimensions(layer: Layer) -> bool:
    """Return whether `layer` has two or more dimensions: pytorch_optimizer's LARS leaves the others alone."""
    return len(layer.shape) > 1


def no_layer(layer: Layer) -> bool:
    """Return False for every `layer`: a trust ratio of 1 everywhere."""
    return False
