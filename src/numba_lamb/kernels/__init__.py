"""Compiled loops, their tables, and how they are launched."""
