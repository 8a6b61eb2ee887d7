"""An optimizer on the GPU beside one on NumPy arrays, which take the same steps."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import numba_lamb as nl
from tests.cuda.gpu_arrays import Library
from tests.cuda.gpu_settings import choose_for_lamb, choose_for_lars, seeded, with_settings
from tests.helpers import frozen

Arrays = dict[str, np.ndarray]

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "one": (1,),
    "conv.weight": (8, 3, 3, 3),
    "conv.bias": (127,),
    "lane": (128,),
    "LayerNorm.gamma": (129,),
    "empty": (0, 3),
    "chunk": (4096,),
    "chunk and one": (4097,),
    "matrix": (300, 71),
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "lamb": lambda p: nl.Lamb(p, 0.01, weight_decay=0.1),
    "lamb, unchecked": lambda p: nl.Lamb(p, 0.01, weight_decay=0.1, nonfinite="propagate"),
    "lamb, clipped": lambda p: nl.Lamb(
        p, lambda step: 0.01 / (step + 1), weight_decay=0.1, max_grad_norm=0.5
    ),
    "momentum": lambda p: nl.Momentum(p, 0.01, 0.9, weight_decay=0.1),
    "nesterov": lambda p: nl.Momentum(
        p, 0.01, 0.9, 0.1, loss_scale=3.0, use_nesterov=True, max_grad_norm=0.5
    ),
    "lars": lambda p: nl.Lars(nl.Momentum(p, 0.01, 0.9, weight_decay=0.1)),
    "lars, its rate clipped": lambda p: nl.Lars(nl.Momentum(p, 0.01, 0.9, weight_decay=0.1), use_clip=True),
    "lars, clipped": lambda p: nl.Lars(nl.Momentum(p, 0.01, 0.9, 0.1, 3.0, max_grad_norm=0.5)),
    "lars, paper": lambda p: nl.Lars(nl.Momentum(p, 0.01, 0.9, weight_decay=0.1), variant="paper"),
    "lars, paddle": lambda p: nl.Lars(nl.Momentum(p, 0.01, 0.9, weight_decay=0.1), variant="paddle"),
    "lamb, settings by layer": lambda p: with_settings(nl.Lamb, seeded(choose_for_lamb, 1))(
        p, 0.01, weight_decay=0.1
    ),
    "lars, settings by layer": lambda p: with_settings(nl.Momentum, seeded(choose_for_lars, 2))(
        p, 0.01, 0.9, weight_decay=0.1, loss_scale=3.0
    ),
}


def random_arrays(shapes: Mapping[str, tuple[int, ...]], dtype: Any, seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(shape) * scale, dtype=dtype) for name, shape in shapes.items()
    }


def grouped(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return groups, of which the first is centralized, for names that have a convolution among them."""
    conv = {name: array for name, array in params.items() if name == "conv.weight"}
    rest = {name: array for name, array in params.items() if name not in conv}
    return [{"params": conv, "grad_centralization": True, "weight_decay": 0.02}, {"params": rest}]


class Twins:
    """One optimizer on NumPy arrays and one on the same values on the GPU.

    Every second array on the GPU begins one element past where 16 bytes could be read at once.
    """

    def __init__(
        self,
        make: Callable[[Any], Any],
        library: Library,
        dtype: Any = np.float32,
        shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    ) -> None:
        self.library, self.shapes, self.dtype = library, shapes, dtype
        self.host = random_arrays(shapes, dtype, seed=0)
        self.device = self.put(self.host)
        groups = grouped if "conv.weight" in shapes else dict
        self.on_cpu, self.on_gpu = make(groups(self.host)), make(groups(self.device))

    def put(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: None if array is None else self.library.put(array, skip=k % 2)
            for k, (name, array) in enumerate(arrays.items())
        }

    def gradients(self, seed: int) -> dict[str, Any]:
        return dict(random_arrays(self.shapes, self.dtype, seed + 1, scale=2.0**-4))

    def step(self, gradients: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Take the step on both, and return what the GPU was given."""
        given = self.put(gradients)
        self.on_cpu.step(gradients)
        self.on_gpu.step(given, **options)
        return given

    def weights(self) -> Arrays:
        return {name: self.library.get(array) for name, array in self.device.items()}

    def assert_same(self) -> None:
        assert frozen(self.weights()) == frozen(self.host)
        assert frozen(self.on_gpu.state_dict()) == frozen(self.on_cpu.state_dict())
        assert frozen(dict(self.on_gpu.stats())) == frozen(dict(self.on_cpu.stats()))
