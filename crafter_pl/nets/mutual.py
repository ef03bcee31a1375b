"""A critic that estimates how much features tell of pictures."""

from torch import Tensor, nn
from torch.nn import functional as F


class MutualInformation(nn.Module):
    """Jensen-Shannon estimate of the mutual information of feature and picture, given a label.

    The critic's score is the scaled inner product of an embedding of the picture with one of feature and
    label: a net on all three side by side stayed at the estimate of independence. So the label explains its
    own share of the picture whatever the feature is, and the estimate, that of (feature, label) and picture,
    rises by what the feature tells beyond the label alone.

    Args:
        channels: of the features, ``(N, channels, h, w)``.
        labels: how many values the given label has.
        width: of the convolutions.
    """

    def __init__(self, channels: int, labels: int, width: int = 32) -> None:
        super().__init__()
        self.see = _trunk(3, width)
        self.read = _trunk(channels, width)
        self.given = nn.Embedding(labels, 4 * width)

    def forward(self, features: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Estimate over a batch, scalar, at most 0 (that of independence is ``-2 ln 2``).

        Args:
            features: ``(N, C, h, w)``.
            images: ``(N, 3, S, S)``, those of the features; every picture is also set against the feature of
                its neighbour in the batch.
            labels: int64 ``(N,)``.
        """
        seen, read, given = self.see(images), self.read(features), self.given(labels)

        def score(pictures: Tensor) -> Tensor:
            return (pictures * (read + given)).sum(1) / read.shape[1] ** 0.5

        return -F.softplus(-score(seen)).mean() - F.softplus(score(seen.roll(1, 0))).mean()


def _trunk(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 4 * width),
    )
