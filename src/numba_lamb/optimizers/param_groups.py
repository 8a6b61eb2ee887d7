"""LiveGroups: the parameter groups of a working optimizer, whose options may change between steps."""

from typing import Any

from numba_lamb.groups import check_live_group
from numba_lamb.layout import Layer
from numba_lamb.rates import RATE_KEYS, Rate, RateCache, RateLike


def decayed_by_name(layer: Layer) -> bool:
    """Return whether weight decay applies to a layer where no groups are given: not to `beta` and `gamma`."""
    return "beta" not in layer.name and "gamma" not in layer.name


class LiveGroups:
    """Group dicts that users and schedulers write to, and the rates they stand for.

    Parameters
    ----------
    learning_rate, weight_decay : RateLike
        The optimizer's own, for groups that have none.
    """

    def __init__(self, learning_rate: RateLike, weight_decay: RateLike) -> None:
        self._book = RateCache()
        self._defaults = {"lr": learning_rate, "weight_decay": weight_decay}
        self._own: dict[str, list[bool]] = {key: [] for key in RATE_KEYS}
        self._by_name: list[bool] = []
        self.dicts: list[dict[str, Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        # Rates hold readers that cannot be copied; they are made anew from what was given.
        return {key: value for key, value in vars(self).items() if key != "_book"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _book=RateCache())

    def add(self, options: dict[str, Any], by_name: bool) -> None:
        """Append a group; `by_name` says whether the decay rule by name holds in it."""
        self._by_name.append(by_name)
        self.dicts.append(
            {
                "params": [],
                "lr": options.get("lr", self.learning_rate),
                "weight_decay": options.get("weight_decay", self._defaults["weight_decay"]),
                "grad_centralization": options.get("grad_centralization", False),
            }
        )
        for key in RATE_KEYS:
            self._own[key].append(key in options)
            self.rate(len(self.dicts) - 1, key)

    def keep(self, count: int) -> None:
        """Forget all groups but the first `count`."""
        del self.dicts[count:], self._by_name[count:]
        for own in self._own.values():
            del own[count:]

    def decays_by_name(self, index: int) -> bool:
        """Return whether the decay rule by name holds in a group."""
        return self._by_name[index]

    def check(self) -> None:
        """Raise if somebody put into the dicts what does not belong there."""
        if len(self.dicts) != len(self._by_name):
            raise ValueError(
                f"param_groups has {len(self.dicts)} groups instead of {len(self._by_name)}; "
                "add_param_group adds one, and none can be removed"
            )
        for index, group in enumerate(self.dicts):
            check_live_group(group, index)

    def check_tables(self) -> None:
        """Raise if tables of learning rates differ in length."""
        lengths: dict[int, int] = {}
        for index in range(len(self.dicts)):
            length = self.rate(index, "lr").length
            if length is not None:
                lengths.setdefault(length, index)
        if len(lengths) > 1:
            (one, first), (other, second) = list(lengths.items())[:2]
            raise ValueError(
                f"tables of learning rates must have one length, but group {first} has {one} values "
                f"and group {second} has {other}"
            )

    def centralized(self) -> tuple[int, ...]:
        """Return the groups whose gradients are centralized."""
        return tuple(index for index, group in enumerate(self.dicts) if group["grad_centralization"])

    def rate(self, index: int, key: str) -> Rate:
        """Return the rate that a group has under `key` now."""
        given = self.dicts[index][key]
        shared = given is self._defaults[key]
        name = {"lr": "learning_rate"}.get(key, key) if shared else f"{key!r} of group {index}"
        return self._book.get((index, key), given, name)

    def values(self, key: str, step: int) -> list[float]:
        """Return each group's value under `key` at the 0-based `step`."""
        return [self.rate(index, key)(step) for index in range(len(self.dicts))]

    @property
    def have_rates(self) -> bool:
        """Whether groups have learning rates of their own."""
        first = self.dicts[0]["lr"]
        return any(self._own["lr"]) or any(group["lr"] is not first for group in self.dicts)

    @property
    def learning_rate(self) -> RateLike:
        """What the groups without a rate of their own have."""
        return self._shared("lr")

    @learning_rate.setter
    def learning_rate(self, value: RateLike) -> None:
        self._share("lr", value, "learning_rate")

    @property
    def weight_decay(self) -> RateLike:
        """What the groups without a decay of their own have."""
        return self._shared("weight_decay")

    @weight_decay.setter
    def weight_decay(self, value: RateLike) -> None:
        self._share("weight_decay", value, "weight_decay")

    def _following(self, key: str) -> list[dict[str, Any]]:
        return [group for group, own in zip(self.dicts, self._own[key], strict=False) if not own]

    def _shared(self, key: str) -> RateLike:
        given: RateLike = next((group[key] for group in self._following(key)), self._defaults[key])
        return given

    def _share(self, key: str, value: RateLike, name: str) -> None:
        following = self._following(key)
        default, before = self._defaults[key], [group[key] for group in following]
        self._book.get(name, value, name)
        self._defaults[key] = value
        for group in following:
            group[key] = value
        try:
            self.check_tables()
        except ValueError:
            self._defaults[key] = default
            for group, kept in zip(following, before, strict=True):
                group[key] = kept
            raise
