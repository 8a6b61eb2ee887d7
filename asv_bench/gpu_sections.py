"""The sections of the measurement on a GPU, in order; a lab gives those that measure arrays, a clock and peers.

Each yields what it has found whenever it has found more, so that it may be stopped at any time.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import gpu_contact

import numba_lamb as nl
from numba_lamb.cli.bench.profiles import PROFILES, Shape, parameter_count
from numba_lamb.cli.bench.subjects import DECAY, RATE
from numba_lamb.cli.bench.summary import spread
from numba_lamb.memory import device

ROUNDS = 15
TURN_SECONDS = 0.015
"""A turn takes about so long: many steps where they are short."""
MOST_STEPS = 100
"""In a turn, so that what is queued fits the driver's queue."""
HOST_STEPS = 20

# Bytes per float32 parameter as on the CPU; checking or clipping reads the gradients once more.
OURS: dict[str, tuple[float, Callable[[Any], Any]]] = {
    "lamb": (40, lambda p: nl.Lamb(p, RATE, weight_decay=DECAY, nonfinite="propagate")),
    "lamb-checked": (44, lambda p: nl.Lamb(p, RATE, weight_decay=DECAY)),
    "lamb-clipped": (44, lambda p: nl.Lamb(p, RATE, weight_decay=DECAY, max_grad_norm=1.0)),
    "lars": (28, lambda p: nl.Lars(nl.Momentum(p, RATE, 0.9, DECAY, nonfinite="propagate"))),
    "momentum": (20, lambda p: nl.Momentum(p, RATE, 0.9, DECAY, nonfinite="propagate")),
}

Found = Iterator[Mapping[str, Any]]


class Section(NamedTuple):
    """What a section does, and the seconds after which it is stopped."""

    limit: float
    run: Callable[[], Found]


def new_lab() -> Any:
    """Return what measures on the GPU."""
    from gpu_lab import TorchLab

    return TorchLab()


def bandwidth() -> Found:
    """Measure what a copy and a multiplication in place move per second, reading and writing counted."""
    lab = new_lab()
    yardsticks = {"copy": lab.copy(), "sweep": lab.sweep()}
    for samples in take_turns(lab, {name: step for name, (step, _) in yardsticks.items()}):
        found = {
            name: three(spread([1e-9 * yardsticks[name][1] / seconds for seconds in taken]))
            for name, taken in samples.items()
        }
        yield {"gb_per_s": found}


def steps(shapes: Sequence[Shape]) -> Found:
    """Measure a step of each optimizer, and in the same rounds a copy."""
    lab = new_lab()
    gradients = lab.arrays(shapes, 1)
    copy, copied = lab.copy()
    turns: dict[str, Callable[[], object]] = {"copy": copy}
    bytes_of: dict[str, float] = {}
    failed: dict[str, str] = {}
    makers = {
        name: (partial(our_step, lab, make, shapes, gradients), count) for name, (count, make) in OURS.items()
    }
    for name, (make, count) in {**makers, **lab.peers(shapes, gradients)}.items():
        try:
            turns[name] = make()
            turns[name]()
            bytes_of[name] = count
        except Exception as error:
            # A peer that does not fit or does not work leaves the others as they are.
            turns.pop(name, None)
            failed[name] = f"{type(error).__name__}: {error}"
    lab.finish()
    count = parameter_count(shapes)
    for samples in take_turns(lab, turns):
        yield {
            "parameters": count,
            "tensors": len(shapes),
            "rows": rows_of(samples, bytes_of, count, copied),
            "at_52_bytes_us": 1e6 * statistics.median(samples["copy"]) * 52 * count / copied,
            "failed": failed,
        }


def our_step(
    lab: Any, make: Callable[[Any], Any], shapes: Sequence[Shape], gradients: Sequence[Any]
) -> Callable[[], object]:
    """Return the step of one of our optimizers over new arrays."""
    optimizer = make(lab.arrays(shapes, 0))
    return lambda: optimizer.step(gradients)


