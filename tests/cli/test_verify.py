"""`numba-lamb verify`: that it passes here, finds the step and the layer of one wrong bit, and says so."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb.cli import main, verify
from numba_lamb.cli.verify import cases, inputs, places, stored, trace
from numba_lamb.kernels.cpu.program import PARALLEL_FROM
from numba_lamb.layout import CHUNK
from numba_lamb.methods.table import METHODS
from tests.cuda.double import Gpu

MOMENTUM = {"Momentum": METHODS["Momentum"]}


@pytest.fixture(name="momentum_alone")
def only_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "METHODS", MOMENTUM)


def wrong_after(step: int, layer: str, change: Callable[[np.ndarray], None]) -> Callable[..., None]:
    """A `step` of Momentum that changes a layer in passing: in the third case, which has its gaps elsewhere."""
    right = nl.Momentum.step

    def wrong(self: Any, gradients: Mapping[str, Any], stream: object = None) -> None:
        right(self, gradients, stream)
        if any(gradient is None for gradient in gradients.values()) and self.global_step == step:
            change(self.params[layer])

    return wrong


def next_number(weights: np.ndarray) -> None:
    weights[0] = np.nextafter(weights[0], np.inf)


# What is compared --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_optimizer_agrees_on_one_thread(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--steps", "50", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"place", "agrees", "optimizers"}
    assert (found["place"], found["agrees"]) == ("the CPU", True)
    fewer = {f"{name} in fewer bits" for name in ("Lamb", "Lans", "Lars")}
    assert found["optimizers"].keys() == METHODS.keys() | fewer == stored.load().keys()
    for name, (each,) in found["optimizers"].items():
        shipped = stored.load()[name].sha256["50"]
        assert each == {"steps": 50, "threads": 1, "sha256": shipped, "shipped": shipped, "first": None}


@pytest.mark.slow
@pytest.mark.skipif(verify.thread_limit() < 2, reason="needs two threads")
@pytest.mark.usefixtures("momentum_alone")
@pytest.mark.parametrize(
    ("words", "legs"),
    [
        (["--steps", "100", "--threads", "2"], ["100 steps on the CPU, 2 threads"]),
        (["--steps", "100"], ["100 steps on the CPU, 1 thread", "50 steps on the CPU, 2 threads"]),
    ],
)
def test_two_threads_agree(
    words: list[str], legs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "thread_count", lambda threads: 2)
    assert main(["verify", *words]) == 0
    head, *told = capsys.readouterr().out.splitlines()
    assert head == "Momentum, 4 cases"
    assert told[::3] == [f"  {leg}: every bit agrees" for leg in legs]


def test_layers_suffice_for_threads() -> None:
    for dtype in inputs.DTYPES:
        sizes = [prod(shape) for shape in inputs.SHAPES.values()]
        assert sum(-(-size // CHUNK) for size in sizes) >= PARALLEL_FROM, dtype


def test_every_formula_takes_part() -> None:
    for method in METHODS.values():
        named = {case.options.get("variant") for case in cases.cases_of(method)}
        formulas = {formula for name, formula in method.variants.items() if name in named}
        assert formulas == set(method.variants.values())


def test_the_stored_file_is_whole_and_small() -> None:
    assert stored.FILE.stat().st_size < 70_000
    for name, (_, those) in verify._sets().items():
        kept = stored.load()[name]
        dtypes = {dtype for case in those for dtype in case.dtypes}
        assert set(kept.layers) == {name for name in inputs.weights() if name.split()[0] in dtypes}
        assert [*kept.cases] == [case.name for case in those]
        assert {len(row) for row in (*kept.layers.values(), *kept.cases.values())} == {
            2 * len(trace.CHECKPOINTS)
        }
        assert [*map(int, kept.sha256)] == [*range(50, 1001, 50)]


# What it is compared on --------------------------------------------------------------------------------------


def test_the_hash_is_splitmix64() -> None:
    # The first outputs of the published generator from seed 0.
    found = inputs.hashed(np.arange(3, dtype=np.uint64))
    assert [*map(int, found)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 1000])
def test_inputs_are_exact_and_of_every_size(step: int) -> None:
    found = inputs.gradients(step)
    assert (
        [*found]
        == [*inputs.weights()]
        == [f"{dtype} {name}" for dtype in inputs.DTYPES for name in inputs.SHAPES]
    )
    for name, values in found.items():
        dtype, _, layer = name.partition(" ")
        tiny = np.finfo(dtype).tiny
        assert (values.dtype, values.shape) == (np.dtype(dtype), inputs.SHAPES[layer])
        if layer == "zeros" and step <= inputs.ZERO_STEPS:
            assert not values.any()
        elif layer == inputs.SUBNORMAL:
            assert np.all((values != 0) & (abs(values) < tiny))
            assert (values < 0).any()
            assert (values > 0).any()
        else:
            assert np.all((abs(values) >= 2.0**-64) & (abs(values) < 0.5 ** (step % 4)))


@pytest.mark.parametrize("dtype", inputs.DTYPES)
def test_a_hash_and_its_float(dtype: str) -> None:
    digits = 24 if dtype == "float32" else 53
    bits = np.array([0, 2**64 - 1, 3 << 62], dtype=np.uint64)
    lowest = 1 - 2**digits
    exact = [lowest, -lowest / 2**7, 2 ** (digits - 1) + 1]
    assert (inputs._floats(bits, dtype) * 2.0**digits).tolist() == exact


def test_nothing_runs_away() -> None:
    runs = [
        trace._Run(method, case, places.HOST, 1)
        for method in METHODS.values()
        for case in cases.cases_of(method)
    ]
    for step in range(1, 14):
        values = inputs.gradients(step)
        poisoned = {**values, cases.POISONED: trace._with_infinity(values)}
        for run in runs:
            run.step(step, values, poisoned)
    for run in runs:
        assert all(np.isfinite(array).all() for array in run.params.values())
        assert np.isfinite([*run.optimizer.stats().values()]).all()
        assert run.optimizer.skipped_steps == run.case.is_poisoned
        layer = run.optimizer.state_dict()["layers"]["float32 one"]
        assert (layer["step"] < run.optimizer.global_step) == run.case.has_gaps


# What is found -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("momentum_alone")
@pytest.mark.parametrize(("step", "until", "at"), [(7, 6, 7), (33, 30, 40)])
def test_one_wrong_bit_is_found(
    step: int, until: int, at: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "float64 below a row"
    monkeypatch.setattr(nl.Momentum, "step", wrong_after(step, layer, next_number))
    assert main(["verify", "--steps", "50", "--threads", "1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["agrees"] is False
    first = {"agrees_until": until, "differs_at": at, "layers": [layer], "cases": ["gradients missing"]}
    assert found["optimizers"]["Momentum"][0]["first"] == first


@pytest.mark.usefixtures("momentum_alone")
def test_the_sign_of_a_zero_is_a_bit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def negative_zero(weights: np.ndarray) -> None:
        assert weights[0] == 0
        weights[0] = -0.0

    monkeypatch.setattr(nl.Momentum, "step", wrong_after(2, "float32 zeros", negative_zero))
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["verify", "--steps", "50", "--threads", "1"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    shipped = stored.load()["Momentum"].sha256["50"]
    assert lines[:3] == [
        "Momentum, 4 cases",
        "  50 steps on the CPU, 1 thread: DIFFERS, first at step 2, in layers float32",
        "    zeros, of cases gradients missing",
    ]
    assert lines[3].startswith("    here     ")
    assert lines[4] == f"    shipped  {shipped}"
    assert lines[3].split()[1] != shipped
    assert " ".join(lines[5:]) == verify._REPORT


def test_many_names_are_cut() -> None:
    many = trace.Difference(20, 30, [f"l{k}" for k in range(9)], ["a"])
    told = "first between steps 21 and 30, in layers l0, l1, l2, l3, l4, l5 and 3 more, of cases a"
    assert verify._first(many) == told


def test_where_short_digests_agree_by_chance_the_whole_one_decides() -> None:
    kept = stored.load()["Momentum"]
    other = replace(kept, sha256={"50": "0" * 64})
    layers, cases_ = ({name: row[:46] for name, row in rows.items()} for rows in (kept.layers, kept.cases))
    found = trace.Trace(kept.sha256, layers, cases_)
    assert trace.compare(found, kept, 50) is None
    assert trace.compare(found, other, 50) == trace.Difference(40, 50, [], [])


# What is refused, and written --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", "7"], "--steps must be a multiple of 50 from 50 to 1000, got 7"),
        (["--steps", "1050"], "--steps must be a multiple of 50 from 50 to 1000, got 1050"),
        (
            ["--threads", "0"],
            f"--threads must be between 1 and {verify.thread_limit()}, got 0; the environment",
        ),
        (["--threads", "1", "--device", "cuda"], "--threads must be left out with --device cuda, got 1"),
        (
            ["--write", "--steps", "50"],
            "--write must be given without --device, --steps and --json: it stores",
        ),
    ],
)
def test_refusals(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *words]) == 2
    assert capsys.readouterr().err.startswith(f"numba-lamb verify: {told}")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(places, "find_spec", lambda name: None)
    assert main(["verify", "--device", "cuda"]) == 2
    told = "--device must be cpu here, got cuda: neither CuPy nor PyTorch is installed; it needs a GPU"
    assert told in capsys.readouterr().err

    def broken(name: str) -> Any:
        raise OSError("no\ndriver")

    monkeypatch.setattr(places, "find_spec", lambda name: object())
    monkeypatch.setattr(places, "import_module", broken)
    assert main(["verify", "--device", "cuda"]) == 2
    assert "cupy finds no GPU (no driver) and torch finds no GPU (no driver)" in capsys.readouterr().err


@pytest.mark.usefixtures("momentum_alone")
def test_kernels_that_cannot_be_had_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(values: Any) -> Any:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(verify, "gpu", lambda: places.Place("a GPU", refused, np.asarray))
    assert main(["verify", "--device", "cuda"]) == 2
    assert "--device must be cpu here, got cuda: the driver is too old" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("momentum_alone")
def test_digests_are_written_in_a_checkout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = stored.FILE.read_text()
    package = tmp_path / "src" / "numba_lamb" / "cli" / "verify"
    package.mkdir(parents=True)
    monkeypatch.setattr(stored, "FILE", package / "digests.json")
    assert main(["verify", "--write"]) == 2
    assert "--write must be left out, got it without a checkout" in capsys.readouterr().err
    assert main(["verify"]) == 2
    assert "has no digests of Momentum; --write in a checkout adds them" in " ".join(
        capsys.readouterr().err.split()
    )
    (tmp_path / "pyproject.toml").touch()
    assert main(["verify", "--write", "--threads", "1"]) == 0
    assert stored.load()["Momentum"] == trace.Trace(**json.loads(written)["optimizers"]["Momentum"])


DAMAGES = {
    "cut": lambda text: text[:2000],
    "empty": lambda text: "",
    "no bytes of text": lambda text: text[:100] + "\udcff",
    "a list": lambda text: "[]",
    "nothing": lambda text: "{}",
    "another name": lambda text: text.replace("sha256", "sha255"),
    "no steps": lambda text: text.replace('"50"', '"51"'),
    "a number": lambda text: re.sub('"50": "[0-9a-f]+"', '"50": 1', text),
    "no table": lambda text: re.sub('"cases": {[^}]*}', '"cases": null', text),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_digests_are_one_line(
    damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "digests.json"
    file.write_text(damage(stored.FILE.read_text()), errors="surrogateescape")
    monkeypatch.setattr(stored, "FILE", file)
    assert main(["verify", "--steps", "50"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("numba-lamb verify: ")
    assert "must be as the package brings it, but is damaged" in said
    assert len(said) < 1000


# On a GPU ----------------------------------------------------------------------------------------------------


def test_a_gpu_gives_the_same_bits(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: shape for name, shape in inputs.SHAPES.items() if prod(shape) <= 130}
    monkeypatch.setattr(inputs, "SHAPES", few)
    monkeypatch.setattr(cases, "SHAPES", few)
    monkeypatch.setattr(trace, "PIECE", 2)
    on_gpu = places.Place("a GPU", gpu.array, lambda array: array.get())
    for method in MOMENTUM.values():
        first = cases.cases_of(method)[:1]
        assert trace.replay(method, first, 2, on_gpu) == trace.replay(method, first, 2, places.HOST)
