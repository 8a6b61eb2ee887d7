"""ZeroRedundancyOptimizer: each process keeps the state of some layers, and the result is that of plain LAMB."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

from tests.integrations.distributed_workers import (
    HALF,
    PARAMETERS,
    STEPS,
    clipping,
    in_processes,
    lamb,
    matrices,
)
from tests.integrations.trainer_toys import assert_same_bits, batches, moved, network, train, weights

CASES = {
    f"{parameters}, {kind}": {"parameters": parameters, "view": view}
    for parameters in PARAMETERS
    for kind, view in (("own memory", False), ("bucket views", True))
}
Run = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module", name="run")
def run_fixture(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("zero")
    return folder, in_processes(
        folder, [("zero", {"name": name, **options}) for name, options in CASES.items()]
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(case: str) -> tuple[Any, Any]:
    model = network()
    return model, lamb(PARAMETERS[CASES[case]["parameters"]](model), decay_filter=matrices)


@pytest.mark.parametrize("case", CASES)
def test_sharded_is_as_plain_bit_for_bit(run: Run, case: str) -> None:
    model, optimizer = plain(case)
    train(model, optimizer, batches(STEPS), before_step=clipping(model))
    for results in run[1]:
        assert_same_bits(results[case]["weights"], weights(model))
    assert moved(weights(model), weights(network()))


@pytest.mark.parametrize("case", CASES)
def test_the_state_was_really_shared_out(run: Run, case: str) -> None:
    owned = [results[case]["owned"] for results in run[1]]
    assert all(owned)
    assert sorted(owned[0] + owned[1]) == sorted(list(p.shape) for p in network().parameters())


def test_one_process_began_with_a_group_of_nothing(run: Run) -> None:
    sizes = [results["empty first group, bucket views"]["sizes"] for results in run[1]]
    assert sorted(size[0] for size in sizes) == [0, 1]


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_from_a_consolidated_checkpoint(run: Run, case: str) -> None:
    for results in run[1]:
        assert_same_bits(results[case]["resumed"], results[case]["weights"])


@pytest.mark.parametrize("case", CASES)
def test_a_consolidated_checkpoint_is_one_of_plain_lamb(run: Run, case: str) -> None:
    folder, ranks = run
    saved = torch.load(folder / f"{case}.checkpoint.pt", weights_only=False)
    model, optimizer = plain(case)
    train(model, optimizer, batches(STEPS)[:HALF], before_step=clipping(model))
    assert_same_bits(saved["optimizer"]["state"], optimizer.state_dict()["state"])
    assert_same_bits(saved["model"], model.state_dict())

    resumed, optimizer = plain(case)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, batches(STEPS)[HALF:], before_step=clipping(resumed))
    assert_same_bits(weights(resumed), ranks[0][case]["weights"])
