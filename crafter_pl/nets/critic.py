"""The Wasserstein critic: of the prior's training, and of the crafting."""

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """Wasserstein potential of an image: ``(N, 3, S, S)`` in [0, 1] -> ``(N,)``.

    The paper's: 5x5 stride-2 convolutions 64-128-256-512, instance norm, leaky ReLU 0.2, and a 4x4 head; for
    pictures under 64 pixels one convolution fewer, so that the head still sees 4x4. No layer mixes the
    samples of a batch.

    Args:
        image_size: S.
        width: channels of the first convolution (64 in the paper).
    """

    def __init__(self, image_size: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        cin, side = 3, image_size
        for depth in range(4 if image_size >= 64 else 3):
            cout = width * 2**depth
            layers.append(nn.Conv2d(cin, cout, 5, stride=2, padding=2))
            if depth:
                layers.append(nn.InstanceNorm2d(cout, affine=True))
            layers.append(nn.LeakyReLU(0.2))
            cin, side = cout, (side + 1) // 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(cin, 1, side))

    def forward(self, images: Tensor) -> Tensor:
        """Scores images; larger means more like the prior."""
        return self.layers(images * 2 - 1).flatten()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Mean squared excess of the critic's gradient norm over 1 between ``real`` and ``fake`` (WGAN-GP).

    Args:
        critic: images -> ``(N,)``.
        real: ``(N, 3, S, S)``.
        fake: ``(N, 3, S, S)``.
        mix: ``(N, 1, 1, 1)`` in [0, 1], the place of each sample between its two ends.

    Returns:
        Scalar; differentiable with respect to the critic's parameters (the gradient is with respect to its
        *inputs*, so this is correct under DDP too).
    """
    points = (mix * real + (1 - mix) * fake).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (grad.flatten(1).norm(dim=1) - 1).square().mean()
