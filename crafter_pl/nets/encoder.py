"""The edge/cloud task network: a torchvision classifier cut in two at a named place."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from crafter_pl.errors import UserError
from crafter_pl.nets.cut import cut_at, replace_head, torchvision_classifier
from crafter_pl.nets.weights import imagenet_weights

RESNET_CUTS = ("stem", "layer1", "layer2", "layer3")
VGG_CUTS = ("pool1", "pool2", "pool3", "pool4")


def _resnet18(cut: str, outputs: int, weights: str | None) -> tuple[nn.Sequential, nn.Sequential]:
    net = torchvision.models.resnet18(weights=None)
    _load_backbone(net, "resnet18", weights)
    blocks = [
        nn.Sequential(net.conv1, net.bn1, nn.ReLU(), net.maxpool),
        net.layer1,
        net.layer2,
        net.layer3,
        net.layer4,
    ]
    at = RESNET_CUTS.index(cut) + 1
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, outputs)]
    return nn.Sequential(*blocks[:at]), nn.Sequential(*blocks[at:], *head)


def _vgg16(arch: str, cut: str, outputs: int, weights: str | None) -> tuple[nn.Sequential, nn.Sequential]:
    net = getattr(torchvision.models, arch)(weights=None)
    _load_backbone(net, arch, weights)
    layers = list(net.features)
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    at = pools[VGG_CUTS.index(cut)] + 1
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, outputs)]
    return nn.Sequential(*layers[:at]), nn.Sequential(*layers[at:], *head)


def _any(arch: str, cut: str, outputs: int, weights: str | None) -> tuple[nn.Module, nn.Module]:
    net = torchvision_classifier(arch)
    _load_backbone(net, arch, weights)
    replace_head(net, arch, outputs)
    return cut_at(net, cut)


def _load_backbone(net: nn.Module, arch: str, weights: str | None) -> None:
    """Loads ImageNet weights into ``net``: from a state-dict file, or by torchvision's download."""
    if weights is None:
        return
    state = imagenet_weights(weights, arch)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"weights {weights!r} do not fit torchvision's {arch}: {error}") from error


class _Edge(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, edge: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.edge = edge
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        return self.edge((images - self.mean) / self.std)


class SplitClassifier(nn.Module):
    """A multi-label face classifier cut into an edge encoder and a cloud classifier.

    Args:
        arch: name of a torchvision classification model (its definition, head replaced): ``resnet18``,
            ``vgg16``, ``mobilenet_v3_small`` and so on.
        cut: last node on the edge. ResNet18: ``stem``, ``layer1`` (the paper's), ``layer2``, ``layer3``;
            VGG16: ``pool1`` to ``pool4`` (``pool2`` is the paper's); these and all others: a node or module
            as torchvision's feature extraction names it, such as ``features.4``, see `cut_at`.
        num_attributes: number of binary attributes A.
        weights: None (from scratch), a state-dict file of the whole torchvision model, or ``download``.

    Raises:
        UserError: for an unknown architecture, a cut that it does not have, or weights that do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, arch: str, cut: str, num_attributes: int, weights: str | None = None) -> None:
        super().__init__()
        cuts = {"resnet18": RESNET_CUTS, "vgg16": VGG_CUTS, "vgg16_bn": VGG_CUTS}
        parts: tuple[nn.Module, nn.Module]
        if cut not in cuts.get(arch, ()):
            parts = _any(arch, cut, num_attributes, weights)
        elif arch == "resnet18":
            parts = _resnet18(cut, num_attributes, weights)
        else:
            parts = _vgg16(arch, cut, num_attributes, weights)
        self.edge, self.cloud = parts
        # ImageNet's statistics: the pretrained trunks expect them, and from scratch they do no harm.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def encoder_module(self) -> nn.Module:
        """The edge part alone as a module, normalisation included."""
        return _Edge(self.edge, self.mean, self.std)

    def encode(self, images: Tensor) -> Tensor:
        """Edge part: ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)``."""
        return self.edge((images - self.mean) / self.std)

    def classify(self, features: Tensor) -> Tensor:
        """Cloud part: features ``(N, C, h, w)`` -> logits ``(N, A)``."""
        return self.cloud(features)

    def forward(self, images: Tensor) -> Tensor:
        """Both parts: ``(N, 3, H, W)`` in [0, 1] -> logits ``(N, A)``."""
        return self.classify(self.encode(images))
