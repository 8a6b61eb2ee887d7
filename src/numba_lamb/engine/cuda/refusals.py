"""Why a GPU's steps are refused: by the device, and while they are captured."""

from numba_lamb.kernels.cuda import fields

_REASONS = {
    fields.ENDED: "a step was taken past capture_steps, for which no rates are tabulated",
    fields.BAD_RATE: (
        "a rate in device memory was negative, not finite, or more than the parameters' dtype can hold"
    ),
    fields.STALE: "a graph was replayed that was captured before a parameter group was added or Lars took over",
    fields.ELSEWHERE: "another rank refused the step",
}


def reasons_of(bits: int) -> list[str]:
    """Return the reasons in a REFUSAL, or in all of them so far."""
    return [reason for byte, reason in _REASONS.items() if bits >> 8 * byte & 1]


def refuse_to_capture(capturing: bool, what: str) -> None:
    """Raise if a step is captured that `what` was changed for."""
    if capturing:
        raise RuntimeError(
            f"{what} was changed, for which kernels or tables are still to be made ready; "
            "take one step outside of capture first"
        )
