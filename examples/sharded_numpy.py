"""Train the handwritten digits with NumPy on several processes of MPI; resume on any number."""

import argparse
from pathlib import Path

import numpy as np
from mpi4py import MPI

import numba_lamb as nl
from numba_lamb.cli.train.data import load

BATCH = 480


def gradients(
    params: dict[str, np.ndarray], inputs: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the gradients of the mean cross-entropy of a network with one hidden layer."""
    hidden = np.maximum(inputs @ params["hidden weight"] + params["hidden bias"], 0)
    scores = hidden @ params["output weight"] + params["output bias"]
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    error = (shares / shares.sum(axis=1, keepdims=True) - targets) / len(inputs)
    back = (error @ params["output weight"].T) * (hidden > 0)
    return {
        "hidden weight": inputs.T @ back,
        "hidden bias": back.sum(axis=0),
        "output weight": hidden.T @ error,
        "output bias": error.sum(axis=0),
    }


def main() -> None:
    """Train, save, and tell the accuracy on held-out digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="steps of this run")
    parser.add_argument("--checkpoint", type=Path, default=Path("sharded-numpy.npz"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    options = parser.parse_args()

    world = MPI.COMM_WORLD
    digits = load().test
    rng = np.random.default_rng(0)  # the same weights on all ranks
    params = {
        "hidden weight": rng.normal(0, 0.18, (64, 256)).astype(np.float32),
        "hidden bias": np.zeros(256, np.float32),
        "output weight": rng.normal(0, 0.09, (256, 10)).astype(np.float32),
        "output bias": np.zeros(10, np.float32),
    }
    sharding = nl.Sharding(world)
    optimizer = nl.Lamb(params, learning_rate=0.02, weight_decay=0.01, comm=sharding)
    if options.resume:
        nl.load(options.checkpoint, optimizer)

    start = optimizer.global_step
    for step in range(start, start + options.steps):
        batch = np.random.default_rng(step).permutation(len(digits.inputs))[:BATCH]
        own = np.array_split(batch, world.size)[world.rank]
        optimizer.step(gradients(params, digits.inputs[own], digits.targets[own]))

    nl.save(options.checkpoint, optimizer)
    hidden = np.maximum(digits.held_out_inputs @ params["hidden weight"] + params["hidden bias"], 0)
    found = (hidden @ params["output weight"] + params["output bias"]).argmax(axis=1)
    if world.rank == 0:
        accuracy = (found == digits.held_out_labels).mean()
        print(f"{world.size} ranks, step {optimizer.global_step}: {accuracy:.1%} of held-out digits")


if __name__ == "__main__":
    main()
