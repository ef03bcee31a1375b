"""What makes the tests quick and proves nothing: tiny stages are loaded a thousand times."""

import copy
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crafter_pl.data import datamodule
from crafter_pl.stages import task

BLOCK = 65_521  # a prime: no two filters of a layer are the same


@functools.cache  # once is enough
def quick() -> None:
    """In this process, what costs much and proves nothing costs little."""
    torch.set_num_threads(1)
    nn.init.kaiming_uniform_ = _repeated(
        nn.init.kaiming_uniform_, lambda block, std: block.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std)
    )
    nn.init.kaiming_normal_ = _repeated(nn.init.kaiming_normal_, lambda block, std: block.normal_(0, std))
    normal = nn.init.normal_
    nn.init.normal_ = lambda tensor, mean=0.0, std=1.0, generator=None: (
        normal(tensor, mean, std, generator)
        if tensor.numel() <= BLOCK or generator is not None
        else _repeat(tensor.new_empty(BLOCK).normal_(mean, std), tensor)
    )
    draw = functools.lru_cache(8)(datamodule.synthetic_faces)
    datamodule.synthetic_faces = lambda *settings: copy.deepcopy(draw(*settings))
    task.measure_frame = _once(task.measure_frame)


def _once(measure: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    """What ``measure`` says of the same pictures, measured once."""
    known: dict[bytes, object] = {}

    def go(images: Tensor) -> object:
        key = images.numpy().tobytes()
        if key not in known:
            known[key] = measure(images)
        return known[key]

    return go


def _repeated(init: Callable[..., Tensor], fill: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """As ``init``; but numbers of a large tensor repeat, since a checkpoint's soon take their place.

    ResNet18 draws 22 million of them, in most of the time that it takes to load it.
    """

    def go(
        tensor: Tensor,
        a: float = 0,
        mode: str = "fan_in",
        nonlinearity: str = "leaky_relu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        count = tensor.numel()
        if count <= BLOCK or generator is not None:
            return init(tensor, a, mode, nonlinearity, generator)
        fan = tensor[0].numel() if mode == "fan_in" else count // tensor.shape[1]
        std = nn.init.calculate_gain(nonlinearity, a) / math.sqrt(fan)
        return _repeat(fill(tensor.new_empty(BLOCK), std), tensor)

    return go


@torch.no_grad()
def _repeat(block: Tensor, tensor: Tensor) -> Tensor:
    for part in tensor.view(-1).split(BLOCK):
        part.copy_(block[: len(part)])
    return tensor
