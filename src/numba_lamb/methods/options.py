"""Option and Method: the forms in which an optimizer is declared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from numba_lamb.kernels import columns
from numba_lamb.methods.checks import Check, bounds, choice, flag, layer_filter, maybe, real, whole
from numba_lamb.methods.passes import Pass
from numba_lamb.numerics import rules
from numba_lamb.rates import RATE_KEYS

Statistic: TypeAlias = tuple[str, int, bool]
"""A name in ``stats()``, its column of norms, and whether only layers that adapt have it."""


@dataclass(frozen=True)
class Option:
    """A hyper-parameter that every parameter group may have for itself.

    Attributes
    ----------
    name : str
        PyTorch's name, or the field's.
    default : Any
        Where it is not given; the NumPy API, whose source documents ask for some, may have no default.
    check : Check
        What is allowed.
    alias : tuple of str
        The name in the NumPy API where a source document has another; two for a pair that is given apart.
    source_check : Check or None
        What the NumPy API allows, where a source document states a range of its own.
    in_variant : bool
        Whether None means "as the variant has it".
    meaning : str
        The first line of its documentation.
    """

    name: str
    default: Any
    check: Check
    alias: tuple[str, ...] = ()
    source_check: Check | None = None
    in_variant: bool = False
    meaning: str = ""

    @property
    def numpy_names(self) -> tuple[str, ...]:
        """The keys of a group in the NumPy API."""
        return self.alias or (self.name,)

    def numpy_value(self, group: Mapping[str, Any], where: Callable[[str], str]) -> Any:
        """Return the value in a group of the NumPy API, checked; `where` says whose an option is, by its key."""
        check = self.source_check or self.check
        found = [check(name, where(name), group[name]) for name in self.numpy_names]
        return tuple(found) if len(found) > 1 else found[0]


class Refused(Exception):
    """An option that is refused because of another.

    Parameters
    ----------
    option : str
        Which, by its PyTorch name.
    reason : str
        What follows its name in the message.
    """

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(option, reason)
        self.option, self.reason = option, reason


@dataclass(frozen=True)
class Row:
    """What the layers of one group have in common, by column of `numba_lamb.kernels.columns`.

    Attributes
    ----------
    hyper, hyper64 : mapping from int to float
        Values by column.
    bound : callable
        From the largest number of a dtype to what a gradient may be at most.
    adapts : int
        Which layers have a trust ratio: a constant of `numba_lamb.numerics.rules`.
    held : mapping from int to str
        The columns of `hyper` that the dtype must hold as a normal number, with the names for messages.
    master, moments : str or None
        How parameters and moments are stored.
    seed : int
        What random bits are made of.
    """

    hyper: Mapping[int, float]
    hyper64: Mapping[int, float]
    bound: Callable[[float], float]
    adapts: int = rules.NEVER
    held: Mapping[int, str] = field(default_factory=dict)
    master: str | None = "split"
    moments: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """An optimizer as data.

    Attributes
    ----------
    name : str
        The class's name in every front end.
    state : tuple of str
        The moments, by PyTorch's keys.
    numpy_state : tuple of str
        Their keys in the NumPy API.
    passes : tuple of Pass
        A step, in order.
    needs_steps : bool
        Whether the step count is a part of the formula.
    centralizes_decay : bool
        Whether the decayed gradient is what is centralized.
    statistics : tuple of Statistic
        What ``stats()`` tells.
    options : tuple of Option
        In the order of the signature.
    columns : callable
        From checked options, variants resolved, to a `Row`.
    variants : mapping
        Whose formulas there are.
    """

    name: str
    state: tuple[str, ...]
    numpy_state: tuple[str, ...]
    passes: tuple[Pass, ...]
    needs_steps: bool
    centralizes_decay: bool
    statistics: tuple[Statistic, ...]
    options: tuple[Option, ...]
    columns: Callable[[Mapping[str, Any]], Row]
    variants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The options' names."""
        return tuple(option.name for option in self.options)

    @property
    def numpy_names(self) -> tuple[str, ...]:
        """The options' names in the groups of the NumPy API, rates apart."""
        return tuple(
            name for option in self.options if option.name not in RATE_KEYS for name in option.numpy_names
        )

    def given(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options among `arguments`, such as the ``locals()`` of a constructor."""
        return {name: arguments[name] for name in self.names}

    def numpy_given(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options among the arguments of a constructor of the NumPy API, by the groups' keys."""
        rates = {"lr": arguments["learning_rate"], "weight_decay": arguments["weight_decay"]}
        return rates | {name: arguments[name] for name in self.numpy_names}

    def row(self, where: str, group: Mapping[str, Any]) -> Row:
        """Return what kernels are told of a group with these options, or raise if one is refused."""
        found = {option.name: option.check(option.name, where, group[option.name]) for option in self.options}
        return self._row(found, lambda option: f"{option.name}{where}")

    def numpy_row(self, group: Mapping[str, Any], where: Callable[[str], str]) -> Row:
        """Do `row` for a group of the NumPy API, whose rates are checked elsewhere.

        `where` says whose an option is, by its key.
        """
        others = (option for option in self.options if option.name not in RATE_KEYS)
        found = {option.name: option.numpy_value(group, where) for option in others}
        return self._row(found, lambda option: f"{option.numpy_names[0]}{where(option.numpy_names[0])}")

    def _row(self, found: dict[str, Any], name_of: Callable[[Option], str]) -> Row:
        variant = self.variants[found["variant"]] if self.variants else None
        for option in self.options:
            if option.in_variant and found[option.name] is None:
                found[option.name] = getattr(variant, option.name)
        try:
            row = self.columns(found)
        except Refused as refused:
            option = next(option for option in self.options if option.name == refused.option)
            raise ValueError(f"{name_of(option)} {refused.reason}") from None
        common = {
            columns.SIGN: -1.0 if found["maximize"] else 1.0,
            columns.CHECKED: found["nonfinite"] != "propagate",
            columns.MAX_GRAD_NORM: found.get("max_grad_norm") or 0.0,
        }
        kept = {name: found[name] for name in ("master", "moments", "seed")}
        return replace(row, hyper64={**row.hyper64, **common}, **kept)


NONFINITE = ("propagate", "skip", "raise")
FILTERS = ("decay_filter", "adapt_filter")
"""Options that are functions: they are not part of a checkpoint."""
maybe_flag = maybe(flag)
at_least_0 = real(zero=True)

DECAY_FILTER = Option(
    "decay_filter",
    None,
    layer_filter,
    meaning="Called with each `Layer`; False exempts it from weight decay.",
)
ADAPT_FILTER = Option(
    "adapt_filter", None, layer_filter, meaning="Called with each `Layer`; False keeps its trust ratio at 1."
)
ALWAYS_ADAPT = Option(
    "always_adapt",
    None,
    maybe_flag,
    in_variant=True,
    meaning="Whether layers without weight decay have a trust ratio too.",
)
WEIGHT_NORM_BOUNDS = Option(
    "weight_norm_bounds",
    None,
    maybe(bounds),
    meaning="Bounds `(low, high)` of the weight norm above the trust ratio; by default the variant's.",
)
_GRADIENT_OPTIONS = (
    Option("maximize", False, flag, meaning="Whether to ascend."),
    Option(
        "max_grad_norm",
        None,
        maybe(real(zero=False)),
        meaning="The norm to which the gradients of a step are clipped, all of them together; by default none is.",
    ),
    Option("grad_centralization", False, flag, meaning="Whether each row's mean is taken from its gradient."),
)
STORAGE = (
    Option(
        "master",
        "split",
        maybe(choice(("split",))),
        meaning="Whether parameters of 16 bits have a float32 master; with None they are rounded at random.",
    ),
    Option(
        "moments",
        None,
        maybe(choice(("bfloat16", "int8"))),
        meaning="What moments are stored in; by default what is computed with.",
    ),
    Option(
        "seed", 0, whole, meaning="What the random bits are made of by which numbers are rounded, if any are."
    ),
)
"""How parameters and state are stored: the first two stay as they were when the optimizer was made."""
FIXED = ("master", "moments")
_NONFINITE = Option(
    "nonfinite",
    "propagate",
    choice(NONFINITE),
    source_check=maybe(choice(NONFINITE)),
    meaning="What is done about a gradient that is infinite or NaN.",
)


def common(*filters: Option) -> tuple[Option, ...]:
    """Return what optimizers have that can clip, and the filters of this one, in the order of signatures."""
    return *_GRADIENT_OPTIONS, *filters, *STORAGE, _NONFINITE
