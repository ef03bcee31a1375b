"""Batch norm over the batches of all processes, so that two processes train as one."""

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of the global batch.

    Equal batches on all processes give what one process gives for all of them together, gradients included.
    torch's own `SyncBatchNorm` does the same on GPUs alone; this one also runs on the CPU (gloo). The
    alternative, frozen statistics, would tie a decoder that is retrained to features that it no longer sees.
    One collective a layer and direction, of twice as many numbers as there are channels.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``(N, C, H, W)``; with one process, or in eval mode, plain batch norm."""
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if not self.training or world == 1:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        var, mean = (part.double() for part in torch.var_mean(x, dim=(0, 2, 3), correction=0))
        mean, square = (all_reduce(torch.cat([mean, var + mean.square()])) / world).chunk(2)
        # In float64: a difference of near equals.
        var, mean = (square - mean.square()).to(x.dtype), mean.to(x.dtype)
        if (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        ):
            count = world * x.numel() / x.shape[1]
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), share)
            self.running_var.lerp_(var.detach() * count / max(count - 1, 1), share)
        scale = torch.rsqrt(var + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (x * scale[:, None, None] + shift[:, None, None]).to(input.dtype)


def synchronised(net: nn.Module) -> nn.Module:
    """``net`` with every `BatchNorm2d` in it replaced, in place, by one over all processes; same state."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d  # which has the same state
    return net
