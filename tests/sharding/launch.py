"""Starts processes that find each other by a file, as torchrun's do by a port."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(size: int, script: str, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start `size` ranks of a script beside this file."""
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).parent / script), *map(str, arguments)],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                # Interfaces that have a name alone are of no use to gloo.
                "GLOO_SOCKET_IFNAME": "lo",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def stop(processes: list[subprocess.Popen[str]]) -> None:
    """End all that still run, and take in what they printed."""
    for process in processes:
        process.kill()
        process.communicate()


def finish(processes: list[subprocess.Popen[str]], timeout: float = 180.0) -> list[str]:
    """Return what every rank printed, or fail with all of it unless each ends well."""
    told = []
    try:
        for process in processes:
            told.append(process.communicate(timeout=timeout)[0])
    finally:
        stop(processes)
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(told)
    return told
