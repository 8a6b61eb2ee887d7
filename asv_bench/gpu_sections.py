"""The sections of the measurement on a GPU; a lab gives them arrays, a clock and peers."""

import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

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
TEST_SECONDS = 200
MEASURED = ("bert-large", "bert-base", "resnet-50", "200-tiny", "one-100M")

# Bytes per float32 parameter as on the CPU; checking or clipping reads the gradients once more.
OURS: dict[str, tuple[float, Callable[[Any], Any]]] = {
    "lamb": (40, lambda p: nl.Lamb(p, RATE, weight_decay=DECAY, nonfinite="propagate")),
    "lamb-checked": (44, lambda p: nl.Lamb(p, RATE, weight_decay=DECAY)),
    "lamb-clipped": (44, lambda p: nl.Lamb(p, RATE, weight_decay=DECAY, max_grad_norm=1.0)),
    "lars": (28, lambda p: nl.Lars(nl.Momentum(p, RATE, 0.9, DECAY, nonfinite="propagate"))),
    "momentum": (20, lambda p: nl.Momentum(p, RATE, 0.9, DECAY, nonfinite="propagate")),
}

Section = Callable[[], Mapping[str, Any]]


def sections_of(lab: Any, root: Path) -> dict[str, Section]:
    """Return the sections in the order in which they run."""
    found: dict[str, Section] = {"tests": partial(tests, root), "bandwidth": partial(bandwidth, lab)}
    for profile in MEASURED:
        found[f"steps {profile}"] = partial(steps, lab, PROFILES[profile])
    for profile in ("bert-large", "resnet-50", "200-tiny"):
        found[f"kernels {profile}"] = partial(kernels, lab, PROFILES[profile])
        found[f"host {profile}"] = partial(host, lab, PROFILES[profile], fresh=profile != "bert-large")
    found["graph 200-tiny"] = partial(graph, lab, PROFILES["200-tiny"])
    return found


def tests(root: Path) -> dict[str, Any]:
    """Run the tests that need a GPU, in a process of their own; what they need beyond pytest is left out."""
    paths = [str(root / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    files = sorted(map(str, (root / "tests" / "cuda").glob("test_gpu*.py")))
    # A library's warning on some machine says nothing about this package.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--noconftest", "--tb=short", *files],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TEST_SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines()
    return {
        "exit_code": done.returncode,
        "summary": lines[-1] if lines else done.stderr[-500:],
        "not_passed": [line for line in lines if re.match("FAILED|ERROR|SKIPPED", line)],
        "tail": "" if done.returncode == 0 else (done.stdout + done.stderr)[-20_000:],
    }


def bandwidth(lab: Any) -> dict[str, Any]:
    """Measure what a copy and a multiplication in place move per second, reading and writing counted."""
    yardsticks = {"copy": lab.copy(), "sweep": lab.sweep()}
    samples = take_turns(lab, {name: step for name, (step, _) in yardsticks.items()})
    found = {
        name: three(spread([1e-9 * yardsticks[name][1] / seconds for seconds in taken]))
        for name, taken in samples.items()
    }
    del yardsticks
    lab.free()
    return {"gb_per_s": found}


def steps(lab: Any, shapes: Sequence[Shape]) -> dict[str, Any]:
    """Measure a step of each optimizer, and in the same rounds a copy."""
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
    samples = take_turns(lab, turns)
    turns.clear()
    lab.free()
    count = parameter_count(shapes)
    return {
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


def take_turns(lab: Any, turns: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return each step's seconds in each round; odd rounds run backwards, so that a steady drift cancels."""
    counts = {}
    for name, step in turns.items():
        lab.seconds(step, 3)
        usual = lab.seconds(step, 3)
        counts[name] = min(MOST_STEPS, max(1, math.ceil(TURN_SECONDS / max(usual, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(ROUNDS):
        for name in list(turns) if number % 2 == 0 else list(reversed(turns)):
            samples[name].append(lab.seconds(turns[name], counts[name]))
    return samples


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


def kernels(lab: Any, shapes: Sequence[Shape]) -> dict[str, Any]:
    """Measure each kernel of a step where it stands, with the caches as the kernel before it left them."""
    gradients = lab.arrays(shapes, 1)
    found: dict[str, Any] = {}
    for name, (_, make) in OURS.items():
        optimizer = make(lab.arrays(shapes, 0))
        optimizer.step(gradients)
        lab.finish()
        queued = optimizer._backend._kernels()
        runs = [part.on(lab.stream(), kernel) for part, kernel in queued]
        with device.open_device(0).current():
            lab.seconds_of_each(runs)
            taken = [lab.seconds_of_each(runs) for _ in range(ROUNDS)]
        found[name] = {
            kernel: three(spread([1e6 * seconds[k] for seconds in taken]))
            for k, (_, kernel) in enumerate(queued)
        }
    lab.free()
    return {"us": found}


def host(lab: Any, shapes: Sequence[Shape], fresh: bool) -> dict[str, Any]:
    """Measure what queueing a step costs the host, with gradients of the step before and with new ones."""
    gradients = lab.arrays(shapes, 1)
    sets = cycle([lab.copies(gradients) for _ in range(HOST_STEPS + 1)] if fresh else [gradients])
    found: dict[str, Any] = {}
    for name, (_, make) in OURS.items():
        optimizer = make(lab.arrays(shapes, 0))
        found[name] = {"reused_us": host_cost(lab, lambda one=optimizer: one.step(gradients))}
        if fresh:
            found[name]["fresh_us"] = host_cost(lab, lambda one=optimizer: one.step(next(sets)))
    lab.free()
    return {"host": found}


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


def graph(lab: Any, shapes: Sequence[Shape]) -> dict[str, Any]:
    """Measure the replay of a captured step: the GPU's time, and the host's."""
    found: dict[str, Any] = {}
    for name, (_, make) in OURS.items():
        optimizer, gradients = make(lab.arrays(shapes, 0)), lab.arrays(shapes, 1)
        optimizer.step(gradients)
        replay = lab.graph(partial(optimizer.step, gradients))
        samples = take_turns(lab, {name: replay})[name]
        found[name] = {
            "device_us": three(spread([1e6 * seconds for seconds in samples])),
            "host_us": host_cost(lab, replay),
        }
    return {"replay": found}


def three(found: Any) -> list[float]:
    """Return median and quartiles as a list."""
    return [found.median, found.low, found.high]
