"""Workers as the command sees them: started, asked, and closed whatever happens."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

__all__ = ["Worker", "WorkerError", "worker_command", "worker_environment"]

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NPROC",  # what XLA sizes its thread pool by
)
_CLOSE_SECONDS = 5.0


class WorkerError(Exception):
    """A worker failed; the message is the reason in one line."""


def worker_command(name: str, profile: str, threads: int) -> list[str]:
    """Return the command line of a worker; ``-P``, so that no file of the current folder stands for a package."""
    return [sys.executable, "-P", "-m", "numba_lamb.cli.bench.worker", name, profile, str(threads)]


def worker_environment(threads: int, given: Mapping[str, str]) -> dict[str, str]:
    """Return `given` with every library set to so many threads and its waiting threads put to sleep soon.

    OpenMP threads that wait by spinning are what makes regions follow each other fast, so within a step they
    may. Spinning on for long after it would slow the next competitor: GNU's give up within milliseconds by
    default, LLVM's and Intel's only after 200 ms, hence ``KMP_BLOCKTIME``. Policies of the user's own would
    change either, so they are left out.
    """
    kept = {
        name: value
        for name, value in given.items()
        if name
        not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES")
    }
    return {
        **kept,
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        "OMP_DYNAMIC": "FALSE",
        "KMP_BLOCKTIME": "5",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }


class Worker:
    """A worker process.

    Parameters
    ----------
    command : sequence of str
        Its command line.
    environment : mapping
        Its environment.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # A file rather than a pipe: nobody reads it while the worker lives, and a full pipe would block it.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(environment),
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After Ctrl-C nobody wants to wait for steps that are under way.
        self.close(now=kind is not None)

    def answer(self) -> dict[str, Any]:
        """Return the worker's next line.

        Raises
        ------
        WorkerError
            If the worker reports an error, says something else, or ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._why_it_ended())
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise WorkerError(f"unexpected output {line.strip()[:80]!r}") from None
        if "error" in message:
            raise WorkerError(" ".join(str(message["error"]).split()) or "failed")
        return message

    def ask(self, **request: object) -> dict[str, Any]:
        """Send a request and return the answer; raises as `answer` does."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(self._why_it_ended()) from None
        return self.answer()

    def close(self, *, now: bool = False) -> None:
        """End the process: it stops when its input ends, and is killed where it does not or it shall be `now`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # it may be gone already
            self._process.stdin.close()
        try:
            if not now:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_CLOSE_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._errors.close()

    def _why_it_ended(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {_signal_name(-code)}"
        return f"{how}: {lines[-1][:200]}" if lines else how


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    # Linux kills what asks for more memory than there is.
    return f"{name} (out of memory?)" if name == "SIGKILL" and os.name == "posix" else name
