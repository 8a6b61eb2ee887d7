"""Settings that all tests share."""

from hypothesis import settings

# The first example of a test may compile a kernel, and the machine may be busy: no test is about time.
settings.register_profile("numba-lamb", deadline=None)
settings.load_profile("numba-lamb")
