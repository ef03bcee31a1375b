"""Quality of pictures: a kernel distance that needs no downloaded weights, the KID, an error as a share."""

import warnings

import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance


class RandomFeatures(nn.Module):
    """Fixed random convolutional features: means and deviations at three scales.

    Pictures ``(N, 3, S, S)`` in [0, 1] -> ``(N, 192)``.

    Inception's weights are a download; a kernel distance on random convolutional features ranks generators of
    one data set well enough to watch training, needs no network, and is the same on every machine. It is
    *not* comparable to a published KID.
    """

    num_features = 192

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(20240226)
        for scale in range(3):
            weight = torch.randn(32, 3, 5, 5, generator=generator)
            self.register_buffer(f"weight{scale}", weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features of each picture."""
        x = images.float() * 2 - 1
        parts = []
        for scale in range(3):
            y = torch.relu(nn.functional.conv2d(x, getattr(self, f"weight{scale}"), padding=2))
            parts += [y.mean((2, 3)), y.std((2, 3))]
            x = nn.functional.avg_pool2d(x, 2)
        return torch.cat(parts, 1)


def kernel_distance(fake: Tensor, real: Tensor) -> Tensor:
    """Kernel distance of two sets of pictures on random features (`RandomFeatures`); lower is closer.

    Args:
        fake: ``(N, 3, S, S)`` in [0, 1].
        real: ``(M, 3, S, S)`` in [0, 1].

    Raises:
        ValueError: a set has fewer than two pictures.
    """
    return kid(RandomFeatures().to(fake.device), fake, real, subsets=10, batch_size=max(len(fake), len(real)))


def kid(features: nn.Module, fake: Tensor, real: Tensor, subsets: int = 100, batch_size: int = 64) -> Tensor:
    """Torchmetrics' KID of two sets of pictures, the mean over random subsets; lower is closer.

    The caller's random numbers are untouched, and no process waits for another.

    Args:
        features: pictures ``(n, 3, S, S)`` in [0, 1] -> ``(n, D)``, on the pictures' device; with
            `crafter_pl.nets.InceptionFeatures` this is KID on torchvision's ImageNet weights.
        fake: ``(N, 3, S, S)`` in [0, 1].
        real: ``(M, 3, S, S)`` in [0, 1].
        subsets: how many; each is half of the smaller set.
        batch_size: pictures that ``features`` gets at a time.

    Raises:
        ValueError: a set has fewer than two pictures.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its buffer: a few thousand rows at most
        metric = KernelInceptionDistance(
            feature=features,
            subsets=subsets,
            subset_size=max(min(len(fake), len(real)) // 2, 2),
            normalize=True,
            # Every process has all pictures (or is alone): gathering would count each more than once.
            sync_on_compute=False,
        ).to(fake.device)
    for images, is_real in ((real, True), (fake, False)):
        for part in images.float().split(batch_size):
            metric.update(part, real=is_real)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)  # not torch.manual_seed, which seeds the GPUs too
        mean, _ = metric.compute()
    return mean


def relative_error(decoded: Tensor, images: Tensor) -> Tensor:
    """Squared error of ``(N, 3, H, W)``, N above 1, over what the batch's mean picture would cost: >= 0."""
    spread = (images - images.mean(0)).square().mean()
    return (decoded - images).square().mean() / spread.clamp(min=1e-6)
