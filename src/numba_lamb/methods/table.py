"""All methods by the name of their class."""

from numba_lamb.methods.lamb import LAMB
from numba_lamb.methods.lars import LARS, MOMENTUM
from numba_lamb.methods.options import Method

METHODS: dict[str, Method] = {method.name: method for method in (LAMB, LARS, MOMENTUM)}
