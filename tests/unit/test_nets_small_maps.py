import copy

import pytest
import torch
from closeness import near
from torch import nn

from crafter_pl.nets import SplitClassifier
from crafter_pl.nets.fold import FrozenConv
from crafter_pl.nets.small_maps import SmallMapConv2d, quick_on_small_maps, reached

# kernel, stride, padding, the map, and how many of the weights meet it (None: no single output)
CASES = [
    (3, 1, 1, (1, 1), 1),
    (3, 2, 1, (2, 2), 4),
    (3, 2, 1, (1, 2), 2),
    (5, 4, 2, (3, 2), 6),
    (7, 2, 3, (1, 1), 1),
    (3, 4, 1, (3, 3), 4),  # the last row and column are out of reach
    (3, 1, 1, (2, 2), None),
    (3, 1, 1, (1, 2), None),
    (3, 2, 1, (3, 3), None),
    (3, 1, 0, (3, 3), None),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "size", "met"), CASES)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_same_function_with_the_same_derivatives(kernel, stride, padding, size, met, groups):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, kernel, stride, padding, groups=groups).double()
    quick = copy.deepcopy(plain)
    quick_on_small_maps(quick)
    assert type(quick) is SmallMapConv2d
    frozen = FrozenConv(copy.deepcopy(plain).requires_grad_(False))
    seen = reached(plain, size)
    assert met == (None if seen is None else plain.weight[seen][0, 0].numel())
    x = torch.randn(2, 4, *size, dtype=torch.double, requires_grad=True)
    found = []
    for net, weights in (
        (plain, [plain.weight, plain.bias]),
        (quick, [quick.weight, quick.bias]),
        (frozen, []),
    ):
        y = net(x)
        slope, *of_weights = torch.autograd.grad(y.square().sum(), [x, *weights], create_graph=True)
        (bend,) = torch.autograd.grad(slope.square().sum(), x)
        found.append((y, slope, bend, *of_weights))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=False):
            assert near(a, b)


def test_others_convolve_as_torch_does():
    for conv in (
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2),
        nn.ConvTranspose2d(4, 6, 3, padding=1),
    ):
        assert reached(conv, (2, 2)) is None


def test_resnet18_is_torchvisions_at_every_size():
    torch.manual_seed(0)
    net = SplitClassifier("resnet18", "layer1", 2).double().eval()
    plain = copy.deepcopy(net)
    quick = [module for module in plain.modules() if type(module) is SmallMapConv2d]
    assert len(quick) == 20
    for module in quick:
        module.__class__ = nn.Conv2d
    for size in (8, 32, 64):
        images = torch.rand(2, 3, size, size, dtype=torch.float64)
        assert near(net(images), plain(images))
