"""Steps on a GPU, over PyTorch's tensors; skipped where there is none."""

import numba_lamb as nl
from numba_lamb.cli.bench.profiles import PROFILES

OPTIONS = {"propagate": {"nonfinite": "propagate"}, "checked": {}, "clipped": {"max_grad_norm": 1.0}}
STEPS = 20


def cuda_torch():
    """Return PyTorch, or have asv skip the benchmark."""
    try:
        import torch
    except ImportError as error:
        raise NotImplementedError("PyTorch is not installed") from error
    if not torch.cuda.is_available():
        raise NotImplementedError("PyTorch sees no GPU")
    return torch


class Lamb:
    """Lamb with gradients that stay where they are; what is measured of it is below."""

    param_names = ("options", "profile")
    timeout = 300

    def setup(self, options, profile):
        self.torch = cuda_torch()
        shapes = PROFILES[profile]
        self.gradients = [self.torch.randn(shape, device="cuda") for shape in shapes]
        weights = [self.torch.randn(shape, device="cuda") for shape in shapes]
        self.optimizer = nl.Lamb(weights, 1e-5, weight_decay=0.01, **OPTIONS[options])
        self.optimizer.step(self.gradients)
        self.torch.cuda.synchronize()

    def teardown(self, options, profile):
        self.torch.cuda.synchronize()


class CudaSteps(Lamb):
    """So many steps queued one behind another that a step's time is the GPU's, or the host's if that is longer."""

    params = (list(OPTIONS), ["bert-base", "200-tiny"])

    def time_twenty_steps(self, options, profile):
        """Seconds of 20 steps."""
        for _ in range(STEPS):
            self.optimizer.step(self.gradients)
        self.torch.cuda.synchronize()


class CudaHost(Lamb):
    """What queueing a step costs the host."""

    params = (list(OPTIONS), ["200-tiny"])
    # So few in a sample that the GPU's queue never fills.
    number = STEPS
    warmup_time = 0

    def time_queueing(self, options, profile):
        """Seconds until a step is queued."""
        self.optimizer.step(self.gradients)
