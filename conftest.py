"""What pytest leaves out where PyTorch is not installed: what imports it at once."""

import importlib.util

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None
collect_ignore = [] if HAS_TORCH else ["src/numba_lamb/torch", "tests/torch_helpers.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the README, which shows PyTorch's optimizers too."""
    for item in items:
        if not HAS_TORCH and item.path.name == "README.md":
            item.add_marker(pytest.mark.skip(reason="the peers extra is not installed"))
