"""All methods by the name of their class."""

from numba_lamb.methods.lamb import LAMB
from numba_lamb.methods.lans import LANS
from numba_lamb.methods.lars import LARS, MOMENTUM
from numba_lamb.methods.options import Method

METHODS: dict[str, Method] = {method.name: method for method in (LAMB, LANS, LARS, MOMENTUM)}
UNITS = {one.kernel: one.unit for method in METHODS.values() for one in method.passes}
"""What each kernel of a step runs over, by its name."""
