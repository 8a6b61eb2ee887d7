"""Compute what a sharded step sends, keeps and takes, from 1 to thousands of ranks.

``python docs/simulate_scaling.py --write`` writes the tables of ``scaling.md`` and draws ``scaling.png``. Without
``--write`` the computed tables are printed, for another machine by its options; ``--host`` measures what Python
takes here.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))
import numba_lamb as nl
from numba_lamb.cli.bench.profiles import PROFILES, Shape, bert, parameter_count
from numba_lamb.layout import ALIGNMENT, CHUNK, ChunkTable, FlatLayout
from numba_lamb.sharding import cut
from tests.sharding.ranks import ThreadComm, on_ranks

DOCS = Path(__file__).parent
Int64 = NDArray[np.int64]
AGREEMENT = 1608
"""Bytes that each rank tells all others before anything else."""
SUM = 8
"""Bytes of one sum of a chunk."""
ELEMENT = 4
"""Bytes of a gradient, a weight or a moment: float32."""
MIB = 2**20
BUCKETS = (25.0, 50.0, 100.0, 200.0, 400.0, 800.0, 1600.0)
"""MiB that may travel together, of which the best is taken."""
MEETINGS: dict[str, tuple[int, ...]] = {
    "Lamb": (1, 2),
    "Lamb, max_grad_norm": (2, 2),
    'Lamb, nonfinite="propagate"': (2,),
    "Lans": (1, 1, 3),
    "Lars": (1, 2),
    "Momentum": (1,),
}
"""How many numbers of each chunk ranks tell each other, meeting by meeting."""

CHECK, ADVANCE, DESCEND = 4, 24, 16
"""Bytes of memory that LAMB moves for each parameter: the finite check; moments; weights."""
COPY, AVERAGE = 8, 4
"""Bytes of memory that are moved for each number: from one array to another; to be averaged, or as an average."""
ADD = 12
"""Bytes of memory that are moved for each number that an all-reduce adds to another."""

MODELS = {"BERT-large": PROFILES["bert-large"], "ResNet-50": PROFILES["resnet-50"]}
RANKS = (1, 8, 64, 256, 1024, 4096)
COUNTED = bert(128, 2)
"""The model whose steps are counted: a BERT of 2 layers."""
COUNTED_RANKS, COUNTED_MB = (1, 2, 4, 8), 1.0


@dataclass(frozen=True)
class Machine:
    """What times are computed from.

    Attributes
    ----------
    latency : float
        Seconds until a message's first byte is there.
    link : float
        Bytes a second that a rank sends, and receives at the same time.
    memory : float
        Bytes a second that a rank's threads read and write together.
    host : float
        Seconds of Python that a step takes for each rank there is.
    """

    latency: float = 5e-6
    link: float = 12.5e9
    memory: float = 50e9
    # What `host_seconds` measured on an AMD EPYC.
    host: float = 4e-6

    def ring(self, ranks: int, nbytes: float) -> float:
        """Return the time in which each rank sends as many messages of `nbytes` as there are other ranks."""
        return (ranks - 1) * (self.latency + nbytes / self.link)


CLUSTER = Machine()


class Times(NamedTuple):
    """Seconds of a step and of its parts, some of which run at the same time."""

    links: float
    latency: float
    meetings: float
    memory: float
    host: float
    step: float


@dataclass(frozen=True, eq=False)
class Counts:
    """What a step sends and keeps.

    Attributes
    ----------
    elements, chunks : int64 array, shape (ranks,)
        How many of them each rank has.
    rooms : int64 array, shape (pieces,)
        Elements that a buffer has for each rank, piece by piece.
    state : int64 array, shape (ranks,)
        Bytes of moments that each rank has.
    meetings : tuple of int
        One of `MEETINGS`.
    """

    elements: Int64
    chunks: Int64
    rooms: Int64
    state: Int64
    meetings: tuple[int, ...] = MEETINGS["Lamb"]

    @property
    def ranks(self) -> int:
        """How many there are."""
        return len(self.elements)

    @property
    def messages(self) -> int:
        """Collectives of a step."""
        return 1 + 2 * len(self.rooms) + len(self.meetings)

    @cached_property
    def gradients(self) -> int:
        """Bytes of a rank's part in the buffers of gradients, or of weights."""
        return ELEMENT * int(self.rooms.sum())

    @property
    def sums(self) -> int:
        """Bytes of sums that a rank tells."""
        return SUM * sum(self.meetings) * int(self.chunks.max())

    @property
    def handed(self) -> int:
        """Bytes that a rank hands to collectives: gradients for all ranks, else what it tells itself."""
        return AGREEMENT + self.sums + (self.ranks + 1) * self.gradients

    @property
    def sent(self) -> int:
        """Bytes that a rank sends: all-gathers along a ring, the all-to-all pair by pair."""
        return (self.ranks - 1) * (AGREEMENT + self.sums + 2 * self.gradients)

    @property
    def buffers(self) -> int:
        """Bytes of the buffers for pieces under way, and of the averaged gradients of the rank that has most."""
        slots = min(2, len(self.rooms)) * (3 * self.ranks + 1) * ELEMENT * int(self.rooms.max())
        return slots + ELEMENT * int(self.elements.max())

    def times(self, machine: Machine, parameters: int) -> Times:
        """Return how long a step takes."""
        ranks, pieces, most = self.ranks, len(self.rooms), int(self.elements.max())
        latency = pieces * (ranks - 1) * machine.latency
        links = (ranks - 1) * self.gradients / machine.link
        meetings = machine.ring(ranks, AGREEMENT)
        meetings += sum(machine.ring(ranks, SUM * kinds * int(self.chunks.max())) for kinds in self.meetings)
        coming = (COPY * parameters + AVERAGE * (parameters + most)) / machine.memory
        between = (CHECK + ADVANCE) * most / machine.memory
        going = (DESCEND * most + COPY * parameters) / machine.memory
        host = ranks * machine.host
        step = sum(_overlapped(latency + links, work, pieces) for work in (coming, going))
        return Times(
            2 * links,
            2 * latency,
            meetings,
            coming + between + going,
            host,
            step + meetings + between + host,
        )


