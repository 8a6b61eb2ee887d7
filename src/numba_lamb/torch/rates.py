"""GroupRates: the groups' rates in one step, as a backend asks for them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from numba_lamb.rates import RATE_KEYS, Rate, RateCache
from numba_lamb.torch.keys import where


class GroupRates:
    """Rates and decays of the step that is being taken, numbers or tensors of one."""

    def __init__(self) -> None:
        self._cache = RateCache()
        self._given: dict[str, list[Any]] = {key: [] for key in RATE_KEYS}
        self.dicts: Sequence[Mapping[str, Any]] = ()

    def give(self, rates: list[Any], decays: list[float]) -> None:
        """Set each group's rate and decay: the same lists as long as they are the same."""
        if len(rates) != len(self.dicts):
            self.dicts = [{}] * len(rates)
        self._given = dict(zip(RATE_KEYS, (rates, decays), strict=True))

    def rate(self, index: int, key: str) -> Rate:
        """Return the rate that a group has under `key` now."""
        given = self._given[key][index]
        if isinstance(given, Tensor):
            given = given.detach().reshape(())
        return self._cache.get((index, key), given, f"{key}{where(index)}")

    def values(self, key: str, step: int) -> list[float]:
        """Return each group's value under `key`; on the CPU they are numbers."""
        return self._given[key]
