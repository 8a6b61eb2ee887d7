"""Where arrays and tensors have their values, in the memory of the CPU or of a GPU."""
