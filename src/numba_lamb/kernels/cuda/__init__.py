"""The kernels as numba-cuda compiles them for a GPU."""
