"""What a certified defence runs on the edge, as one graph: from picture and coins to what leaves."""

import copy

import torch
from torch import Tensor, nn


class Columns(nn.Module):
    """Some answers of a classifier: features ``(N, C, h, w)`` -> logits ``(N, S)``."""

    def __init__(self, classifier: nn.Module, columns: list[int]) -> None:
        super().__init__()
        self.classifier, self.columns = classifier, columns

    def forward(self, features: Tensor) -> Tensor:
        """Those columns."""
        answers: Tensor = self.classifier(features)
        return answers[:, self.columns]


def _uniform(noise: Tensor) -> Tensor:
    """Standard normal numbers as coins; float32, since ONNX Runtime has no error function in float64."""
    return torch.special.ndtr(noise).double()


class PlacePass(nn.Module):
    """Encoder, head, channel, and a row: what has to leave, without the pool.

    Args:
        answer: pictures -> logits of the needed attributes.
        channel: from these and coins to messages.
        rows: R, features in the pool for each message.
    """

    outputs = ("place",)

    def __init__(self, answer: nn.Module, channel: nn.Module, rows: int) -> None:
        super().__init__()
        self.answer, self.channel, self.rows = copy.deepcopy(answer), channel, rows

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Pictures ``(N, 3, S, S)`` in [0, 1], one at a time on a device; standard normal ``(N, 2)``.

        Returns:
            Places in the pool, ``message * R + row``, int64 ``(N,)``.
        """
        coins, z = _uniform(noise).unbind(1)
        messages: Tensor = self.channel(self.answer(images), coins)
        return messages * self.rows + (z * self.rows).long().clamp(max=self.rows - 1)


class PoolPass(nn.Module):
    """`PlacePass`, and a look-up.

    Args:
        answer: pictures -> logits of the needed attributes.
        channel: from these and coins to messages.
        pool: features ``(M, R, C, h, w)``.
    """

    outputs = ("features", "place")

    def __init__(self, answer: nn.Module, channel: nn.Module, pool: Tensor) -> None:
        super().__init__()
        self.place = PlacePass(answer, channel, pool.shape[1])
        self.pool = nn.Buffer(pool.flatten(0, 1))

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The features ``(N, C, h, w)`` and their places, see `PlacePass`."""
        place = self.place(images, noise)
        return self.pool[place], place


class MessagePass(nn.Module):
    """Encoder, head, channel, and a net that makes the feature of codeword and prior face.

    Args:
        answer: pictures -> logits of the needed attributes.
        channel: from these and coins to messages.
        codewords: ``(M, S)``.
        render: latents ``(N, Z)`` -> features of prior faces.
        net: features and codewords -> features.
    """

    def __init__(
        self, answer: nn.Module, channel: nn.Module, codewords: Tensor, render: nn.Module, net: nn.Module
    ) -> None:
        super().__init__()
        self.answer, self.channel, self.net = copy.deepcopy(answer), channel, net
        self.render, self.codewords = render, nn.Buffer(codewords.float())

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Pictures ``(N, 3, S, S)`` in [0, 1], one at a time on a device; standard normal ``(N, 1 + Z)``."""
        messages = self.channel(self.answer(images), _uniform(noise[:, 0]))
        made: Tensor = self.net(self.render(noise[:, 1:]), self.codewords[messages])
        return made
