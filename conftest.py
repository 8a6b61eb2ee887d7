"""What pytest leaves out where an extra is not installed."""

import importlib.util

# The doctests of numba_lamb.torch import it, and it imports torch.
collect_ignore = [] if importlib.util.find_spec("torch") else ["src/numba_lamb/torch"]
