"""What is around a step: PyTorch's hooks and profilers, and its compiler."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch._C._autograd import _profiler_enabled
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_F = TypeVar("_F", bound=Callable[..., Any])


def watched(step: _F) -> _F:
    """Have hooks and profilers see a step, as PyTorch does for every optimizer.

    What PyTorch wraps around a step takes as long as a small step itself, so it is gone through only where
    somebody is there to see it.
    """
    seen: Any = torch.optim.Optimizer.profile_hook_step(step)

    @wraps(step)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        # PyTorch wraps the step that a subclass has of its own, and calls hooks there.
        if type(self).step is wrapper and (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or _profiler_enabled()
        ):
            return seen(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    hooked: Any = wrapper
    # So PyTorch knows that nothing is to be wrapped.
    hooked.hooked = True
    return hooked  # type: ignore[no-any-return]


def uncompiled(function: _F) -> _F:
    """Keep torch.compile out of `function`."""
    wrapped: _F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return wrapped
