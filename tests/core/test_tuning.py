"""What suits a processor changes no bit, and can be said otherwise."""

from pathlib import Path

import pytest

from numba_lamb._tuning import prefetch_distance
from tests.helpers import run_python

STEPS = """
import hashlib
import numpy as np
import numba_lamb as nl
from numba_lamb._tuning import PREFETCH_BYTES
digest = hashlib.sha256()
for make in (lambda w: nl.Lamb(w, 0.1, weight_decay=0.1, max_grad_norm=1.0), lambda w: nl.Momentum(w, 0.1, 0.9)):
    rng = np.random.default_rng(1)
    params = [rng.standard_normal(size).astype(np.float32) for size in (9000, 130, 1)]
    opt = make(params)
    for _ in range(3):
        opt.step([rng.standard_normal(w.shape).astype(np.float32) for w in params])
    for w in params:
        digest.update(w.tobytes())
print(PREFETCH_BYTES, digest.hexdigest())
"""


@pytest.mark.slow
def test_no_distance_changes_a_bit_and_each_has_code_of_its_own(tmp_path: Path) -> None:
    told = [
        run_python(STEPS, NUMBA_LAMB_PREFETCH=distance, NUMBA_CACHE_DIR=str(tmp_path)).split()
        for distance in ("0", "4096", "0")
    ]
    assert [distance for distance, _ in told] == ["0", "4096", "0"]
    assert len({digest for _, digest in told}) == 1


def test_the_processor_decides_unless_it_is_said() -> None:
    assert prefetch_distance(None, "znver4") == 0
    assert prefetch_distance(None, "icelake-server") == prefetch_distance(None, "generic") == 4096
    assert prefetch_distance("512", "znver4") == 512
    for wrong in ("-64", "100", "much", "", "9999999999"):
        with pytest.raises(ValueError, match=f"must be a multiple of 64 from 0 to 1048576, got '{wrong}'"):
            prefetch_distance(wrong, "znver4")
