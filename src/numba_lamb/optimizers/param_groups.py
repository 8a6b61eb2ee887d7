"""LiveGroups: the parameter groups of a working optimizer, whose options may change between steps."""

from collections.abc import Callable, Mapping
from itertools import chain
from operator import is_
from typing import Any

from numba_lamb.groups import check_live_group
from numba_lamb.layout import Layer
from numba_lamb.methods.checks import MOST_LOOKS, compared, is_mutable, never_still, plain
from numba_lamb.methods.options import FILTERS, Method, Row
from numba_lamb.methods.table import METHODS
from numba_lamb.rates import RATE_KEYS, Rate, RateCache

CONSTRUCTOR_NAMES = {"lr": "learning_rate"}
"""What the constructor calls an option that groups have under another name."""


def decayed_by_name(layer: Layer) -> bool:
    """Return whether weight decay applies to a layer where no groups are given: not to `beta` and `gamma`."""
    return "beta" not in layer.name and "gamma" not in layer.name


class LiveGroups:
    """Group dicts that users and schedulers write to, and the options they stand for.

    Parameters
    ----------
    method : Method
        Whose options they are.
    given : mapping
        The optimizer's own options, for groups that have none, by the groups' keys.
    """

    def __init__(self, method: Method, given: Mapping[str, Any]) -> None:
        self.method = method
        self.usual_nonfinite = "raise"
        """What ``nonfinite=None`` stands for."""
        self._rates = RateCache()
        self._defaults = dict(given)
        self._own: dict[str, list[bool]] = {key: [] for key in given}
        self._by_name: list[bool] = []
        self.dicts: list[dict[str, Any]] = []
        for key in RATE_KEYS:
            self._check_shared(key, given[key])
        self._row(given, lambda key: "")
        self.look_again()

    def __getstate__(self) -> dict[str, Any]:
        # Rates hold readers, and methods functions, that cannot be copied.
        kept = {key: value for key, value in vars(self).items() if key != "_rates"}
        return {**kept, "method": self.method.name, "_seen": [], "_written": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, method=METHODS[state["method"]], _rates=RateCache())

    @property
    def keys(self) -> tuple[str, ...]:
        """What a group may hold."""
        return "params", *self._defaults

    def add(self, options: Mapping[str, Any], by_name: bool) -> None:
        """Append a group; `by_name` says whether the decay rule by name holds in it."""
        self._by_name.append(by_name)
        shared = {key: self._shared(key) for key in self._defaults}
        self.dicts.append({"params": [], **shared, **options})
        for key, own in self._own.items():
            own.append(key in options)
        index = len(self.dicts) - 1
        for key in RATE_KEYS:
            self.rate(index, key)
        self.row(index)

    def keep(self, count: int) -> None:
        """Forget all groups but the first `count`."""
        del self.dicts[count:], self._by_name[count:]
        for own in self._own.values():
            del own[count:]

    def become(self, method: Method, given: Mapping[str, Any]) -> None:
        """Have the groups be those of another method, with these options beside those they have."""
        self.method = method
        count = len(self.dicts)
        for key, value in given.items():
            self._defaults[key] = value
            self._own[key] = [False] * count
            for group in self.dicts:
                group[key] = value
        self.look_again()

    def before(self) -> Callable[[], None]:
        """Return what undoes `become`."""
        method, defaults, options = self.method, dict(self._defaults), [*map(dict, self.dicts)]
        own = {key: [*of_groups] for key, of_groups in self._own.items()}

        def undo() -> None:
            self.method, self._defaults, self._own = method, defaults, own
            for group, kept in zip(self.dicts, options, strict=True):
                group.clear()
                group.update(kept)
            self.look_again()

        return undo

    def decays_by_name(self, index: int) -> bool:
        """Return whether the decay rule by name holds in a group."""
        return self._by_name[index]

    # -- what changed --------------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Have `changed` compare all options anew."""
        self._seen: list[Any] = []
        self._seen_keys: list[list[str]] = []
        self._written: list[Any] | None = None

    def follow(self, rewrite: Callable[[], None]) -> None:
        """Have options that changed written by `rewrite`, which calls filters, until these leave them alone."""
        for _ in range(MOST_LOOKS):
            if not self.changed():
                return
            rewrite()
        raise never_still()

    def changed(self) -> bool:
        """Return whether an option other than a rate changed since `written`; raise if a group has a wrong key."""
        seen = [*chain.from_iterable(map(dict.values, self.dicts))]
        keys = [*map(list, self.dicts)]
        if self._seen and keys == self._seen_keys and all(map(is_, seen, self._seen)):
            return False
        if keys != self._seen_keys:
            self.check()
        self._seen_keys = keys
        changed = self.now() != self._written
        # What may yet be refused, and values that can change in place, are looked at anew.
        names = self._option_keys()
        anew = changed or any(is_mutable(group[key]) for group in self.dicts for key in names)
        self._seen = [] if anew else seen
        return changed

    def written(self, options: list[Any]) -> None:
        """Note that kernels know of the options as they were when `now` returned them."""
        self._written = options

    def now(self) -> list[Any]:
        """Return the options other than rates, to be compared."""
        names = self._option_keys()
        return [[compared(group[key]) for key in names] for group in self.dicts]

    def _option_keys(self) -> list[str]:
        return [key for key in self._defaults if key not in RATE_KEYS]

    def check(self) -> None:
        """Raise if there is another number of groups, or one has other keys than it had."""
        if len(self.dicts) != len(self._by_name):
            raise ValueError(
                f"param_groups has {len(self.dicts)} groups instead of {len(self._by_name)}; "
                "add_param_group adds one, and none can be removed"
            )
        for index, group in enumerate(self.dicts):
            check_live_group(group, index, self.keys)

    # -- options -------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Return what kernels are told of each group, or raise if an option is refused."""
        return [self.row(index) for index in range(len(self.dicts))]

    def row(self, index: int, group: Mapping[str, Any] | None = None) -> Row:
        """Return what kernels are told of a group, or of one with the same number."""
        group = self.dicts[index] if group is None else group

        def where(key: str) -> str:
            return "" if group[key] is self._defaults[key] else f" of group {index}"

        return self._row(group, where)

    def _row(self, group: Mapping[str, Any], where: Callable[[str], str]) -> Row:
        nonfinite = group["nonfinite"]
        resolved = {**group, "nonfinite": self.usual_nonfinite if nonfinite is None else nonfinite}
        return self.method.numpy_row(resolved, where)

    def nonfinite(self) -> str:
        """Return what is done about a gradient that is not finite, where a group has them checked."""
        found = {group["nonfinite"] or self.usual_nonfinite for group in self.dicts}
        return next((name for name in ("raise", "skip") if name in found), "propagate")

    def filter_of(self, name: str, index: int) -> Any:
        """Return a group's filter, None if it has none."""
        return self.dicts[index].get(name)

    def centralized(self) -> tuple[int, ...]:
        """Return the groups whose gradients are centralized."""
        return tuple(index for index, group in enumerate(self.dicts) if group["grad_centralization"])

    def saved(self, index: int) -> dict[str, Any]:
        """Return a group's options as plain values, without filters; None for a schedule or a table of rates."""
        group = self.dicts[index]
        rates = {key: self.rate(index, key).number for key in RATE_KEYS}
        return rates | {key: plain(group[key]) for key in self._option_keys() if key not in FILTERS}

    # -- rates ---------------------------------------------------------------------------------------------

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

    def rate(self, index: int, key: str) -> Rate:
        """Return the rate that a group has under `key` now."""
        given = self.dicts[index][key]
        known = self._rates.known((index, key), given)
        if known is not None:
            return known
        shared = given is self._defaults[key]
        name = CONSTRUCTOR_NAMES.get(key, key) if shared else f"{key} of group {index}"
        return self._rates.get((index, key), given, name)

    def values(self, key: str, step: int) -> list[float]:
        """Return each group's value under `key` at the 0-based `step`."""
        return [self.rate(index, key)(step) for index in range(len(self.dicts))]

    @property
    def have_rates(self) -> bool:
        """Whether groups have learning rates of their own."""
        first = self.dicts[0]["lr"]
        return any(self._own["lr"]) or any(group["lr"] is not first for group in self.dicts)

    # -- what groups share ---------------------------------------------------------------------------------

    def _following(self, key: str) -> list[dict[str, Any]]:
        return [group for group, own in zip(self.dicts, self._own[key], strict=False) if not own]

    def _shared(self, key: str) -> Any:
        return next((group[key] for group in self._following(key)), self._defaults[key])

    def shared(self, key: str) -> Any:
        """Return what the groups without a value of their own have under `key`."""
        return self._shared(key)

    def share(self, key: str, value: Any) -> dict[str, Any]:
        """Set what the groups without a value of their own have under `key`; return what `unshare` needs."""
        self._check_shared(key, value)
        following = self._following(key)
        before = {"default": self._defaults[key], "groups": [(group, group[key]) for group in following]}
        self._defaults[key] = value
        for group in following:
            group[key] = value
        try:
            self.check_tables()
            if key not in RATE_KEYS:
                self.rows()
        except BaseException:
            self.unshare(key, before)
            raise
        return before

    def unshare(self, key: str, before: Mapping[str, Any]) -> None:
        """Undo `share`."""
        self._defaults[key] = before["default"]
        for group, value in before["groups"]:
            group[key] = value

    def _check_shared(self, key: str, value: Any) -> None:
        name = CONSTRUCTOR_NAMES.get(key, key)
        if key in RATE_KEYS:
            self._rates.get(name, value, name)
        else:
            self._row({**self._defaults, key: value}, lambda key: "")