def take_turns(lab: Any, turns: Mapping[str, Callable[[], object]]) -> Iterator[dict[str, list[float]]]:
    """Yield after each round each step's seconds in the rounds so far.

    Odd rounds run backwards, so that a steady drift cancels.
    """
    counts = {}
    for name, step in turns.items():
        lab.seconds(step, 3)
        usual = lab.seconds(step, 3)
        counts[name] = min(MOST_STEPS, max(1, math.ceil(TURN_SECONDS / max(usual, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(ROUNDS):
        for name in list(turns) if number % 2 == 0 else list(reversed(turns)):
            samples[name].append(lab.seconds(turns[name], counts[name]))
        yield samples


def rows_of(
    samples: Mapping[str, Sequence[float]], bytes_of: Mapping[str, float], count: int, copied: int
) -> list[dict[str, Any]]:
    """Return what is told of each optimizer; ratios are formed within a round.

    ``share_of_copy`` is the bandwidth of the counted bytes over the copy's.
    """
    rows = []
    for name, taken in samples.items():
        if name not in bytes_of:
            continue
        moved = bytes_of[name] * count
        shares = [moved / own / (copied / copy) for own, copy in zip(taken, samples["copy"], strict=True)]
        adamw = samples.get("adamw-fused")
        ratios = [own / other for own, other in zip(taken, adamw, strict=True)] if adamw else None
        rows.append(
            {
                "name": name,
                "us": three(spread([1e6 * seconds for seconds in taken])),
                "bytes_per_param": bytes_of[name],
                "gb_per_s": 1e-9 * moved / statistics.median(taken),
                "share_of_copy": three(spread(shares)),
                "ratio_to_fused_adamw": three(spread(ratios)) if ratios else None,
            }
        )
    return rows


def kernels(shapes: Sequence[Shape]) -> Found:
    """Measure each kernel of a step where it stands, with the caches as the kernel before it left them."""
    lab = new_lab()
    gradients = lab.arrays(shapes, 1)
    found: dict[str, Any] = {}
    for name, (_, make) in OURS.items():
        optimizer = make(lab.arrays(shapes, 0))
        optimizer.step(gradients)
        lab.finish()
        queued = optimizer._backend._kernels()
        runs = [bucket.on(lab.stream(), kernel) for bucket, kernel in queued]
        with device.open_device(0).current():
            lab.seconds_of_each(runs)
            taken = [lab.seconds_of_each(runs) for _ in range(ROUNDS)]
        found[name] = {
            kernel: three(spread([1e6 * seconds[k] for seconds in taken]))
            for k, (_, kernel) in enumerate(queued)
        }
        yield {"us": found}


def host(shapes: Sequence[Shape], fresh: bool) -> Found:
    """Measure what queueing a step costs the host, with gradients of the step before and with new ones."""
    lab = new_lab()
    gradients = lab.arrays(shapes, 1)
    sets = cycle([lab.copies(gradients) for _ in range(HOST_STEPS + 1)] if fresh else [gradients])
    found: dict[str, Any] = {}
    for name, (_, make) in OURS.items():
        optimizer = make(lab.arrays(shapes, 0))
        found[name] = {"reused_us": host_cost(lab, lambda one=optimizer: one.step(gradients))}
        if fresh:
            found[name]["fresh_us"] = host_cost(lab, lambda one=optimizer: one.step(next(sets)))
        yield {"host": found}


def host_cost(lab: Any, step: Callable[[], object]) -> list[float]:
    """Return the host's microseconds per step: median and quartiles."""
    taken = []
    for number in range(ROUNDS + 1):
        lab.finish()
        start = time.perf_counter()
        for _ in range(HOST_STEPS):
            step()
        # The first round compiles, and fills tables.
        if number:
            taken.append(1e6 * (time.perf_counter() - start) / HOST_STEPS)
    lab.finish()
    return three(spread(taken))


def graph(shapes: Sequence[Shape]) -> Found:
    """Measure the replay of a captured step: the GPU's time, and the host's."""
    lab = new_lab()
    found: dict[str, Any] = {}
    for name, (_, make) in OURS.items():
        optimizer, gradients = make(lab.arrays(shapes, 0)), lab.arrays(shapes, 1)
        optimizer.step(gradients)
        replay = lab.graph(partial(optimizer.step, gradients))
        *_, samples = take_turns(lab, {name: replay})
        found[name] = {
            "device_us": three(spread([1e6 * seconds for seconds in samples[name]])),
            "host_us": host_cost(lab, replay),
        }
        yield {"replay": found}


def workload(shapes: Sequence[Shape]) -> Found:
    """Take some steps of each optimizer, for tools that look at kernels."""
    lab = new_lab()
    gradients = lab.arrays(shapes, 1)
    for name, (_, make) in OURS.items():
        step = our_step(lab, make, shapes, gradients)
        for _ in range(3):
            step()
        lab.finish()
        yield {"steps of": name}


def three(found: Any) -> list[float]:
    """Return median and quartiles as a list."""
    return [found.median, found.low, found.high]


SECTIONS: dict[str, Section] = {
    "versions": Section(30, gpu_contact.what_there_is),
    "bits": Section(60, gpu_contact.bits),
    "compiling": Section(30, gpu_contact.compiling),
    "waiting in a capture": Section(20, gpu_contact.waiting_in_a_capture),
    "memcheck": Section(60, partial(gpu_contact.checked_by, "memcheck")),
    "racecheck": Section(60, partial(gpu_contact.checked_by, "racecheck")),
    "tests": Section(150, gpu_contact.gpu_tests),
    "bandwidth": Section(30, bandwidth),
    "steps bert-large": Section(60, partial(steps, PROFILES["bert-large"])),
    "kernels bert-large": Section(40, partial(kernels, PROFILES["bert-large"])),
    "steps 200-tiny": Section(40, partial(steps, PROFILES["200-tiny"])),
    "kernels 200-tiny": Section(30, partial(kernels, PROFILES["200-tiny"])),
    "host 200-tiny": Section(30, partial(host, PROFILES["200-tiny"], fresh=True)),
    "graph 200-tiny": Section(30, partial(graph, PROFILES["200-tiny"])),
    "steps resnet-50": Section(40, partial(steps, PROFILES["resnet-50"])),
    "steps one-100M": Section(40, partial(steps, PROFILES["one-100M"])),
    "profile": Section(60, gpu_contact.profiled),
    "kernels resnet-50": Section(30, partial(kernels, PROFILES["resnet-50"])),
    "steps bert-base": Section(40, partial(steps, PROFILES["bert-base"])),
    "host bert-large": Section(40, partial(host, PROFILES["bert-large"], fresh=False)),
}
"""In the order in which their answers matter: all is over after ten minutes, wherever that may be."""
FOR_TOOLS = {"workload": Section(60, partial(workload, PROFILES["bert-large"]))}
"""Sections that are run by others alone."""
