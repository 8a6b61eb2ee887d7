"""The optimizers: checks, state, and the order of a step."""
