"""DistributedDataParallel: two processes are as one with the batch of both."""

from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

from tests.integrations.distributed_workers import STEPS, WORLD, half_of, in_processes, lamb
from tests.integrations.trainer_toys import assert_same_bits, batches, loss_of, moved, network, train, weights

CASES = {
    "copies": {"view": False, "max_grad_norm": None},
    "views": {"view": True, "max_grad_norm": None},
    "clipped views": {"view": True, "max_grad_norm": 0.1},
}


@pytest.fixture(scope="module", name="ranks")
def ranks_fixture(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases = [("ddp", {"name": name, **options}) for name, options in CASES.items()]
    return in_processes(tmp_path_factory.mktemp("ddp"), cases)


def train_on_averages(model: Any, optimizer: Any) -> None:
    """Train in one process with exactly the gradients that DDP makes: the mean of those of the halves."""
    for batch in batches(STEPS):
        halves = []
        for rank in range(WORLD):
            model.zero_grad()
            loss_of(model, half_of(batch, rank)).backward()
            halves.append([parameter.grad / WORLD for parameter in model.parameters()])
        for parameter, *gradients in zip(model.parameters(), *halves, strict=True):
            parameter.grad = sum(gradients)
        optimizer.step()


@pytest.mark.parametrize("case", CASES)
def test_the_processes_agree_bit_for_bit(ranks: list[dict[str, Any]], case: str) -> None:
    assert_same_bits(ranks[0][case], ranks[1][case])
    assert moved(ranks[0][case]["weights"], weights(network()))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_same_gradients(ranks: list[dict[str, Any]], case: str) -> None:
    model = network()
    optimizer = lamb(model.parameters(), max_grad_norm=CASES[case]["max_grad_norm"])
    train_on_averages(model, optimizer)
    assert_same_bits(ranks[0][case], {"weights": weights(model), "state": optimizer.state_dict()["state"]})


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_twice_the_batch(ranks: list[dict[str, Any]], case: str) -> None:
    model = network()
    train(model, lamb(model.parameters(), max_grad_norm=CASES[case]["max_grad_norm"]), batches(STEPS))
    torch.testing.assert_close(ranks[0][case]["weights"], weights(model), rtol=1e-5, atol=1e-6)


def test_clipping_made_a_difference(ranks: list[dict[str, Any]]) -> None:
    assert moved(ranks[0]["views"]["weights"], ranks[0]["clipped views"]["weights"])
