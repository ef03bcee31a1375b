"""The edge/cloud task network: a classifier cut in two at a named place."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from crafter_pl.errors import UserError
from crafter_pl.nets.architectures import build_net
from crafter_pl.nets.cut import cut_at, replace_head
from crafter_pl.nets.layout import Layout, Resize, Undo
from crafter_pl.nets.small_maps import quick_on_small_maps
from crafter_pl.nets.weights import imagenet_weights, load_whole

_VGG_CUTS = ("pool1", "pool2", "pool3", "pool4")
CUTS = {"resnet18": ("stem", "layer1", "layer2", "layer3"), "vgg16": _VGG_CUTS, "vgg16_bn": _VGG_CUTS}
# ImageNet's statistics: the pretrained trunks expect them, and from scratch they do no harm.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def whole_net(arch: str, weights: str | None) -> Any:  # noqa: ANN401 (a net's own layers by name)
    """The net before it is cut, see `SplitClassifier`.

    Raises:
        UserError: there is no such net, or the weights are of another.
    """
    if weights == "download" and arch.partition(":")[0] not in ("timm", "torchvision", arch):
        raise UserError(f"no weights of {arch} can be downloaded: give a file, or let its own code load them")
    timms = arch.startswith("timm:")
    net = build_net(arch, download=timms and weights == "download")
    if weights == "download" and not timms:
        net.load_state_dict(imagenet_weights(weights, arch.removeprefix("torchvision:")))
    elif weights not in (None, "download"):
        load_whole(net, weights, arch)
    return net


def _other_head(arch: str, its: int | str, wanted: int) -> UserError:
    return UserError(
        f"freeze keeps the head of {arch}, which gives {its} answers, and {wanted} are wanted: give weights "
        f"or data that fit, freeze false, or the net as it was published, torchvision:{arch}"
    )


def _parts(arch: str, cut: str, outputs: int, weights: str | None, keep: bool) -> tuple[nn.Module, nn.Module]:
    """Edge and cloud: of the architectures in `CUTS` by hand, of all others by `cut_at`."""
    net = whole_net(arch, weights)
    if cut not in CUTS.get(arch, ()):
        return cut_at(net, cut)
    own = weights is not None and arch == "resnet18" and net.fc.out_features == outputs
    if keep and weights is not None and not own:
        raise _other_head(arch, net.fc.out_features if arch == "resnet18" else "other", outputs)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc if own else nn.Linear(512, outputs)]
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


class Encoder(nn.Module):
    """The edge's half of a net and all around it: pictures ``(N, 3, S, S)`` in [0, 1] -> ``(N, C, h, w)``.

    Args:
        edge: normalised pictures of the net's own size -> features as the net has them.
        mean: ``(3, 1, 1)``, is taken off.
        std: ``(3, 1, 1)``, divides.
        resize: to the net's own size; None: pictures come in it.
        layout: of features that are no square maps; None: these are.
    """

    def __init__(
        self, edge: nn.Module, mean: Tensor, std: Tensor, resize: Resize | None, layout: Layout | None
    ) -> None:
        super().__init__()
        self.edge, self.resize, self.layout = edge, resize, layout
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, images: Tensor) -> Tensor:
        """Resizes, normalises, encodes, lays out."""
        images = images if self.resize is None else self.resize(images)
        features = self.edge((images - self.mean) / self.std)
        return features if self.layout is None else self.layout(features)


class SplitClassifier(nn.Module):
    """A face classifier cut into an edge encoder and a cloud classifier.

    Args:
        arch: ``resnet18``, ``vgg16`` and so on: a torchvision classification model; others as `build_net`
            takes them.
        cut: last node on the edge. ResNet18: ``stem``, ``layer1`` (the paper's), ``layer2``, ``layer3``;
            VGG16: ``pool1`` to ``pool4`` (``pool2`` is the paper's); these and all others: a node or module
            as torchvision's feature extraction names it, such as ``features.4``, see `cut_at`.
        num_attributes: number of answers A. A last linear layer with as many is kept, another is replaced.
        weights: None (from scratch), a state-dict file of the whole net, or ``download``.
        size: side of the pictures in pixels.
        input_size: side of what the net itself takes, to which the edge resizes; None: as they come.
        mean: of RGB in [0, 1], which the edge takes off; None: ImageNet's.
        std: by which the edge divides; likewise.
        keep: refuse ``weights`` whose head has another number of answers.

    Attributes:
        feature_shape: ``(C, h, w)`` of what leaves the edge.
        layout: how the net's own features were laid out as square maps.
        answers: how many the net gave before its head was replaced, if it was.

    Raises:
        UserError: for an unknown architecture, a cut that it does not have, weights that do not fit, or
            pictures that it does not take.
    """

    def __init__(
        self,
        arch: str,
        cut: str,
        num_attributes: int,
        weights: str | None = None,
        size: int = 224,
        input_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        keep: bool = False,
    ) -> None:
        super().__init__()
        self.edge, cloud = _parts(arch, cut, num_attributes, weights, keep)
        self.mean = nn.Buffer(torch.tensor(mean or MEAN).view(3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(std or STD).view(3, 1, 1), persistent=False)
        self.resize = None if input_size in (None, size) else Resize(int(input_size or size))
        what = f"{arch} cut at {cut}"
        features = _tried(self.edge, self.shown(torch.zeros(1, 3, size, size)), what, size)
        try:
            self.layout = Layout(tuple(features.shape[1:]) if isinstance(features, Tensor) else ())
        except UserError as error:
            raise UserError(
                f"{what} gives {error}: choose another cut or arch (--model.init_args.*)"
            ) from error
        self.feature_shape = self.layout.shape
        if self.layout.kind != "map":
            cloud = nn.Sequential(OrderedDict(undo=Undo(self.layout), net=cloud))
        self.cloud = cloud
        logits = _tried(cloud, self.layout(features), what, size)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UserError(f"{what} does not give its answers as one vector a picture: choose another arch")
        self.answers = logits.shape[1]
        if self.answers != num_attributes:
            if keep and weights is not None:
                raise _other_head(arch, self.answers, num_attributes)
            replace_head(cloud, arch, num_attributes, self.answers)
        quick_on_small_maps(self)

    def take(self, whole: nn.Module) -> None:
        """Copies the tensors of the whole net into both parts, which `cut_at` lets name them as it does."""
        state = whole.state_dict()
        for part in (self.edge, self.cloud):
            names = {key: key.removeprefix("net.") for key in part.state_dict()}
            kept = {key: state[old] for key, old in names.items() if old in state}
            part.load_state_dict(kept, strict=False)  # a constant of the trace is in the whole net no longer

    def shown(self, images: Tensor) -> Tensor:
        """Pictures as the net itself takes them."""
        images = images if self.resize is None else self.resize(images)
        return (images - self.mean) / self.std

    def encoder_module(self) -> nn.Module:
        """The edge part alone as a module: resizing, normalisation and layout included."""
        layout = None if self.layout.kind == "map" else self.layout
        return Encoder(self.edge, self.mean, self.std, self.resize, layout)

    def encode(self, images: Tensor) -> Tensor:
        """Edge part: ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)``."""
        return self.layout(self.edge(self.shown(images)))

    def forward(self, images: Tensor) -> Tensor:
        """Both parts: ``(N, 3, H, W)`` in [0, 1] -> logits ``(N, A)``."""
        return self.cloud(self.encode(images))


@torch.no_grad()
def _tried(part: nn.Module, x: Tensor, what: str, size: int) -> Any:  # noqa: ANN401 (whatever it gives)
    """What a part makes of an example, in eval mode.

    Raises:
        UserError: it does not take it.
    """
    part.eval()
    try:
        return part(x)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:  # the net's own code's
        raise UserError(
            f"{what} cannot take pictures of {size} pixels ({str(error).splitlines()[0][:120]}): give larger "
            "ones (--data.image_size), another size of its own (--model.init_args.input_size), or another "
            "--model.init_args.arch; one that wants other than RGB has to be wrapped in a module"
        ) from error
    finally:
        part.train()
