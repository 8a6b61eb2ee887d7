"""The kernels as Numba compiles them for the CPU, and what starts them."""
