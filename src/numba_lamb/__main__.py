"""``python -m numba_lamb``: the ``numba-lamb`` command."""

import sys

from numba_lamb.cli import main

if __name__ == "__main__":
    sys.exit(main())
