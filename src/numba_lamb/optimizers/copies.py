"""Copied: an optimizer copied and pickled with its parameters."""

from typing import Any

from numba_lamb.step_lock import step_lock


class Copied:
    """What `copy` and `pickle` do with an optimizer."""

    def __copy__(self: Any) -> Any:
        raise TypeError(
            "an optimizer cannot share its state with a copy; use copy.deepcopy, which copies the parameters too, "
            "or state_dict and load_state_dict"
        )

    def __getstate__(self: Any) -> dict[str, Any]:
        self._backend.check_copyable()
        derived = ("_buckets", "_placement", "_gradients", "layout", "_arrays", "_lock", "_plan")
        kept = {key: value for key, value in vars(self).items() if key not in derived}
        return {**kept, "_saved": [bucket.saved() for bucket in self._buckets]}

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        # Addresses are those of the original's arrays: everything that holds them is made anew.
        saved = state.pop("_saved")
        vars(self).update(state, _buckets=[], _lock=step_lock())
        self._place([parameter.found_again() for parameter in self._parameters])
        for bucket, values in zip(self._buckets, saved, strict=True):
            bucket.restore(values)
