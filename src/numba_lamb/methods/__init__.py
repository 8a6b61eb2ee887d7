"""What each optimizer is, as data: options, state, kernels, statistics, and how options become columns."""
