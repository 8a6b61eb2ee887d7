"""What the interpreter raises."""


class PtxError(RuntimeError):
    """The PTX cannot be run: an instruction is unknown, or did something that a GPU would not allow."""


class DeadlockError(PtxError):
    """Every thread that still lives waits for another one."""


class StepLimitError(PtxError):
    """The launch took more steps than it was given."""


class LaneError(Exception):
    """Something went wrong in one lane of an instruction; `position` counts within the lanes that ran it."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position
