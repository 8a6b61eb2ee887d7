"""documented: class docstrings whose parameters are told by the declaration: once, and whole."""

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from numba_lamb.methods.checks import Check
from numba_lamb.methods.options import Method, Option

FrontEnd = Literal["numpy", "torch"]
_Class = TypeVar("_Class", bound=type)
WIDTH = 76
"""Of a line, so that ``help()``, which indents it by 4, fits a terminal of 80 columns."""


class Text(NamedTuple):
    """What is said of a parameter beside what its declaration says: its type, and sentences."""

    kind: str
    more: str = ""


_RATE = "a number, one value per step, or any callable of the 0-based step"
_AS_NONFINITE = (
    "Finite gradients that would make a moment infinite, or whose norm float64 cannot hold, are "
    "treated alike."
)
_EITHER = {
    "betas": Text("(float, float)"),
    "eps": Text("float"),
    "momentum": Text("float"),
    "nesterov": Text("bool", r":math:`w \leftarrow w - \eta\,(d + \mu v)`."),
    "trust_coefficient": Text("float"),
    "variant": Text("str", "It decides the options that are None."),
    "always_adapt": Text("bool", "Whether a layer is decayed is decided anew in each step."),
    "bias_correction": Text("bool"),
    "grad_averaging": Text("bool", "False gives them the factor 1."),
    "trust_clip": Text("bool or (float, float)", "False leaves it to the variant."),
    "weight_norm_bounds": Text("(float, float)", "`high` may be infinite."),
    "decoupled_decay": Text("bool"),
    "maximize": Text("bool"),
    "max_grad_norm": Text(
        "float",
        "Where the norm :math:`n` of the gradients of all groups with a limit, as one vector, is "
        r"greater than the limit :math:`c`, they enter as :math:`(c/n)\,g`; those that are None "
        "count for nothing, and none is written.",
    ),
    "grad_centralization": Text(
        "bool",
        "A row is what one index of the first axis selects. For convolution kernels, of 3 or more"
        " dimensions: give it to their group.",
    ),
    "adapt_filter": Text("callable", "By default all may adapt."),
    "master": Text(
        '"split" or None',
        "The master of a bfloat16 parameter is that and 16 bits of state; of a float16 one it is a float32 array "
        "of state. Norms and ratio are the master's. It stays as it was at first.",
    ),
    "moments": Text(
        "str",
        "They are rounded at random so that their means are exact, 8-bit ones with a scale for each 128 "
        "elements. It stays as it was at first.",
    ),
    "seed": Text("int", "The same bits follow on any number of threads, and after a resume."),
}
_NUMPY = _EITHER | {
    "params": Text(
        "mapping, iterable, or list of dict",
        "A mapping from name to array, ``(name, array)`` pairs, arrays (named ``param_0``, ...), "
        "or group dicts with ``params`` as any of these and any options below but `num_threads`, "
        '`capture_steps` and `loss_scale`, the rate as ``lr``; one more dict ``{"order_params": '
        "[...]}`` fixes the order that gradients are given in. Arrays are C-contiguous and writable, and are "
        "updated in place: all of them NumPy arrays, or all on one GPU with "
        "``__cuda_array_interface__`` (CuPy, Numba, detached PyTorch tensors); in float32, float64, "
        "float16 or the bfloat16 of ml_dtypes.",
    ),
    "optimizer": Text(
        "Momentum",
        "What is wrapped: its parameters, groups and options are used, and all state is shared "
        "with the wrapper from now on. Its momentum buffers are kept. A group's own options of LARS "
        "are set in `param_groups` of the wrapper.",
    ),
    "lr": Text(
        "float, array, iterable or callable",
        f"At least 0: {_RATE}. Every `schedules` object is one. For arrays on a GPU also a 0-d "
        "array there, which is read at each step.",
    ),
    "betas": Text("float"),
    "weight_decay": Text("float, array, iterable or callable", f"At least 0: {_RATE}."),
    "loss_scale": Text(
        "float", "What the loss, and so the gradients, were multiplied by: a number :math:`s > 0`."
    ),
    "decay_filter": Text(
        "callable",
        "By default layers whose name contains ``beta`` or ``gamma`` are exempt where no groups "
        "are given, none elsewhere.",
    ),
    "lars_filter": Text(
        "callable",
        "Called with each `Layer`; False keeps both trust ratio and weight decay away from it. By"
        " default layers whose name contains ``LayerNorm`` or ``bias`` are passed over.",
    ),
    "nonfinite": Text(
        '{"raise", "skip", "propagate"}',
        "Raise before anything changes, leave the step out, or let it through unchecked, which "
        'saves one reading of the gradients unless they are clipped. By default ``"raise"`` for '
        'NumPy arrays and ``"skip"`` on a GPU, where raising waits for the device. Where groups '
        'differ, ``"raise"`` goes before ``"skip"``. ' + _AS_NONFINITE,
    ),
    "num_threads": Text(
        "int",
        "CPU threads. By default PyTorch's number where it is loaded; else the first number in "
        "the environment variable OMP_NUM_THREADS (read at the first step); else the container's "
        "CPU quota, and at most the CPUs that the process may run on. Never more than "
        "NUMBA_NUM_THREADS. The result's bits do not depend on it. Not for arrays on a GPU.",
    ),
    "comm": Text(
        "mpi4py.MPI.Intracomm or Sharding",
        "The ranks that share the state and average gradients: each has all parameters and gives gradients of its "
        "own. By default this process has all of the state. Each rank calls `step`, `state_dict` and "
        "`load_state_dict`.",
    ),
    "capture_steps": Text(
        "int",
        "For arrays on a GPU: the number of steps to come. Their rates are tabulated on the "
        "device beforehand, so that a step can be captured into a CUDA graph whose replays follow"
        " the schedules. A replay past the last of them changes nothing, and `check` tells.",
    ),
}
_TORCH = _EITHER | {
    "params": Text(
        "iterable",
        "Tensors, ``(name, tensor)`` pairs or group dicts, as for every PyTorch optimizer: "
        "bfloat16, float16, float32 or float64, on the CPU or on one CUDA GPU; also "
        "DTensors, of which each rank updates its piece. They stay where they are and are updated in place. All "
        "options but `fused_amp` may stand in a group, and may be changed "
        "there between steps.",
    ),
    "lr": Text("float or Tensor"),
    "weight_decay": Text("float"),
    "decay_filter": Text("callable", "By default none is exempt: there is no rule by name."),
    "nonfinite": Text(
        '{"propagate", "skip", "raise"}',
        "Let it through unchecked as PyTorch does, leave the whole step out, or raise before "
        'anything changes. Where groups differ, ``"raise"`` goes before ``"skip"``. ' + _AS_NONFINITE,
    ),
    "fused_amp": Text(
        "bool", "Whether `torch.amp.GradScaler` leaves dividing by its scale, and skipping, to the step."
    ),
}
_MOMENTS = """\
m = beta1*m + (1 - beta1)*g
v = beta2*v + (1 - beta2)*g*g
"""
CODE = {
    "Lamb": f"""\
{_MOMENTS}u = m/(1 - beta1**t) / (sqrt(v/(1 - beta2**t)) + eps) + weight_decay*w
r = norm(w) / norm(u)
w = w - lr*r*u""",
    "Lans": f"""\
g = g/norm(g)
{_MOMENTS}s = sqrt(v/(1 - beta2**t)) + eps
u = m/(1 - beta1**t) / s + weight_decay*w
c = g/s + weight_decay*w
w = w - lr*norm(w)*(beta1*u/norm(u) + (1 - beta1)*c/norm(c))""",
    "Lars": """\
r = trust_coefficient*norm(w) / (norm(g) + weight_decay*norm(w) + eps)
v = momentum*v + r*(g + weight_decay*w)
w = w - lr*v""",
    "Momentum": """\
v = momentum*v + g + weight_decay*w
w = w - lr*v""",
}
"""A step of one layer by the name of the class, for readers of ``help()``, to whom LaTeX is no formula."""
TEXTS: dict[FrontEnd, dict[str, Text]] = {"numpy": _NUMPY, "torch": _TORCH}
"""By the name in the declaration, else by the name in the signature."""


