"""The same on processes: gloo, MPI, FSDP2, and ranks that die or hang."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sharding.launch import ROOT, finish, start, stop

gloo = pytest.mark.skipif(sys.platform != "linux", reason="gloo needs the name of an interface here")


@gloo
def test_the_bits_are_those_of_one_process_and_checkpoints_reshard(tmp_path: Path) -> None:
    finish(start(4, "gloo_main.py", tmp_path, "save"))
    finish(start(3, "gloo_main.py", tmp_path, "load"))


@gloo
def test_fsdp2_and_tensor_parallelism(tmp_path: Path) -> None:
    finish(start(4, "fsdp_main.py", tmp_path))


@gloo
@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_a_fault_of_one_rank_is_an_error_on_the_other(tmp_path: Path, fault: str) -> None:
    processes = start(2, "fault_main.py", tmp_path, fault)
    told = processes[0].communicate(timeout=90)[0]
    stop(processes)
    assert processes[0].returncode == 0, told
    assert "rank 0: another rank is gone, or did not answer within 5 seconds" in told
    assert "load a checkpoint into a new optimizer" in told


@gloo
def test_groups_of_a_gpus_memory_alone(tmp_path: Path) -> None:
    finish(start(3, "group_main.py", tmp_path))


@gloo
def test_ranks_go_on_with_new_optimizers_after_one_left_a_step_out(tmp_path: Path) -> None:
    finish(start(2, "fault_main.py", tmp_path, "goes on"))


def test_mpi() -> None:
    pytest.importorskip("mpi4py")
    mpirun = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    command = [mpirun, "-n", "3", sys.executable, "-m", "tests.sharding.mpi_main"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
