"""The crafting generator's net: a feature and a condition in, a crafted feature out, in one pass."""

from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.answers import Answers, MultiLabel


class _Block(nn.Module):
    """Two convolutions added to their input; the condition scales and shifts what is between them."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width)
        )
        self.modulation = nn.Linear(condition, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``(N, width, h, w)`` and ``(N, condition)`` -> ``(N, width, h, w)``."""
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        return x + self.second(F.silu(self.first(x) * (1 + scale) + shift))


class CraftingNet(nn.Module):
    """A small U-Net over the feature map, modulated at every block by the condition (beyond the paper).

    Nothing in it looks at other samples of a batch. Untrained it returns its input.

    Args:
        feature_shape: ``(C, h, w)``; h and w are divided by 4 on the way down, so at least 4.
        condition: numbers of the condition, ``K``.
        width: channels at full resolution, a multiple of 8; twice and four times as many further down.
    """

    def __init__(self, feature_shape: tuple[int, int, int], condition: int, width: int = 64) -> None:
        super().__init__()
        channels, widths = feature_shape[0], (width, 2 * width, 4 * width)
        self.embed = nn.Sequential(nn.Linear(condition, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(_Block(w, 128) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1) for w in widths[:-1])
        self.grow = nn.ModuleList(nn.Conv2d(2 * w, w, 3, padding=1) for w in widths[:-1])
        self.up = nn.ModuleList(_Block(w, 128) for w in widths)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)
        )
        for parameter in self.leave[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` and conditions ``(N, K)`` -> crafted features ``(N, C, h, w)``."""
        embedded = self.embed(condition)
        x = self.enter(features)
        passed = []
        for block, shrink in zip(self.down[:-1], self.shrink, strict=True):
            passed.append(block(x, embedded))
            x = shrink(passed[-1])
        x = self.up[-1](self.down[-1](x, embedded), embedded)
        for level in reversed(range(len(passed))):
            x = F.interpolate(x, size=passed[level].shape[2:], mode="nearest")
            x = self.up[level](self.grow[level](x) + passed[level], embedded)
        return features + self.leave(x)


class CraftingPass(nn.Module):
    """All that the crafting generator does at the edge, from picture and noise to the crafted feature.

    Args:
        net: the `CraftingNet`.
        encoder: pictures ``(N, 3, S, S)`` -> features ``(N, C, h, w)``.
        classifier: features -> the cloud's outputs ``(N, A)``.
        generator: of the prior; noise ``(N, Z)`` -> pictures. None: the net sees the feature and the noise
            themselves, not the feature of the prior's face and the answers.
        answers: what the outputs mean; None: attributes.
    """

    def __init__(
        self,
        net: CraftingNet,
        encoder: nn.Module,
        classifier: nn.Module,
        generator: nn.Module | None,
        answers: Answers | None = None,
    ) -> None:
        super().__init__()
        self.net, self.encoder, self.classifier, self.generator = net, encoder, classifier, generator
        self.answers = answers or MultiLabel()

    def clean(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unprotected features ``(N, C, h, w)`` and what the cloud's answers for them say, ``(N, A)``."""
        features = self.encoder(images)
        return features, self.answers.statistic(self.classifier(features))

    def seen(self, features: Tensor, answers: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the net gets: x ``(N, C, h, w)`` and the condition ``(N, K)``."""
        if self.generator is None:
            return features, noise
        return self.encoder(self.generator(noise)), answers

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Pictures ``(N, 3, S, S)`` in [0, 1] and noise ``(N, Z)`` -> crafted features ``(N, C, h, w)``."""
        return self.net(*self.seen(*self.clean(images), noise))
