"""Pass: one kernel of a step, over chunks, layers or rows."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pass:
    """One kernel of a step.

    Attributes
    ----------
    kernel : str
        Its name, on every target.
    unit : {"chunk", "layer", "row"}
        What it runs over.
    when : str
        The flag of a bucket without which it has nothing to do; empty for always.
    writes : tuple of int
        The columns of chunk sums that it writes; the next pass over layers reads them.
    """

    kernel: str
    unit: Literal["chunk", "layer", "row"]
    when: str = ""
    writes: tuple[int, ...] = ()


DECAY_WEIGHTS = Pass("decay_weights", "chunk", when="shrinks")
ROW_MEANS = Pass("row_means", "row", when="has_rows")
