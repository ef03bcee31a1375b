"""Inception v3 as a measure of pictures: its pooled features."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.errors import UserError
from crafter_pl.nets.weights import imagenet_weights


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
        state = imagenet_weights(weights, "inception_v3", "inception")
        kept = {key: value for key, value in state.items() if not key.startswith(("AuxLogits.", "fc."))}
        try:
            missing, unknown = net.load_state_dict(kept, strict=False, assign=True)
        except RuntimeError as error:
            why = str(error).splitlines()[-1].strip()
            raise UserError(
                f"inception: {weights!r} does not fit torchvision's inception_v3: {why}"
            ) from error
        if missing or unknown:
            raise UserError(
                f"inception: {weights!r} does not fit torchvision's inception_v3: {len(missing)} tensors are "
                f"missing and {len(unknown)} unknown ({', '.join([*missing, *unknown][:3])}); give the state "
                "dict of that net (--model.init_args.inception PATH)"
            )
        self.net = net.float()
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features of each picture, brought to 299x299 and [-1, 1] as that net wants them."""
        size = (299, 299)
        images = F.interpolate(
            images.float(), size=size, mode="bilinear", align_corners=False, antialias=True
        )
        features: Tensor = self.net(images * 2 - 1)
        return features
