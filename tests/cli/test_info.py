"""`numba-lamb info`: what it says, and that nothing missing stops it."""

import argparse
import json
from typing import Any

import numba
import pytest

from numba_lamb import _compile
from numba_lamb.cli import info
from numba_lamb.kernels.cpu import launch
from numba_lamb.kernels.cuda import tools
from tests.helpers import run_python


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    return info.collect()


def test_every_section_says_something(found: dict[str, dict[str, Any]]) -> None:
    assert found["versions"]["numba"] == numba.__version__
    installed = {name for name in tools.PACKAGES if tools.version(name) != "none"}
    assert installed <= found["versions"].keys()
    assert found["threads"]["count"] == launch.thread_count(None)
    assert found["threads"]["because"]
    assert found["threads"]["layer"] == numba.threading_layer()
    assert found["threads"]["layer"] in found["threads"]["layers_available"]
    assert found["cpu"]["model"]
    assert found["cpu"]["simd_bits"] in (None, 128, 256, 512)
    assert "because" in found["gpu"] or found["gpu"]["name"]


def test_text_names_all_that_json_has(found: dict[str, dict[str, Any]]) -> None:
    text = info.describe(found)
    for values in found.values():
        for key, value in values.items():
            assert key.replace("_", " ") in text
            assert isinstance(value, (list, dict, bool, type(None))) or str(value) in text


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_it(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    info.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["info", "--json"] if as_json else ["info"])
    assert arguments.run(arguments) == 0
    output = capsys.readouterr().out
    if as_json:
        assert set(json.loads(output)) == {"versions", "threads", "cpu", "kernel_cache", "gpu"}
    else:
        assert output.startswith("Versions\n")


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        ({"avx512f": True, "avx2": True, "sse2": True}, 512),
        ({"avx512f": False, "avx2": True, "sse2": True}, 256),
        ({"sse2": True}, 128),
        ({"neon": True}, 128),
        ({}, None),
    ],
)
def test_the_widest_registers_count(features: dict[str, bool], bits: int | None) -> None:
    assert info.simd_bits(features) == bits


def test_a_cache_that_is_off_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compile.cache_state, "folder", None)
    monkeypatch.setattr(_compile.cache_state, "reason", "no folder can be written")
    assert info.collect()["kernel_cache"] == {"folder": None, "because": "no folder can be written"}


def test_a_broken_gpu_driver_is_a_reason_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise OSError("driver\nis broken")

    monkeypatch.setattr("numba.cuda.is_available", broken)
    assert info.collect()["gpu"] == {"name": None, "because": "driver is broken"}


@pytest.mark.slow
def test_settings_in_the_environment_are_told() -> None:
    code = "from numba_lamb.cli import info; import json; print(json.dumps(info.collect()))"
    output = run_python(
        code,
        NUMBA_NUM_THREADS="1",
        NUMBA_THREADING_LAYER="workqueue",
        NUMBA_LAMB_CACHE="0",
        NUMBA_DISABLE_CUDA="1",
    )
    told = json.loads(output)
    assert told["threads"]["count"] == told["threads"]["limit"] == 1
    assert told["threads"]["layer"] == "workqueue"
    assert told["kernel_cache"] == {"folder": None, "because": "turned off by NUMBA_LAMB_CACHE=0"}
    assert "disabled" in told["gpu"]["because"]