def _overlapped(first: float, second: float, pieces: int) -> float:
    """Return the time of two kinds of work, of which one is a piece behind the other."""
    return max(first, second) + min(first, second) / pieces


@cache
def _table(shapes: tuple[Shape, ...]) -> ChunkTable:
    layers = ((str(number), shape, "f4") for number, shape in enumerate(shapes))
    return FlatLayout(layers).table(np.dtype(np.float32))


@cache
def _shares(shapes: tuple[Shape, ...], ranks: int) -> tuple[Int64, Int64, Int64]:
    """Return each rank's elements, chunks and bytes of two moments."""
    division = cut(_table(shapes), ranks)
    runs = division.stops - division.starts
    padded = -(-runs // ALIGNMENT) * ALIGNMENT
    return runs.sum(axis=1), (-(-runs // CHUNK)).sum(axis=1), 2 * ELEMENT * padded.sum(axis=1)


def count(shapes: Sequence[Shape], ranks: int, bucket_mb: float = 25.0) -> Counts:
    """Return what a step of LAMB on float32 parameters sends and keeps.

    Examples
    --------
    >>> found = count([(100, 100), (50,)], ranks=2)
    >>> found.elements.tolist(), found.chunks.tolist(), found.messages
    ([4096, 5954], [1, 3], 5)
    """
    table = _table(tuple(shapes))
    elements, chunks, state = _shares(tuple(shapes), ranks)
    pieces = max(1, math.ceil(int(elements.max()) * ranks * ELEMENT / int(bucket_mb * MIB)))
    pieces = min(pieces, int(chunks.max()))
    layers, begins = table.chunks[:, 0], table.chunks[:, 1]
    ends = np.concatenate([[0], np.cumsum(np.minimum(table.sizes[layers] - begins, CHUNK))])
    first = np.cumsum(chunks) - chunks
    # A piece ends before the chunk in which its share of a rank's elements ends.
    shares = np.arange(pieces + 1) * elements[:, None] / pieces
    borders = np.searchsorted(ends, ends[first][:, None] + shares) - 1
    borders[:, 0], borders[:, -1] = first, first + chunks
    rooms = np.diff(ends[np.maximum(borders, first[:, None])], axis=1).max(axis=0)
    return Counts(elements, chunks, rooms, state)


# -- beside it -------------------------------------------------------------------------------------------------


def replicated(machine: Machine, parameters: int, ranks: int, busiest: float | None = None) -> float:
    """Return the time of an all-reduce, in the best of `BUCKETS`, and of LAMB on all parameters or `busiest`."""

    def reduced(bucket_mb: float) -> float:
        buckets = math.ceil(ELEMENT * parameters / (bucket_mb * MIB))
        ring = 2 * machine.ring(ranks, ELEMENT * parameters / buckets / ranks) * buckets
        memory = (2 * COPY + ADD * (ranks - 1) / ranks) * parameters / machine.memory
        return _overlapped(ring, memory, buckets)

    return min(map(reduced, BUCKETS)) + lamb(machine, parameters if busiest is None else busiest)


def lamb(machine: Machine, parameters: float) -> float:
    """Return the time of LAMB in one process."""
    return (CHECK + ADVANCE + DESCEND) * parameters / machine.memory


def busiest_of(shapes: Sequence[Shape], ranks: int) -> int:
    """Return the parameters of the busiest rank where the largest tensor goes to the idlest rank, and so on."""
    loads = np.zeros(ranks, dtype=np.int64)
    for size in sorted((math.prod(shape) for shape in shapes), reverse=True):
        loads[loads.argmin()] += size
    return int(loads.max())


def whole_tensors(machine: Machine, shapes: Sequence[Shape], ranks: int) -> tuple[float, float]:
    """Return the time of ZeRO-1 with whole tensors, and what of it comes after the all-reduce.

    That is LAMB on the busiest rank, and weights handed out along a ring in one go.
    """
    parameters, busiest = parameter_count(shapes), busiest_of(shapes, ranks)
    handed_out = machine.ring(ranks, ELEMENT * parameters / ranks)
    return (
        replicated(machine, parameters, ranks, busiest) + handed_out,
        lamb(machine, busiest) + handed_out,
    )


def best_bucket(shapes: Sequence[Shape], ranks: int, machine: Machine) -> float:
    """Return that of `BUCKETS` with which a step is shortest."""
    parameters = parameter_count(shapes)
    steps = {mb: count(shapes, ranks, mb).times(machine, parameters).step for mb in BUCKETS}
    return min(BUCKETS, key=steps.__getitem__)


# -- real steps ------------------------------------------------------------------------------------------------


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "Lamb": partial(nl.Lamb, learning_rate=1e-3),
    "Lamb, max_grad_norm": partial(nl.Lamb, learning_rate=1e-3, max_grad_norm=1.0),
    'Lamb, nonfinite="propagate"': partial(nl.Lamb, learning_rate=1e-3, nonfinite="propagate"),
    "Lans": partial(nl.Lans, learning_rate=1e-3),
    "Lars": lambda params, **options: nl.Lars(nl.Momentum(params, 1e-3, 0.9, **options)),
    "Momentum": partial(nl.Momentum, learning_rate=1e-3, momentum=0.9),
}
"""What `MEETINGS` are those of."""


class Real(NamedTuple):
    """What was counted on one rank in a real step."""

    messages: int
    handed: int
    state: int
    buffers: int


def real_steps(shapes: Sequence[Shape], ranks: int, bucket_mb: float, method: str = "Lamb") -> list[Real]:
    """Take a step on ranks that are threads, and return what each of them counted."""
    gradients = {str(number): np.full(shape, 1e-3, np.float32) for number, shape in enumerate(shapes)}

    def step(comm: ThreadComm) -> Real:
        weights = {name: np.ones_like(gradient) for name, gradient in gradients.items()}
        sharding = nl.Sharding(comm, bucket_mb=bucket_mb)
        opt = OPTIMIZERS[method](weights, num_threads=1, comm=sharding)
        before = comm.messages, comm.bytes
        opt.step(gradients)
        state = sum(sum(bucket.state.nbytes.values()) for bucket in opt._buckets)
        slots = [array for traffic in opt._backend._traffic for slot in traffic._slots for array in slot]
        buffers = sum(array.nbytes for array in slots) + opt._backend._traffic[0]._shard.nbytes
        return Real(comm.messages - before[0], comm.bytes - before[1], state, buffers)

    return on_ranks(ranks, step)


class Echo:
    """One rank of many that all tell what it tells."""

    rank, sharing = 0, 1

    def __init__(self, size: int) -> None:
        self.size = size

    def all_gather(self, out: Any, values: Any) -> Callable[[], None]:
        """Write `values` as often as there are ranks."""
        out.reshape(self.size, -1)[:] = values.reshape(1, -1)
        return lambda: None

    def all_to_all(self, out: Any, values: Any) -> Callable[[], None]:
        """Write this rank's part of `values` as often as there are ranks."""
        return self.all_gather(out, values.reshape(self.size, -1)[0])


def host_seconds(few: int = 64, many: int = 1024, rounds: int = 20) -> float:
    """Return by how much a step is longer for each rank there is, without what collectives take."""
    gradients = {str(number): np.full(64, 1e-3, np.float32) for number in range(many)}
    medians = []
    for ranks in (few, many):
        weights = {name: np.ones_like(gradient) for name, gradient in gradients.items()}
        opt = nl.Lamb(weights, learning_rate=1e-3, num_threads=1, comm=nl.Sharding(Echo(ranks)))
        opt.step(gradients)
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            opt.step(gradients)
            seconds.append(time.perf_counter() - began)
        medians.append(float(np.median(seconds)))
    return (medians[1] - medians[0]) / (many - few)


# -- tables ----------------------------------------------------------------------------------------------------


def _rows(heading: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    under = ["---"] * words + ["---:"] * (len(heading) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, under, *rows))


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.3g}" if nbytes < 1e9 else f"{nbytes / 1e6:,.0f}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def models_table() -> str:
    """Return the sizes of the models."""
    rows = []
    for model, shapes in {**MODELS, "BERT of 2 layers": COUNTED}.items():
        parameters, largest = parameter_count(shapes), max(map(math.prod, shapes))
        chunks = len(_table(tuple(shapes)).chunks)
        rows.append(
            [model, f"{parameters:,}", f"{chunks:,}", f"{len(shapes)}", f"{100 * largest / parameters:.1f} %"]
        )
    return _rows(["model", "parameters $`N`$", "chunks $`C`$", "layers", "largest layer"], rows)


def counted_table() -> str:
    """Return what was counted in real steps."""
    rows = []
    for ranks in COUNTED_RANKS:
        found = real_steps(COUNTED, ranks, COUNTED_MB)
        states = [one.state for one in found]
        whole = 2 * ELEMENT * parameter_count(COUNTED)
        rows.append(
            [
                str(ranks),
                str(found[0].messages),
                f"{found[0].handed:,}",
                f"{min(states):,}" if min(states) == max(states) else f"{min(states):,} to {max(states):,}",
                f"{max(states) / whole:.4f}",
            ]
        )
    heading = ["ranks", "messages", "bytes handed over", "bytes of state, each rank", "of all state"]
    return _rows(heading, rows, 0)


def meetings_table() -> str:
    """Return how many sums travel, by optimizer."""
    rows = [
        [
            f"`{method.partition(', ')[0]}`" + "".join(f", `{one}`" for one in method.split(", ")[1:]),
            ", ".join(map(str, kinds)),
            str(SUM * sum(kinds)),
            f"{100 * SUM * sum(kinds) / (2 * ELEMENT * CHUNK):.3f} %",
        ]
        for method, kinds in MEETINGS.items()
    ]
    heading = ["optimizer", "sums of a chunk, meeting by meeting", "bytes of a chunk", "beside its 32 KiB"]
    return _rows(heading, rows, 2)


def traffic_table(bucket_mb: float = 25.0) -> str:
    """Return what a step sends and keeps, by model and ranks."""
    rows = []
    for model, shapes in MODELS.items():
        for ranks in RANKS:
            found = count(shapes, ranks, bucket_mb)
            least = 2 * ELEMENT * parameter_count(shapes) * (ranks - 1) / ranks
            rows.append(
                [
                    model,
                    str(ranks),
                    str(len(found.rooms)),
                    str(found.messages),
                    _mb(found.sent),
                    f"{found.sent / least:.3f}" if ranks > 1 else "",
                    _mb((ranks - 1) * (found.sums + AGREEMENT)),
                    _mb(found.state.max()),
                    _mb(2 * ELEMENT * busiest_of(shapes, ranks)),
                    _mb(found.buffers),
                ]
            )
    heading = [
        "model",
        "ranks",
        "pieces",
        "messages",
        "MB sent",
        "/ least",
        "not layers",
        "MB of state",
        "ZeRO-1's",
        "MB of buffers",
    ]
    return _rows(heading, rows)


def times_table(machine: Machine = CLUSTER, bucket_mb: float = 25.0) -> str:
    """Return the time of a step beside others', by model and ranks."""
    rows = []
    for model, shapes in MODELS.items():
        parameters = parameter_count(shapes)
        for ranks in RANKS:
            best = best_bucket(shapes, ranks, machine)
            rows.append(
                [
                    model,
                    str(ranks),
                    _ms(count(shapes, ranks, bucket_mb).times(machine, parameters).step),
                    f"{_ms(count(shapes, ranks, best).times(machine, parameters).step)} ({best:g})",
                    _ms(replicated(machine, parameters, ranks)),
                    _ms(lamb(machine, parameters)),
                    *map(_ms, whole_tensors(machine, shapes, ranks)),
                ]
            )
    heading = [
        "ms",
        "ranks",
        "sharded",
        "best `bucket_mb`",
        "DDP",
        "after its all-reduce",
        "ZeRO-1",
        "after its all-reduce",
    ]
    return _rows(heading, rows)


def parts_table(machine: Machine = CLUSTER, bucket_mb: float = 25.0) -> str:
    """Return what the time of a sharded step is made of, by model and ranks."""
    rows = []
    for model, shapes in MODELS.items():
        for ranks in RANKS:
            found = count(shapes, ranks, bucket_mb)
            times = found.times(machine, parameter_count(shapes))
            rows.append([model, str(ranks), *map(_ms, times)])
    heading = [
        "ms",
        "ranks",
        "links",
        "latency of pieces",
        "agreement and sums",
        "memory",
        "Python",
        "step",
    ]
    return _rows(heading, rows)


SECTIONS = {
    "models": models_table,
    "counted": counted_table,
    "meetings": meetings_table,
    "traffic": traffic_table,
    "times": times_table,
    "parts": parts_table,
}


def render(page: str) -> str:
    """Return `page` with the tables between its markers made anew."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- {name}: made by docs/simulate_scaling.py -->", f"<!-- end of {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"scaling.md must have one section between {begin!r} and {end!r}")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return page


# -- the picture -----------------------------------------------------------------------------------------------

_OURS, _PEER, _OTHER, _GREY = "#0072B2", "#D55E00", "#8C6D00", "#666666"
DRAWN, DRAWN_RANKS = "BERT-large", [2**power for power in range(13)]


def draw(path: Path, machine: Machine = CLUSTER) -> None:
    """Draw the time of a step over the number of ranks, and what that of a sharded step is made of."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shapes = MODELS[DRAWN]
    parameters = parameter_count(shapes)
    found = [count(shapes, ranks).times(machine, parameters) for ranks in DRAWN_RANKS]
    best = [
        count(shapes, ranks, best_bucket(shapes, ranks, machine)).times(machine, parameters).step
        for ranks in DRAWN_RANKS
    ]
    steps = [
        ("DDP, LAMB on all", _PEER, "-", [replicated(machine, parameters, r) for r in DRAWN_RANKS], 0),
        (
            "ZeRO-1, whole tensors",
            _OTHER,
            "-",
            [whole_tensors(machine, shapes, r)[0] for r in DRAWN_RANKS],
            3,
        ),
        ("sharded", _OURS, "-", best, -3),
        ("sharded, 25 MiB", _OURS, "--", [times.step for times in found], 0),
    ]
    parts = [
        ("links", _OURS, "-", [times.links for times in found], 0),
        ("latency of pieces", _PEER, "-", [times.latency for times in found], 0),
        ("memory", _OTHER, "-", [times.memory for times in found], 0),
        ("agreement and sums", _GREY, "-", [times.meetings for times in found], 0),
        ("Python", _GREY, "--", [times.host for times in found], 0),
    ]
    with style.context(["default", {"font.size": 10}]):
        figure = Figure(figsize=(9.4, 4.0), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _lines(left, f"Step of {DRAWN}, ms", steps, [100, 200, 500, 1000, 2000])
        _lines(right, "Parts of a sharded step with 25 MiB, ms", parts, [0.1, 1, 10, 100, 1000])
        figure.savefig(path)


def _lines(axes: Any, title: str, lines: Sequence[Any], ticks: Sequence[float]) -> None:
    """Draw lines that bear their names."""
    for name, color, dashes, seconds, raised in lines:
        milliseconds = [1e3 * one if one > 0 else math.nan for one in seconds]
        axes.plot(DRAWN_RANKS, milliseconds, dashes, color=color, linewidth=1.8)
        place = DRAWN_RANKS[-1], milliseconds[-1]
        axes.annotate(name, place, (6, raised), textcoords="offset points", va="center", color=color)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    # Names stand to the right of the lines.
    axes.set_xlim(1, DRAWN_RANKS[-1])
    axes.set_ylim(ticks[0])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xticks(DRAWN_RANKS[::2], [str(ranks) for ranks in DRAWN_RANKS[::2]])
    axes.set_xlabel("ranks")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def main(words: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into the page and draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_mutually_exclusive_group()
    commands.add_argument("--write", action="store_true", help="write scaling.md and scaling.png")
    commands.add_argument("--host", action="store_true", help="measure Python's time for each rank")
    figures = parser.add_argument_group("the machine, for tables that are printed")
    figures.add_argument("--latency-us", type=float, help="microseconds of a message")
    figures.add_argument("--link-gb", type=float, help="GB/s of a rank's link")
    figures.add_argument("--memory-gb", type=float, help="GB/s of a rank's memory")
    figures.add_argument("--bucket-mb", type=float, help="MiB of gradients that travel together")
    given = parser.parse_args(words)
    units = {
        "latency": (given.latency_us, 1e-6),
        "link": (given.link_gb, 1e9),
        "memory": (given.memory_gb, 1e9),
    }
    changed = {name: value * unit for name, (value, unit) in units.items() if value is not None}
    if (given.write or given.host) and (changed or given.bucket_mb is not None):
        parser.error("figures of a machine are for tables that are printed")
    if given.host:
        print(f"{1e6 * host_seconds():.2f} us for each rank")
    elif given.write:
        page = DOCS / "scaling.md"
        page.write_text(render(page.read_text("utf-8")), encoding="utf-8", newline="\n")
        draw(DOCS / "scaling.png")
    else:
        machine, bucket_mb = replace(CLUSTER, **changed), given.bucket_mb or 25.0
        made = traffic_table(bucket_mb), times_table(machine, bucket_mb), parts_table(machine, bucket_mb)
        print("\n\n".join(made))


if __name__ == "__main__":
    main()
