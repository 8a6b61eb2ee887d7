"""One optimizer that several threads step: steps come one after the other, and errors to the thread that erred."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numba_lamb as nl
from tests.helpers import frozen, run_python

pytestmark = pytest.mark.slow

SIZES = (100_000, 7, 300)
STEPS, THREADS = 40, 3


def numpy_run() -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    params = [np.linspace(-1, 1, size, dtype=np.float32) for size in SIZES]
    gradients = [np.linspace(1, 2, size, dtype=np.float32) for size in SIZES]
    opt = nl.Lamb(params, lambda step: 0.1 / (step + 1))
    return (
        lambda: opt.step(gradients),
        lambda: opt.step(gradients[:2]),
        lambda: frozen([params, opt.state_dict()]),
    )


def torch_run() -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    torch = pytest.importorskip("torch", reason="the peers extra is not installed")
    from numba_lamb.torch import Lamb

    params = [torch.nn.Parameter(torch.linspace(-1, 1, size)) for size in SIZES]
    opt = Lamb(params, lr=0.1)
    for p, size in zip(params, SIZES, strict=True):
        p.grad = torch.linspace(1, 2, size)

    def wrong() -> None:
        raise ValueError

    def seen() -> Any:
        return frozen([[p.detach().numpy(), opt.state[p]["exp_avg"].numpy()] for p in params])

    return opt.step, wrong, seen


@pytest.mark.parametrize("run", [numpy_run, torch_run], ids=["numpy", "torch"])
def test_steps_of_several_threads_are_whole(run: Any) -> None:
    step, wrong, seen = run()
    errors: dict[int, list[Exception]] = {k: [] for k in range(THREADS + 1)}

    def work(number: int, call: Callable[[], Any]) -> None:
        for _ in range(STEPS):
            try:
                call()
            except Exception as error:
                errors[number].append(error)

    calls = [step] * THREADS + [wrong]
    threads = [threading.Thread(target=work, args=(k, call)) for k, call in enumerate(calls)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [len(errors[k]) for k in range(THREADS + 1)] == [0] * THREADS + [STEPS]
    once, _, expected = run()
    for _ in range(STEPS * THREADS):
        once()
    assert seen() == expected()


FORKS = """
import os, threading
import numpy as np
import numba_lamb as nl

params = [np.ones(size, dtype=np.float32) for size in (100_000, 7)]
opt = nl.Lamb(params, 0.1)
gradients = [np.ones_like(w) for w in params]
opt.step(gradients)
stop = threading.Event()

def work():
    while not stop.is_set():
        opt.step(gradients)

thread = threading.Thread(target=work)
thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        opt.step(gradients)
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_forked_during_another_threads_step_can_step() -> None:
    """In a process of its own: other packages warn of any fork."""
    assert run_python(FORKS).split() == ["7"] * 10


def test_a_schedule_may_ask_its_optimizer() -> None:
    w = np.ones(3)
    rates: list[Any] = []
    opt: Any = nl.Momentum([w], lambda step: 0.1, 0.0)

    def asking(step: int) -> float:
        rates.append(opt.global_step)
        return 0.1

    opt.learning_rate = asking
    for _ in range(2):
        opt.step([np.ones(3)])
    assert rates == [0, 1]
