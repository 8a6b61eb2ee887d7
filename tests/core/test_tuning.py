"""What suits a processor changes no bit, is found by timing steps, and can be said otherwise."""

import itertools
from pathlib import Path

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb import _tuning
from numba_lamb._tuning import asked_prefetch, usual_prefetch
from numba_lamb.engine.cpu import calibration
from numba_lamb.engine.cpu.calibration import ASKED, BY_NAME, CALIBRATED, Calibration, Choice, chosen

LARGE = 4**10


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which nothing was timed and nothing is said."""
    monkeypatch.setattr(calibration.cache_state, "folder", str(tmp_path / "kernels"))
    monkeypatch.setattr(calibration, "_known", {})
    monkeypatch.setattr(_tuning, "ASKED", None)
    monkeypatch.setattr(_tuning, "USUAL", 4096)
    return tmp_path / "kernels"


def steps_of(model: Calibration, seconds: dict[int, float], count: int) -> list[int]:
    """Take steps that last so long by the clock of `model`, and return the distance in each."""
    now = itertools.count()
    distances = []

    def clock() -> float:
        # Even calls come before a step, odd ones after it.
        return seconds[int(model.ahead[0])] * (next(now) % 2)

    model._clock = clock
    for _ in range(count):
        model.timed(lambda: distances.append(int(model.ahead[0])))
    return distances


@pytest.mark.parametrize("distance", [64, 4096, 2**20])
def test_no_distance_changes_a_bit(monkeypatch: pytest.MonkeyPatch, distance: int) -> None:
    def bits() -> list[bytes]:
        rng = np.random.default_rng(1)
        found = []
        for make in (
            lambda w: nl.Lamb(w, 0.1, weight_decay=0.1, max_grad_norm=1.0),
            lambda w: nl.Lamb(w, 0.1),
            lambda w: nl.Lans(w, 0.1),
            lambda w: nl.Lars(nl.Momentum(w, 0.1, 0.9)),
        ):
            params = [rng.standard_normal(size).astype(np.float32) for size in (9000, 130, 1)]
            opt = make(params)
            for _ in range(3):
                opt.step([rng.standard_normal(w.shape).astype(np.float32) for w in params])
            found += [w.tobytes() for w in params]
        return found

    monkeypatch.setattr(_tuning, "ASKED", 0)
    without = bits()
    monkeypatch.setattr(_tuning, "ASKED", distance)
    assert bits() == without


def test_the_faster_distance_is_chosen_and_kept(folder: Path) -> None:
    model = Calibration(LARGE, 2)
    distances = steps_of(model, {0: 1.0, 4096: 0.9}, 15)
    assert distances == [0, 4096] * 6 + [4096] * 3
    assert chosen(LARGE, 2) == chosen(2 * LARGE, 2) == Choice(4096, CALIBRATED)
    # Other sizes and other numbers of threads find out for themselves.
    assert chosen(4 * LARGE, 2).because == chosen(LARGE, 1).because == BY_NAME
    # Another process.
    calibration._known.clear()
    assert steps_of(Calibration(LARGE, 2), {4096: 1.0}, 2) == [4096, 4096]


def test_where_it_makes_no_difference_loops_do_not_prefetch() -> None:
    assert steps_of(Calibration(LARGE, 2), {0: 1.0, 4096: 0.98}, 13)[-1] == 0
    assert chosen(LARGE, 2) == Choice(0, CALIBRATED)


def test_short_steps_are_not_timed_and_take_what_the_smallest_timed_ones_had() -> None:
    assert steps_of(Calibration(calibration.LEAST - 1, 2), {4096: 1.0}, 13) == [4096] * 13
    steps_of(Calibration(calibration.LEAST, 2), {0: 1.0, 4096: 2.0}, 12)
    assert chosen(1, 2) == Choice(0, CALIBRATED)


def test_what_the_environment_says_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_of(Calibration(LARGE, 2), {0: 1.0, 4096: 2.0}, 12)
    monkeypatch.setattr(_tuning, "ASKED", 512)
    assert steps_of(Calibration(LARGE, 2), {512: 1.0}, 13) == [512] * 13
    assert chosen(LARGE, 2) == Choice(512, ASKED)


def test_a_file_that_is_damaged_or_cannot_be_written_costs_the_timing_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_of(Calibration(LARGE, 2), {0: 1.0, 4096: 0.9}, 12)
    (kept,) = folder.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    calibration._known.clear()
    assert chosen(LARGE, 2).because == BY_NAME
    monkeypatch.setattr(calibration.cache_state, "folder", str(kept / "below a file"))
    steps_of(Calibration(LARGE, 2), {0: 1.0, 4096: 2.0}, 12)
    assert chosen(LARGE, 2) == Choice(0, CALIBRATED)


def test_a_step_that_raises_is_not_counted() -> None:
    model = Calibration(LARGE, 2)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.timed(interrupted)
    assert steps_of(model, {0: 1.0, 4096: 0.9}, 13) == [0, 4096] * 6 + [4096]


def test_steps_of_an_optimizer_choose() -> None:
    params = [np.ones(calibration.LEAST, np.float32)]
    opt = nl.Lamb(params, 1e-3, num_threads=1)
    for _ in range(12):
        opt.step([np.ones(calibration.LEAST, np.float32)])
    assert chosen(calibration.LEAST, 1).because == CALIBRATED


def test_the_processor_decides_unless_it_is_said() -> None:
    assert usual_prefetch("znver4", "x86_64") == usual_prefetch("neoverse-n1", "aarch64") == 0
    assert usual_prefetch("icelake-server", "x86_64") == usual_prefetch("generic", "AMD64") == 4096
    assert asked_prefetch(None) is None
    assert asked_prefetch("512") == 512
    for wrong in ("-64", "100", "much", "", "9999999999"):
        with pytest.raises(ValueError, match=f"must be a multiple of 64 from 0 to 1048576, got '{wrong}'"):
            asked_prefetch(wrong)