def documented(method: Method, front_end: FrontEnd) -> Callable[[_Class], _Class]:
    """Return a class decorator that puts in `CODE`, ``{parameters}`` and ``{ranges}``, and tells of attributes.

    Parameters
    ----------
    method : Method
        What declares the options.
    front_end : {"numpy", "torch"}
        Whose names and ranges they have.

    Raises
    ------
    KeyError
        If a parameter of the constructor has no text.
    """

    def decorate(cls: _Class) -> _Class:
        if cls.__doc__ is not None:  # python -OO has none
            summary, _, rest = inspect.cleandoc(cls.__doc__).partition("\n\n")
            code = textwrap.indent(CODE[method.name], "    ")
            text = f"{summary}\n\nA step of one layer::\n\n{code}\n\n{rest}"
            text = text.replace("{parameters}", parameters(cls, method, front_end))
            cls.__doc__ = text.replace("{ranges}", ranges(method))
        for option in method.options:
            for name in option.numpy_names:
                attribute: Any = getattr(cls, name, None)
                if hasattr(attribute, "meaning"):
                    setattr(cls, name, attribute.meaning(option.meaning))
        return cls

    return decorate


def parameters(cls: type, method: Method, front_end: FrontEnd) -> str:
    """Return the entries of a class's parameters, in the order of its signature."""
    given = inspect.signature(cls).parameters
    declared: dict[str, tuple[Option | None, tuple[str, ...]]] = {}
    for one in method.options:
        names = one.numpy_names if front_end == "numpy" else (one.name,)
        declared |= dict.fromkeys(names, (one, names))
    entries = []
    for name, parameter in given.items():
        option, names = declared.get(name, (None, (name,)))
        if name != names[0]:
            continue
        text = TEXTS[front_end][name if option is None else option.name]
        kind = text.kind + _default([given[one] for one in names])
        sentences = [text.more] if option is None else _sentences(option, text, method, front_end)
        if parameter.default is None and option is not None and option.in_variant:
            sentences.append(_in_variants(option, method))
        body = _filled(" ".join(filter(None, sentences)), "    ", "    ")
        entries.append(f"{', '.join(names)} : {kind}\n{body}")
    return "\n".join(entries)


