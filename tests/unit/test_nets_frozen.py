import copy
from collections import Counter

import pytest
import torch
from closeness import near
from nets_lab import calibrated
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from crafter_pl.crafting.curvature import Curvature
from crafter_pl.nets import AmortizerNet, Generator, SplitClassifier, fold_batchnorm, freeze
from crafter_pl.nets.fold import FrozenConv

# Folding


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: SplitClassifier("resnet18", "layer1", 2).encoder_module(), (3, 32, 32)),
        (lambda: SplitClassifier("vgg16_bn", "pool2", 2).encoder_module(), (3, 32, 32)),
        (lambda: Generator("G1", 6, 32, 8), (6,)),
        (lambda: AmortizerNet((4, 8, 8), 6, 8), (4, 8, 8)),
    ],
    ids=["resnet18", "vgg16_bn", "G1", "amortizer"],
)
def test_folded_net_is_the_same_function(net, shape):
    torch.manual_seed(0)
    original = calibrated(net()).double()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    folded = fold_batchnorm(original)
    x = torch.rand(4, *shape, dtype=torch.float64)
    with torch.no_grad():
        assert near(folded(x), original(x))
        original.train()
        assert not torch.allclose(folded.train()(x), original(x), rtol=1e-2)  # the copy learns no statistics
    assert not any(p.requires_grad for p in folded.parameters())
    assert any(p.requires_grad for p in original.parameters())

    def norms(n):
        return sum(isinstance(m, nn.BatchNorm2d) for m in n.modules())

    # What is left comes after no convolution: the generator's first, after its linear layer.
    assert norms(folded) == int(isinstance(original, Generator)) and norms(original) > norms(folded)
    original.eval()
    for name, value in before.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, original.state_dict()[name]), name


def test_fold_leaves_a_convolution_whose_output_is_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    torch.manual_seed(0)
    net = calibrated(Twice()).double()
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    assert near(fold_batchnorm(net)(x), net(x))


# Frozen convolutions


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, 3, padding=1, bias=False),
    nn.Conv2d(4, 6, 7, stride=2, padding=3),
    nn.Conv2d(4, 6, 3, stride=(3, 2), padding=(0, 2)),
    nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
    nn.ConvTranspose2d(4, 6, 5, stride=2, padding=2, output_padding=1),
    nn.ConvTranspose2d(4, 6, 3, stride=3, padding=1, output_padding=2, groups=2, bias=False),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=repr)
@pytest.mark.parametrize("side", [9, 10, 11])
def test_a_frozen_convolution_has_the_same_value_and_derivatives(conv, side):
    torch.manual_seed(0)
    plain = copy.deepcopy(conv).double().requires_grad_(False)
    frozen = FrozenConv(copy.deepcopy(plain))
    x = torch.randn(2, 4, side, side + 1, dtype=torch.double, requires_grad=True)
    found = []
    for net in (plain, frozen):
        y = net(x)
        w, u = torch.ones_like(y).cumsum(-1), torch.ones_like(x).cumsum(-2)
        (slope,) = torch.autograd.grad(net(x).square().mul(w).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.mul(u).sum(), x)  # of second order, through both
        found.append((y, slope, bend))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradgradcheck(frozen, (x[:1].detach().requires_grad_(),), fast_mode=True)
    with torch.no_grad():
        assert near(frozen(x), plain(x))


def test_a_product_with_a_frozen_nets_jacobian_costs_a_forward_pass():
    """By PyTorch's own double backward every convolution computes a gradient for its weight besides."""
    torch.manual_seed(0)
    net = nn.Sequential(Generator("G1", 6, 32, 8), SplitClassifier("resnet18", "layer1", 2).encoder_module())
    net, z = net.double(), torch.randn(2, 6, dtype=torch.float64)

    def convolutions(frozen):
        seen = Counter()

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                seen[func._overloadpacket] += 1
                return func(*args, **(kwargs or {}))

        curvature = Curvature(frozen, frozen(z), z, 0.0, 1.0)
        curvature.forward(z)
        with Count():
            product = curvature.forward(z)
        return sum(n for name, n in seen.items() if "convolution" in str(name)), product

    count = sum(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in net.modules())
    plain, expected = convolutions(fold_batchnorm(net))
    frozen, product = convolutions(freeze(net))
    assert (plain, frozen) == (2 * count, count)
    assert near(product, expected)


def test_freezing_turns_a_widening_linear_layer_for_single_samples():
    """In memory alone; it stays so in copies, and in other precisions."""
    net = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    frozen, x = freeze(net), torch.randn(7, 5, dtype=torch.float64)
    assert torch.allclose(frozen(x), net(x), rtol=1e-13, atol=1e-13)
    for made in (frozen, copy.deepcopy(frozen).float()):
        assert [weight.stride() for weight in made.parameters() if weight.ndim == 2] == [(1, 40), (40, 1)]
    assert net[0].weight.stride() == (5, 1), "the net that was given is not changed"


def test_frozen_convolutions_compute_in_their_own_precision_under_autocast():
    """What a stage trained in bf16-mixed differentiates twice; only the linear layers are narrowed."""
    torch.manual_seed(0)
    net = freeze(Generator("G1", 6, 32, 8).eval())
    z = torch.randn(2, 6)

    def derivatives():
        leaf = z.clone().requires_grad_()
        images = net(leaf)
        (first,) = torch.autograd.grad(images.square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
        return images, first, second

    exact = derivatives()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = derivatives()
    for expected, made in zip(exact, narrow, strict=True):
        assert made.dtype == torch.float32
        assert 0 < (made - expected).norm() < 0.2 * expected.norm()


def test_freezing_leaves_a_convolution_padded_otherwise():
    net = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 3, 3, padding="same")
    )
    x = torch.rand(1, 3, 6, 6)
    assert torch.equal(freeze(net)(x), net(x))
    assert not any(isinstance(m, FrozenConv) for m in freeze(net).modules())
