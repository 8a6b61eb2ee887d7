"""Steps on a GPU, for which the host never waits."""
