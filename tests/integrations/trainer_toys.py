"""A network of a few hundred weights, its batches, and training by hand, which the trainers are compared with."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

Batch = tuple[Any, Any]
RATE = 0.02
DECAY = 0.01


def network(seed: int = 0) -> Any:
    """Matrices, vectors and a norm: layers with and without decay."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16),
        torch.nn.LayerNorm(16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 8),
        torch.nn.Tanh(),
        torch.nn.Linear(8, 3),
    )


def rows(count: int, seed: int = 1) -> Batch:
    """Inputs and classes that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, (inputs[:, :3].abs() + 0.1 * inputs[:, 3:]).argmax(dim=1)


def batches(steps: int, size: int = 8, seed: int = 1) -> list[Batch]:
    inputs, classes = rows(steps * size, seed)
    return list(zip(inputs.split(size), classes.split(size), strict=True))


def loss_of(model: Any, batch: Batch) -> Any:
    inputs, classes = batch
    return torch.nn.functional.cross_entropy(model(inputs), classes)


def train(
    model: Any,
    optimizer: Any,
    data: Iterable[Batch],
    before_step: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """Train as by hand."""
    for batch in data:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        before_step()
        optimizer.step()
        after_step()


def weights(model: Any) -> dict[str, Any]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All tensors and numbers in nested mappings and lists, with a name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_of(item, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for key, item in enumerate(value):
            yield from tensors_of(item, f"{name}/{key}")
    else:
        yield name, value


def assert_same_bits(one: Any, other: Any) -> None:
    """Compare two nested mappings of tensors and numbers, bit for bit."""
    left, right = dict(tensors_of(one)), dict(tensors_of(other))
    assert left.keys() == right.keys()
    assert left
    different = []
    for name, value in left.items():
        same = torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
        if not same:
            different.append(name)
    assert not different, different


def moved(one: Any, other: Any) -> bool:
    """Say whether every tensor differs: what makes a comparison of bits worth something."""
    return all(not torch.equal(one[name], other[name]) for name in one)
