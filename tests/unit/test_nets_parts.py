import pytest
import torch
import torchvision
from closeness import near
from nets_lab import SIZES, calibrated, pictures
from torch import nn

from crafter_pl.errors import UserError
from crafter_pl.nets import InceptionFeatures, SplitClassifier

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
    assert near(net.cloud(features), expected) and near(net(images), expected)
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
    with pytest.raises(UserError, match="vgg16"):
        SplitClassifier("vgg16", "pool2", 3, str(path))
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"resnet18\.pt'"):
        SplitClassifier("resnet18", "layer1", 3, str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"resnet18\.pt'"):
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
    with pytest.raises(UserError, match=r"\(Mixed_7c\.branch1x1"):
        InceptionFeatures(str(path))
    torch.save({**state, "Mixed_7c.branch1x1.conv.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="size mismatch for Mixed"):
        InceptionFeatures(str(path))
    with pytest.raises(UserError, match=r"'absent\.pt'"):
        InceptionFeatures("absent.pt")


def test_download_without_a_network(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(UserError, match=r"init_args\.inception"):
        InceptionFeatures("download")
    with pytest.raises(UserError, match=r"init_args\.weights"):
        SplitClassifier("resnet18", "layer1", 2, "download")
