"""What a step costs PyTorch users: the optimizer around the kernels, beside PyTorch's own."""

TINY = [(8,)] * 200


class TorchSteps:
    """A step over 200 parameters of 8 values, gradients reused or new as after ``zero_grad``."""

    params = (["lamb", "adamw-fused"], ["reused", "fresh"])
    param_names = ("optimizer", "gradients")
    number = 1
    warmup_time = 0

    def setup(self, optimizer, gradients):
        try:
            import torch
        except ImportError:
            raise NotImplementedError("torch is not installed") from None
        from numba_lamb.torch import Lamb

        torch.set_num_threads(1)
        self.params_ = [torch.nn.Parameter(torch.ones(shape)) for shape in TINY]
        for param in self.params_:
            param.grad = torch.ones_like(param)
        makers = {"lamb": Lamb, "adamw-fused": lambda params: torch.optim.AdamW(params, fused=True)}
        self.optimizer = makers[optimizer](self.params_)
        self.optimizer.step()
        if gradients == "fresh":
            for param in self.params_:
                param.grad = torch.ones_like(param)

    def time_step(self, optimizer, gradients):
        """Seconds of a step."""
        self.optimizer.step()
