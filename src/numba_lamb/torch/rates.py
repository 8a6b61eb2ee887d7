"""GroupRates: the groups' rates in one step, as a backend asks for them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from numba_lamb.methods.checks import LARGEST
from numba_lamb.methods.checks import rate as check_rate
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


def checked_rates(groups: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[float]]:
    """Return the groups' rates and decays, or raise if one is refused."""
    rates, decays = [], []
    for index, group in enumerate(groups):
        rate, decay = group["lr"], group["weight_decay"]
        if isinstance(rate, Tensor) and rate.is_cuda and rate.numel() == 1:
            pass  # it is read, and checked, on the GPU
        elif type(rate) is not float or not 0.0 <= rate < LARGEST:
            rate = check_rate("lr", where(index), rate)
        if type(decay) is not float or not 0.0 <= decay < LARGEST:
            decay = check_rate("weight_decay", where(index), decay)
        rates.append(rate)
        decays.append(decay)
    return rates, decays
