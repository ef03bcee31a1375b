"""Inception v3 as a measure of pictures: its pooled features."""

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.nets.weights import imagenet_weights, load_trunk


class InceptionFeatures(nn.Module):
    """The pooled features of torchvision's inception_v3: ``(N, 3, H, W)`` in [0, 1] -> ``(N, 2048)``.

    Frozen, in eval mode. Building it draws no random numbers.

    Args:
        weights: a state-dict file of the whole torchvision model, or ``download`` (ImageNet). Its head and
            its auxiliary head are not read.

    Raises:
        UserError: the weights are missing, unreadable or of another net.
    """

    num_features = 2048

    def __init__(self, weights: str) -> None:
        super().__init__()
        with torch.device("meta"):
            net = torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=False)
        net.dropout, net.fc = nn.Identity(), nn.Identity()
        load_trunk(
            net,
            imagenet_weights(weights, "inception_v3", "inception"),
            ("AuxLogits.", "fc."),
            f"inception: {weights!r} does not fit torchvision's inception_v3",
            advice="; give the state dict of that net (--model.init_args.inception PATH)",
            assign=True,
        )
        self.net = net.float()
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features of each picture, brought to 299x299 and [-1, 1] as that net wants them."""
        images = F.interpolate(
            images.float(), size=(299, 299), mode="bilinear", align_corners=False, antialias=True
        )
        return self.net(images * 2 - 1)
