"""The shapes to measure with, from one large tensor to many tiny ones; the only place that lists them."""

import math
from collections.abc import Sequence

__all__ = ["PROFILES", "Shape", "parameter_count"]

Shape = tuple[int, ...]


def bert(hidden: int, layers: int) -> list[Shape]:
    """Return the shapes of a BERT encoder: embeddings, attention and feed-forward blocks, pooler."""
    vector, square, wide = (hidden,), (hidden, hidden), 4 * hidden
    attention: list[Shape] = [square, vector] * 4 + [vector] * 2
    feed_forward: list[Shape] = [(wide, hidden), (wide,), (hidden, wide), vector, vector, vector]
    embeddings: list[Shape] = [(30522, hidden), (512, hidden), (2, hidden), vector, vector]
    return [*embeddings, *(attention + feed_forward) * layers, square, vector]


def resnet50() -> list[Shape]:
    """Return the shapes of ResNet-50: convolutions with two norm vectors each, and the classifier."""

    def convolution(out: int, given: int, size: int) -> list[Shape]:
        return [(out, given, size, size), (out,), (out,)]

    shapes = convolution(64, 3, 7)
    given = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, given, 1) + convolution(width, width, 3)
            shapes += convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, given, 1)
            given = 4 * width
    return [*shapes, (1000, given), (1000,)]


PROFILES: dict[str, list[Shape]] = {
    "bert-base": bert(768, 12),
    "bert-large": bert(1024, 24),
    "resnet-50": resnet50(),
    "200-tiny": [(64, 64), (64,)] * 100,
    "one-100M": [(100_000_000,)],
}


def parameter_count(shapes: Sequence[Shape]) -> int:
    """Return how many parameters arrays of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes)
