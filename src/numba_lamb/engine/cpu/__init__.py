"""Steps on the CPU."""
