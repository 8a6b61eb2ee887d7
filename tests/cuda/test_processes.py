"""The driver belongs to one process: it is started once, and a forked process is told what to do."""

import os

import numpy as np
import pytest

import numba_lamb as nl
from tests.cuda.double import Gpu
from tests.helpers import run_python

WEIGHTS = {"a": np.linspace(-1, 1, 200).astype("f4"), "b": np.linspace(0, 1, 7)}


def test_the_driver_is_started_once(gpu: Gpu) -> None:
    optimizer = nl.Momentum(gpu.arrays(WEIGHTS), 0.1, 0.9)
    optimizer.step(gpu.arrays(WEIGHTS))
    nl.Momentum(gpu.arrays(WEIGHTS), 0.1, 0.9)
    assert gpu.driver.starts == 1


FORK = """
import os
import sys

import numpy as np

import numba_lamb as nl
from tests.cuda.double import fresh_gpu

with fresh_gpu() as gpu:
    arrays = gpu.arrays({"w": np.ones(3)})
    optimizer = nl.Momentum(arrays, 0.1, 0.9)
    for _ in range(2):
        optimizer.step(arrays_like := gpu.arrays({"w": np.ones(3)}))
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        calls = {
            "step": lambda: optimizer.step(arrays_like),
            "new array": lambda: optimizer.step(gpu.arrays({"w": np.ones(3)})),
            "global_step": lambda: optimizer.global_step,
            "state_dict": lambda: optimizer.state_dict(),
            "construction": lambda: nl.Momentum(arrays, 0.1, 0.9),
        }
        for name, call in calls.items():
            try:
                call()
            except RuntimeError as error:
                print(name, str(error).replace(str(os.getpid()), "PID"), sep=": ")
        del optimizer
        sys.stdout.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(optimizer.global_step)
"""
FORKED = (
    "arrays on a GPU must be used in the process that started CUDA, got process PID, which was forked from it; "
    "start processes with multiprocessing.get_context('spawn')"
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_is_told_to_be_spawned() -> None:
    calls = ("step", "new array", "global_step", "state_dict", "construction")
    assert run_python(FORK).splitlines() == [*(f"{name}: {FORKED}" for name in calls), "2"]


def test_a_process_forked_after_another_library_started_the_driver(gpu: Gpu) -> None:
    arrays = gpu.arrays(WEIGHTS)
    gpu.driver.process = -1
    with pytest.raises(RuntimeError) as failure:
        nl.Lamb(arrays, 0.1)
    assert str(failure.value) == FORKED.replace("PID", str(os.getpid()))
