"""Plain networks: shapes at every picture size, the cut against torchvision's net, folding, the penalty."""

import copy
from collections import Counter

import pytest
import torch
import torchvision
from closeness import near
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from crafter_pl.crafting.curvature import Curvature
from crafter_pl.errors import UserError
from crafter_pl.nets import (
    AmortizerNet,
    AnswersDecoder,
    Critic,
    Generator,
    ImageEncoder,
    InceptionFeatures,
    OracleNet,
    PaperDecoder,
    ResidualDecoder,
    SplitClassifier,
    build_decoder,
    fold_batchnorm,
    freeze,
    gradient_penalty,
    to_grey,
)
from crafter_pl.nets.fold import FrozenConv

SIZES = (32, 64, 112, 128)


def calibrated(net, *shape):
    """`net` in eval mode with batch-norm statistics and scales of its own, not the initial zeros and ones."""
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            with torch.no_grad():
                module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.bias.copy_(0.3 * torch.randn(module.num_features, generator=generator))
    return net.eval()


def pictures(count, size, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# Shapes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["G1", "G2"])
@torch.no_grad()
def test_generator(kind, size):
    torch.manual_seed(0)
    net = Generator(kind, latent_dim=10, image_size=size, width=4)
    images = net(3 * torch.randn(3, 10))
    assert images.shape == (3, 3, size, size)
    assert 0 <= images.min() < images.max() <= 1 and images.std() > 0.05
    first = net.layers[1].unflattened_size  # the paper's: 256 x S/8 x S/8, and 512 x S/16 x S/16
    assert first == {"G1": (16, size // 8, size // 8), "G2": (32, size // 16, size // 16)}[kind]


def test_generator_of_the_paper_has_its_layers():
    convolutions = [m for m in Generator("G2").layers if isinstance(m, nn.ConvTranspose2d)]
    assert [m.out_channels for m in convolutions] == [256, 128, 64, 3]
    assert all(m.kernel_size == (5, 5) and m.stride == (2, 2) for m in convolutions)
    convolutions = [m for m in Generator("G1").layers if isinstance(m, nn.ConvTranspose2d)]
    assert [m.out_channels for m in convolutions] == [128, 64, 3]


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_image_encoder_and_critic(size):
    torch.manual_seed(0)
    mean, log_variance = ImageEncoder(7, size, width=4)(pictures(2, size))
    assert mean.shape == log_variance.shape == (2, 7)
    critic = Critic(size, width=4)
    scores = critic(pictures(3, size))
    assert scores.shape == (3,)
    assert len([m for m in critic.layers if isinstance(m, nn.Conv2d)]) == (5 if size >= 64 else 4)
    # No layer mixes the samples of a batch.
    critic, images = critic.double(), pictures(3, size).double()
    assert near(critic(images[1:2]), critic(images)[1:2])


@pytest.mark.parametrize(("size", "side"), [(32, 8), (64, 16), (112, 28), (128, 32), (112, 7), (64, 64)])
@torch.no_grad()
def test_decoders_and_amortizer(size, side):
    torch.manual_seed(0)
    features = torch.randn(2, 6, side, side)
    for kind in ("paper", "residual"):
        images = build_decoder(kind, (6, side, side), size, 16)(features)
        assert images.shape == (2, 3, size, size) and 0 <= images.min() < images.max() <= 1
    assert AmortizerNet((6, side, side), 9, width=4)(features).shape == (2, 9)


def test_decoder_of_the_paper_halves_its_channels():
    ups = [m for m in PaperDecoder((64, 16, 16), 64).layers if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in ups] == [(128, 64), (64, 32)]
    assert isinstance(build_decoder("residual", (4, 8, 8), 32, 8), ResidualDecoder)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("backbone", "grey"), [("resnet", False), ("resnet", True), ("plain", True)])
@torch.no_grad()
def test_oracles(backbone, grey, size):
    torch.manual_seed(0)
    net = OracleNet(backbone, 5, size, grey, width=4, embedding=12).eval()
    net, images = net.double(), pictures(3, size).double()
    embeddings = net.embed(images)
    assert embeddings.shape == (3, 12)
    assert near(embeddings.norm(dim=1), torch.ones(3))
    cosines = net.cosines(embeddings)
    assert cosines.shape == (3, 5) and cosines.abs().max() <= 1 + 1e-6
    swapped = images[:, [1, 2, 0]]
    assert near(net.embed(to_grey(images).expand(-1, 3, -1, -1)), embeddings) == grey
    assert not near(net.embed(swapped), embeddings)


@torch.no_grad()
def test_facenet_from_scratch():
    torch.manual_seed(0)
    net = OracleNet("facenet", 4, 32).eval()
    embeddings = net.embed(pictures(2, 32))
    assert embeddings.shape == (2, 512)
    assert near(embeddings.norm(dim=1), torch.ones(2))
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-4)


def test_facenet_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    first = OracleNet("facenet", 2, 32).trunk.net
    path = tmp_path / "weights.pt"
    state = {**first.state_dict(), "logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save(state, path)  # as published: with the head of its own classes
    second = OracleNet("facenet", 2, 32, weights=str(path)).trunk.net
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    del state["last_linear.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"1 tensors are missing and 0 unknown \(last_linear.weight\)"):
        OracleNet("facenet", 2, 32, weights=str(path))
    torch.save({**first.state_dict(), "last_bn.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="size mismatch for last_bn"):
        OracleNet("facenet", 2, 32, weights=str(path))


def test_to_grey():
    pixel = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    assert to_grey(pixel).item() == pytest.approx(0.299 + 0.5 * 0.587 + 0.25 * 0.114)
    assert to_grey(torch.ones(2, 3, 4, 4)).shape == (2, 1, 4, 4)
    assert torch.allclose(to_grey(torch.ones(1, 3, 2, 2)), torch.ones(1, 1, 2, 2))


# The cut


def whole(arch, state_from, outputs):
    """torchvision's own net with the weights of a `SplitClassifier` and a head of `outputs`."""
    with torch.device("meta"):  # not drawn: all weights are given below
        net = getattr(torchvision.models, arch)(num_classes=outputs).eval()
    own = list(state_from.edge.state_dict().values()) + list(state_from.cloud.state_dict().values())
    if arch == "resnet18":
        names = list(net.state_dict())
    else:
        net.classifier, net.avgpool = nn.Linear(512, outputs), nn.AdaptiveAvgPool2d(1)
        names = list(net.state_dict())
    assert len(names) == len(own)
    net.load_state_dict(dict(zip(names, own, strict=True)), assign=True)
    return net


@pytest.mark.parametrize(
    ("arch", "cut", "shape"),
    [
        ("resnet18", "stem", (64, 16, 16)),
        ("resnet18", "layer1", (64, 16, 16)),
        ("resnet18", "layer2", (128, 8, 8)),
        ("resnet18", "layer3", (256, 4, 4)),
        ("vgg16", "pool2", (128, 16, 16)),
        ("vgg16_bn", "pool4", (512, 4, 4)),
    ],
)
@torch.no_grad()
def test_edge_and_cloud_are_the_whole_net(arch, cut, shape):
    torch.manual_seed(0)
    net = calibrated(SplitClassifier(arch, cut, 5)).double()
    images = pictures(2, 64).double()
    features = net.encode(images)
    assert features.shape[1:] == shape
    assert torch.equal(net.encoder_module()(images), features)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).tolist()  # as the net has them
    expected = whole(arch, net, 5).double()(torchvision.transforms.functional.normalize(images, mean, std))
    assert near(net.classify(features), expected) and near(net(images), expected)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(("arch", "cut", "channels"), [("resnet18", "layer1", 64), ("vgg16", "pool2", 128)])
@torch.no_grad()
def test_the_papers_cuts_at_every_size(arch, cut, channels):
    net = SplitClassifier(arch, cut, 2).eval()
    for size in SIZES:  # the paper: 64x16x16 and 128x16x16 at 64 pixels
        assert net.encode(pictures(1, size)).shape[1:] == (channels, size // 4, size // 4)


def test_imagenet_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "resnet18.pt"
    source = torchvision.models.resnet18(weights=None)
    torch.save(source.state_dict(), path)
    net = SplitClassifier("resnet18", "layer1", 3, str(path))
    assert torch.equal(net.edge[1][1].conv2.weight, source.layer1[1].conv2.weight)
    assert torch.equal(net.cloud[2][1].bn2.weight, source.layer4[1].bn2.weight)
    with pytest.raises(UserError, match="do not fit torchvision's vgg16"):
        SplitClassifier("vgg16", "pool2", 3, str(path))
    torch.save([1, 2], path)
    with pytest.raises(
        UserError, match=r"resnet18\.pt' holds no state dict; expected one of torchvision's resnet18"
    ):
        SplitClassifier("resnet18", "layer1", 3, str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"resnet18\.pt' cannot be read"):
        SplitClassifier("resnet18", "layer1", 3, str(path))


def test_inception_features_are_torchvisions_pooled_ones(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "inception.pt"
    source = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    for module in source.modules():  # so that pictures make a difference through 48 layers
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(source.state_dict(), path)  # with both heads, as published
    random = torch.random.get_rng_state()
    net = InceptionFeatures(str(path))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    images = pictures(2, 299)  # not resized; torchvision's takes them by ImageNet's mean and deviation
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pooled = []
    source.avgpool.register_forward_hook(lambda module, given, made: pooled.append(made.flatten(1)))
    with torch.no_grad():
        source((images - mean) / std)
        scale = pooled[0].std(0).mean()  # between the two pictures
        assert (net(images) - pooled[0]).abs().max() < 1e-2 * scale
        assert (net(images + 0.02) - pooled[0]).abs().max() > 0.1 * scale
        assert net(pictures(1, 64)).shape == (1, 2048)
    state = source.state_dict()
    del state["Mixed_7c.branch1x1.conv.weight"]
    torch.save({**state, "more": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"1 tensors are missing and 1 unknown \(Mixed_7c\.branch1x1"):
        InceptionFeatures(str(path))
    torch.save({**state, "Mixed_7c.branch1x1.conv.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"does not fit torchvision's inception_v3: size mismatch for Mixed"):
        InceptionFeatures(str(path))
    with pytest.raises(UserError, match=r"inception: no file 'absent\.pt'"):
        InceptionFeatures("absent.pt")


def test_download_without_a_network(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(UserError, match=r"inception_v3 could not be downloaded .*init_args\.inception PATH"):
        InceptionFeatures("download")
    with pytest.raises(UserError, match=r"resnet18 could not be downloaded .*init_args\.weights PATH"):
        SplitClassifier("resnet18", "layer1", 2, "download")


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

        curvature = Curvature(frozen, frozen(z), z, 0.0, "sum")
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


# Gradient penalty


def test_gradient_penalty_by_hand():
    """A critic D(x) = sum(w * x^2) has the gradient 2 w x."""
    torch.manual_seed(0)
    w = torch.randn(1, 3, 2, 2, dtype=torch.float64)

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(w.clone())

        def forward(self, x):
            return (self.w * x.square()).flatten(1).sum(1)

    critic = Square()
    real, fake = torch.rand(5, 3, 2, 2, dtype=torch.float64), torch.rand(5, 3, 2, 2, dtype=torch.float64)
    mix = torch.rand(5, 1, 1, 1, dtype=torch.float64)
    penalty = gradient_penalty(critic, real, fake, mix)
    points = mix * real + (1 - mix) * fake
    norms = (2 * w * points).flatten(1).norm(dim=1)
    assert penalty.item() == pytest.approx(((norms - 1) ** 2).mean().item(), rel=1e-12)
    # d/dw mean (|2 w x| - 1)^2 = mean 2 (|2 w x| - 1) 4 w x^2 / |2 w x|
    (grad,) = torch.autograd.grad(penalty, critic.w)
    factor = (2 * (norms - 1) / norms / len(norms)).view(-1, 1, 1, 1)
    assert torch.allclose(grad, (factor * 4 * w * points.square()).sum(0, keepdim=True), rtol=1e-10)


def test_gradient_penalty_of_the_critic_against_finite_differences():
    torch.manual_seed(0)
    critic = Critic(16, width=2).double()
    real, fake, mix = pictures(2, 16, 1).double(), pictures(2, 16, 2).double(), torch.full((2, 1, 1, 1), 0.3)
    points = 0.3 * real + 0.7 * fake
    norms = []
    for point in points:
        columns = []
        for k in range(point.numel()):
            step = torch.zeros(point.numel(), dtype=torch.float64)
            step[k] = 1e-5
            ends = torch.stack([point + step.view_as(point), point - step.view_as(point)])
            high, low = critic(ends).tolist()
            columns.append((high - low) / 2e-5)
        norms.append(torch.tensor(columns, dtype=torch.float64).norm())
    expected = ((torch.stack(norms) - 1) ** 2).mean().item()
    assert gradient_penalty(critic, real, fake, mix).item() == pytest.approx(expected, rel=1e-5)


# Messages


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Generator("G3"), "'G3' is unknown; choose G1 or G2"),
        (lambda: Generator("G1", image_size=36), "36 does not fit G1: it must be a multiple of 8"),
        (lambda: Generator("G2", image_size=40), "40 does not fit G2: it must be a multiple of 16"),
        (
            lambda: SplitClassifier("resnet17", "layer1", 2),
            "'resnet17' is unknown; torchvision has .*",
        ),
        (lambda: SplitClassifier("vgg16", "layer1", 2), "no node 'layer1' to cut at; .*features.9"),
        (lambda: SplitClassifier("resnet18", "layer1", 2, "absent.pt"), "no file 'absent.pt'"),
        (lambda: build_decoder("unet", (4, 8, 8), 32, 8), "'unet' is unknown; choose one of residual, paper"),
        (lambda: PaperDecoder((4, 7, 7), 32), "7x7 features cannot double to 32"),
        (lambda: OracleNet("vit", 2, 32), "'vit' is unknown; choose resnet, plain or facenet"),
        (lambda: OracleNet("facenet", 2, 32, grey=True), "set grey false"),
        (lambda: OracleNet("plain", 2, 32, weights="x.pt"), "for backbone facenet only"),
        (lambda: OracleNet("facenet", 2, 32, weights="absent.pt"), "no file 'absent.pt'"),
    ],
)
def test_messages(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("size", SIZES)
def test_answers_decoder_sees_nothing_but_the_answers(size):
    torch.manual_seed(0)
    classifier = calibrated(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)))
    net = AnswersDecoder(classifier, 5, size, "residual", 8)
    features = torch.randn(4, 6, 4, 4)
    for _ in range(3):
        net(features)
    assert net.training and not net.classifier.training
    assert not any(p.requires_grad for p in net.classifier.parameters())
    net.eval()
    with torch.no_grad():
        images = net(features)
        assert images.shape == (4, 3, size, size) and 0 <= images.min() < images.max() <= 1
        turned = net(features.flip(2).transpose(2, 3))  # other features, the same answers
        other = net(30 * features)
    assert (turned - images).abs().max() < 1e-5 and (other - images).abs().max() > 1e-4
