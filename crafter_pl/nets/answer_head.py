"""A small net on the edge that answers what the cloud would: some attributes, from the feature."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

from crafter_pl.errors import UserError


class AnswerHead(nn.Module):
    """Two residual blocks, each of which halves the map, and a linear layer on its mean.

    Args:
        channels: of the feature.
        answers: how many attributes.
        width: channels after the first block; twice as many after the second.
    """

    def __init__(self, channels: int, answers: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_halving(channels, width), _halving(width, 2 * width))
        self.leave = nn.Linear(2 * width, answers)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> logits ``(N, A)``."""
        made: Tensor = self.leave(self.body(features).mean((2, 3)))
        return made


def _halving(channels: int, width: int) -> BasicBlock:
    beside = nn.Sequential(nn.Conv2d(channels, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))
    return BasicBlock(channels, width, stride=2, downsample=beside)


def multiply_adds(net: nn.Module, *shape: int) -> int:
    """Of one pass over a single input of this shape; convolutions and products of matrices alone count."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *shape, device=next(net.parameters()).device))
    return int(counter.get_total_flops()) // 2


def fitting_head(
    encoder: nn.Module, size: int, shape: tuple[int, int, int], answers: int, work: float
) -> AnswerHead:
    """The widest head with which encoder and head together do ``work`` times the encoder's multiply-adds.

    Args:
        encoder: pictures -> features.
        size: side of the pictures.
        shape: of the features, ``(C, h, w)``.
        answers: how many attributes.
        work: above 1.

    Raises:
        UserError: there is no room for any.
    """
    edge = multiply_adds(encoder, 3, size, size)
    found, width = None, 4
    while multiply_adds(head := AnswerHead(shape[0], answers, width).eval(), *shape) <= (work - 1) * edge:
        found, width = head, width + 4
    if found is None:
        raise UserError(
            f"work {work:g} leaves no room for an answer head beside the encoder's {edge:,} multiply-adds: "
            "give more (--model.init_args.work), or null for the whole classifier"
        )
    return found.train()
