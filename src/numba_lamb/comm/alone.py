"""Collectives of one process."""

from numba_lamb.comm.interface import Array, Wait


class Alone:
    """A single rank: what it tells is what it hears."""

    rank, size, sharing = 0, 1, 1

    def all_gather(self, out: Array, values: Array) -> Wait:
        """Copy `values` into `out`."""
        out.reshape(-1)[:] = values.reshape(-1)
        return _done

    all_to_all = all_gather


def _done() -> None:
    pass
