"""What pytest leaves out where PyTorch is not installed: the folders whose files import it at once."""

import importlib.util
from pathlib import Path

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None
ROOT = Path(__file__).parent
NEED_TORCH = [
    ROOT / "src/numba_lamb/torch",
    *(ROOT / "tests" / name for name in ("integrations", "peers", "torch")),
]


class Absent(pytest.Directory):
    """A folder that is reported as skipped."""

    def collect(self) -> list[pytest.Item]:
        """Say why nothing is collected."""
        pytest.skip("the peers extra is not installed")


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Skip the folders that need PyTorch where it is missing."""
    return Absent.from_parent(parent, path=path) if path in NEED_TORCH and not HAS_TORCH else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the README, which shows PyTorch's optimizers too."""
    for item in items:
        if not HAS_TORCH and item.path.name == "README.md":
            item.add_marker(pytest.mark.skip(reason="the peers extra is not installed"))
