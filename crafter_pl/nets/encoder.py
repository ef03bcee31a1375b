"""The edge/cloud task network: a torchvision classifier cut in two at a named place."""

from typing import Any

import torch
from torch import Tensor, nn

from crafter_pl.errors import UserError
from crafter_pl.nets.cut import cut_at, replace_head, torchvision_classifier
from crafter_pl.nets.weights import imagenet_weights

_VGG_CUTS = ("pool1", "pool2", "pool3", "pool4")
CUTS = {"resnet18": ("stem", "layer1", "layer2", "layer3"), "vgg16": _VGG_CUTS, "vgg16_bn": _VGG_CUTS}


def _parts(arch: str, cut: str, outputs: int, weights: str | None) -> tuple[nn.Module, nn.Module]:
    """Edge and cloud: of the architectures in `CUTS` by hand, of all others by `cut_at`."""
    net: Any = torchvision_classifier(arch)
    if weights is not None:
        try:
            net.load_state_dict(imagenet_weights(weights, arch))
        except RuntimeError as error:
            raise UserError(f"weights {weights!r} do not fit torchvision's {arch}: {error}") from error
    if cut not in CUTS.get(arch, ()):
        replace_head(net, arch, outputs)
        return cut_at(net, cut)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, outputs)]
    if arch == "resnet18":
        stem = nn.Sequential(net.conv1, net.bn1, nn.ReLU(), net.maxpool)
        layers = [stem, net.layer1, net.layer2, net.layer3, net.layer4]
        ends = list(range(1, len(layers)))
    else:
        head.insert(2, nn.Dropout(0.5))
        layers = list(net.features)
        ends = [i for i, layer in enumerate(layers, 1) if isinstance(layer, nn.MaxPool2d)]
    end = ends[CUTS[arch].index(cut)]
    return nn.Sequential(*layers[:end]), nn.Sequential(*layers[end:], *head)


class _Edge(nn.Module):
    def __init__(self, edge: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.edge = edge
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

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

    def __init__(self, arch: str, cut: str, num_attributes: int, weights: str | None = None) -> None:
        super().__init__()
        self.edge, self.cloud = _parts(arch, cut, num_attributes, weights)
        # ImageNet's statistics: the pretrained trunks expect them, and from scratch they do no harm.
        self.mean = nn.Buffer(torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def encoder_module(self) -> nn.Module:
        """The edge part alone as a module, normalisation included."""
        return _Edge(self.edge, self.mean, self.std)

    def encode(self, images: Tensor) -> Tensor:
        """Edge part: ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)``."""
        return self.edge((images - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Both parts: ``(N, 3, H, W)`` in [0, 1] -> logits ``(N, A)``."""
        return self.cloud(self.encode(images))
