"""Shapes to measure with, from one large tensor to many tiny ones."""


def bert(hidden, layers, vocabulary=30522, positions=512, intermediate=None):
    """Shapes of a BERT encoder: embeddings, attention and feed-forward blocks, pooler."""
    intermediate = intermediate or 4 * hidden
    block = [(hidden, hidden), (hidden,)] * 4 + [(hidden,)] * 2
    block += [(intermediate, hidden), (intermediate,), (hidden, intermediate), (hidden,)] + [(hidden,)] * 2
    embeddings = [(vocabulary, hidden), (positions, hidden), (2, hidden), (hidden,), (hidden,)]
    return embeddings + block * layers + [(hidden, hidden), (hidden,)]


def resnet50():
    """Shapes of ResNet-50: convolutions with two norm vectors each, and the classifier."""

    def convolution(out, given, size):
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


PROFILES = {
    "bert-base": bert(768, 12),
    "bert-large": bert(1024, 24),
    "resnet-50": resnet50(),
    "200-tiny": [(64, 64), (64,)] * 100,
    "one-100M": [(100_000_000,)],
}
