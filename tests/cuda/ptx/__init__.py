"""Compile CUDA kernels to PTX, and run and inspect it, on a machine without a GPU or a driver.

`ptx.compile` makes PTX, cubins and reports of them; `ptx.interpreter` runs PTX with NumPy.
"""
