"""Convolutions of maps as small as their kernel: the same function without its products with the padding."""

from collections.abc import Sequence

from torch import Tensor, nn


def reached(conv: nn.Conv2d | nn.ConvTranspose2d, size: Sequence[int]) -> tuple[slice, ...] | None:
    """The part of a zero-padded convolution's weight that meets a map where it gives one output, not zeros.

    Of the nine weights of ResNet18's last convolutions one does, for pictures of 32 pixels.

    Args:
        conv: any.
        size: ``(h, w)`` of the map.

    Returns:
        It indexes the weight, which then needs no padding. None: it gives several outputs, or has no padding.
    """
    if conv.transposed or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    sides = zip(size, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    places = [slice(None), slice(None)]
    for side, kernel, stride, padding, dilation in sides:
        if padding < 1 or dilation > 1 or not 0 <= side + 2 * padding - kernel < stride:
            return None
        places.append(slice(padding, padding + side))
    return tuple(places)


class SmallMapConv2d(nn.Conv2d):
    """A `torch.nn.Conv2d` that is quick on maps as small as its kernel (`reached`)."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, h, w)`` -> ``(N, C', h', w')``."""
        seen = reached(self, x.shape[-2:])
        if seen is None:
            return super().forward(x)
        return nn.functional.conv2d(x, self.weight[seen], self.bias, self.stride, groups=self.groups)


def quick_on_small_maps(net: nn.Module) -> None:
    """Makes every `torch.nn.Conv2d` in a net a `SmallMapConv2d`, in place; its weights stay what they are."""
    for module in net.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = SmallMapConv2d
