"""Plain networks: shapes at every picture size, the cut against torchvision's net, folding, the penalty."""

import pytest
import torch
from closeness import near
from nets_lab import SIZES, calibrated, pictures
from torch import nn

from crafter_pl.errors import UserError
from crafter_pl.nets import (
    AmortizerNet,
    AnswersDecoder,
    Critic,
    Generator,
    ImageEncoder,
    OracleNet,
    SplitClassifier,
    build_decoder,
    gradient_penalty,
    to_grey,
)
from crafter_pl.stages import GanPrior

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
    ups = [m for m in build_decoder("paper", (64, 16, 16), 64).layers if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in ups] == [(128, 64), (64, 32)]


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
    with pytest.raises(UserError, match=r"\(last_linear.weight\)"):
        OracleNet("facenet", 2, 32, weights=str(path))
    torch.save({**first.state_dict(), "last_bn.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="size mismatch for last_bn"):
        OracleNet("facenet", 2, 32, weights=str(path))


def test_to_grey():
    pixel = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    assert to_grey(pixel).item() == pytest.approx(0.299 + 0.5 * 0.587 + 0.25 * 0.114)
    assert to_grey(torch.ones(2, 3, 4, 4)).shape == (2, 1, 4, 4)
    assert torch.allclose(to_grey(torch.ones(1, 3, 2, 2)), torch.ones(1, 1, 2, 2))


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
        (lambda: GanPrior("G3"), "generator 'G3'"),
        (lambda: Generator("G1", image_size=36), "36 .*G1"),
        (lambda: Generator("G2", image_size=40), "40 .*G2"),
        (
            lambda: SplitClassifier("resnet17", "layer1", 2),
            "'resnet17'",
        ),
        (lambda: SplitClassifier("vgg16", "layer1", 2), "'layer1' .*features.9"),
        (lambda: SplitClassifier("resnet18", "layer1", 2, "absent.pt"), "no file 'absent.pt'"),
        (lambda: build_decoder("unet", (4, 8, 8), 32, 8), "'unet' .*residual, paper"),
        (lambda: OracleNet("vit", 2, 32), "'vit' .*resnet, plain"),
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