def ranges(method: Method) -> str:
    """Return which options have a range of the source document in the NumPy API, and which one for PyTorch."""
    lines = []
    for option in method.options:
        if option.source_check is not None:
            own, other = allowed(option.source_check), allowed(option.check)
            if "float" in own:
                names = ", ".join(f"``{name}``" for name in option.numpy_names)
                line = f"{names}: {own}; for PyTorch, ``{option.name}``: {other}".replace(", or None", "")
                lines.append(_filled(line, "- ", "  "))
    head = f"For NumPy, `numba_lamb.{method.name}` keeps to the types and ranges that MindSpore states:"
    return "\n".join([_filled(head), "", *lines])


def allowed(check: Check) -> str:
    """Return what a check allows, as its errors say it."""
    try:
        check("", "", object())
    except (TypeError, ValueError) as error:
        return str(error).partition(" must be ")[2].partition(", got ")[0]
    raise AssertionError("a check lets any object pass")


def _filled(text: str, first: str = "", indent: str = "") -> str:
    """Return text in lines, which end neither within backticks nor before a number."""
    kept = re.sub(r"`+[^`]*`+|[<>]=? ", lambda found: found[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        kept,
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\0", " ")


def _sentences(option: Option, text: Text, method: Method, front_end: FrontEnd) -> list[str]:
    check = (option.source_check if front_end == "numpy" else None) or option.check
    sentences = [option.meaning, text.more]
    found = allowed(check).removesuffix(", or None")
    # What is allowed of a rate that may be callable is told with its forms.
    if re.search("number|float", found) and "callable" not in text.kind:
        sentences.append(f"{found[0].upper()}{found[1:]}.")
    if option.name == "grad_centralization" and method.centralizes_decay:
        sentences.append("Weight decay is in the gradient by then.")
    if option.name == "variant":
        sentences.append(f"One of {_listed(list(method.variants))}: see ``numba-lamb variants``.")
    return sentences


def _in_variants(option: Option, method: Method) -> str:
    """Return what None stands for."""
    papers = getattr(method.variants["paper"], option.name)
    others = [name for name, one in method.variants.items() if getattr(one, option.name) != papers]
    if isinstance(papers, bool):
        return f"By default {papers}, but {not papers} in {_listed(others)}."
    return "By default as the variant has it."


def _listed(names: list[str]) -> str:
    *most, last = (f'``"{name}"``' for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def _default(given: list[inspect.Parameter]) -> str:
    defaults: list[Any] = [one.default for one in given]
    if inspect.Parameter.empty in defaults:
        return ""
    if None in defaults:
        return ", optional"
    return f", default {' and '.join(map(_shown, defaults))}"


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
