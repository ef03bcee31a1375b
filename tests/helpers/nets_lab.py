"""Nets and pictures for the tests of nets."""

import torch
from torch import nn

SIZES = (32, 64, 112, 128)


def calibrated(net, *shape):
    """`net` in eval mode with batch-norm statistics and scales of its own, not the initial zeros and ones."""
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            with torch.no_grad():
                module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.bias.copy_(0.3 * torch.randn(module.num_features, generator=generator))
    return net.eval()


def pictures(count, size, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
