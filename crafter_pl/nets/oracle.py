"""Face recognisers that judge reconstructions or features, or guide cloaks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.errors import UserError
from crafter_pl.nets.weights import load_trunk, read_weights


def to_grey(images: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of ``(N, 3, H, W)`` in [0, 1] -> ``(N, 1, H, W)``."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip: ``(N, cin, h, w)`` -> ``(N, cout, h/stride, w/stride)``."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride, 1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU(),
            nn.Conv2d(cout, cout, 3, 1, 1, bias=False),
            nn.BatchNorm2d(cout),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            self.skip = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        """Convolves, adds the skip, rectifies."""
        return (self.main(x) + self.skip(x)).relu()


def _resnet(channels: int, width: int, image_size: int) -> nn.Sequential:
    # From 64 pixels on the first convolution halves the picture, else the first block.
    first, then = (2, 1) if image_size >= 64 else (1, 2)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 5, first, 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        ResidualBlock(width, width, then),
    ]
    for cin in (width, 2 * width, 4 * width):
        layers += [ResidualBlock(cin, 2 * cin, 2), ResidualBlock(2 * cin, 2 * cin, 1)]
    return nn.Sequential(*layers)


def _plain(channels: int, width: int, image_size: int) -> nn.Sequential:
    layers: list[nn.Module] = (
        [nn.Conv2d(channels, width, 4, 2, 1, bias=False)]
        if image_size >= 64
        else [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.MaxPool2d(2)]
    )
    layers += [nn.BatchNorm2d(width), nn.PReLU(width)]
    for cin in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(cin, 2 * cin, 3, 1, 1, bias=False), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(2 * cin), nn.PReLU(2 * cin)]
    cout = 8 * width
    layers += [nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout), nn.PReLU(cout)]
    return nn.Sequential(*layers)


class FaceNetTrunk(nn.Module):
    """facenet-pytorch's InceptionResnetV1 without its head, fed with pictures of at least 112 pixels.

    Args:
        weights: path of a state dict; ``vggface2`` (or ``download``) or ``casia-webface``, which it
            downloads; None: none.

    Raises:
        UserError: they cannot be downloaded or read.
    """

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        from facenet_pytorch import InceptionResnetV1

        public = {"download": "vggface2", "vggface2": "vggface2", "casia-webface": "casia-webface"}
        try:
            self.net = InceptionResnetV1(pretrained=public.get(weights or ""))
        except OSError as error:
            raise UserError(
                f"the weights {weights} could not be downloaded ({error}); give a state-dict file instead "
                "(init_args.weights PATH)"
            ) from error
        if weights is not None and weights not in public:
            state = read_weights(weights, "facenet-pytorch's InceptionResnetV1")
            # The head is of its own people.
            load_trunk(self.net, state, ("logits.",), f"weights {weights!r} do not fit InceptionResnetV1")

    def forward(self, x: Tensor) -> Tensor:
        """Pictures in [-1, 1] -> unit vectors ``(N, 512)``."""
        if x.shape[-1] < 112:
            x = F.interpolate(x, size=(112, 112), mode="bilinear", align_corners=False)
        return self.net(x)


class CosineHead(nn.Module):
    """A trunk, whose outputs ``(N, E)`` are embeddings, and a direction for each of P people (CosFace)."""

    def __init__(self, trunk: nn.Module, identities: int, embedding: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.centres = nn.Parameter(F.normalize(torch.randn(identities, embedding)))

    def embed(self, x: Tensor) -> Tensor:
        """Embeds what the trunk takes -> unit vectors ``(N, E)``."""
        return F.normalize(self.trunk(x))

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosine of embeddings ``(N, E)`` to every person's centre -> ``(N, P)``."""
        return embeddings @ F.normalize(self.centres).T


class OracleNet(CosineHead):
    """Identity classifier with a cosine head (CosFace): unit embeddings ``(N, E)`` and cosines ``(N, P)``.

    Args:
        backbone: ``resnet`` (in-house, spatial map flattened), ``plain`` (VGG-like with PReLU) or ``facenet``
            (InceptionResnetV1).
        identities: P, the number of people.
        image_size: side of the pictures in pixels.
        grey: judge the luma alone.
        width: first width of ``resnet`` and ``plain``.
        embedding: E (``facenet`` has its own 512).
        dropout: before the embedding.
        weights: for ``facenet``: None, a state-dict file, or ``download``.
    """

    def __init__(
        self,
        backbone: str,
        identities: int,
        image_size: int,
        grey: bool = False,
        width: int = 32,
        embedding: int = 256,
        dropout: float = 0.2,
        weights: str | None = None,
    ) -> None:
        if weights is not None and backbone != "facenet":
            raise UserError(f"weights are read for backbone facenet only, not for {backbone!r}")
        trunk: nn.Module
        if backbone == "facenet":
            if grey:
                raise UserError("backbone facenet takes colour pictures: set grey false")
            trunk, embedding = FaceNetTrunk(weights), 512
        elif backbone in ("resnet", "plain"):
            resnet = backbone == "resnet"
            side = -(-image_size // 16) if resnet else image_size // 16
            trunk = nn.Sequential(
                (_resnet if resnet else _plain)(1 if grey else 3, width, image_size),
                nn.Flatten(),
                nn.Dropout(dropout),
                nn.Linear(8 * width * side * side, embedding, bias=False),
                nn.BatchNorm1d(embedding),
            )
        else:
            raise UserError(f"backbone {backbone!r} is unknown; choose resnet, plain or facenet")
        super().__init__(trunk, identities, embedding)
        self.grey = grey

    def embed(self, images: Tensor) -> Tensor:
        """Embeds pictures ``(N, 3, H, W)`` in [0, 1] -> unit vectors ``(N, E)``."""
        return super().embed(self._shown(images))

    def activations(self, images: Tensor, count: int) -> list[Tensor]:
        """What pictures ``(N, 3, H, W)`` in [0, 1] excite in the first layers of ``resnet`` or ``plain``.

        Returns:
            Up to ``count`` maps ``(N, C, h, w)``: of the rectified stem and the blocks, or of the PReLUs.
        """
        assert isinstance(self.trunk, nn.Sequential) and isinstance(self.trunk[0], nn.Sequential)
        x = self._shown(images)
        maps: list[Tensor] = []
        for layer in self.trunk[0]:
            if len(maps) == count:
                break
            x = layer(x)
            if isinstance(layer, (nn.ReLU, nn.PReLU, ResidualBlock)):
                maps.append(x)
        return maps

    def _shown(self, images: Tensor) -> Tensor:
        return (to_grey(images) if self.grey else images) * 2 - 1


class FeatureHead(CosineHead):
    """Small ResNet with a cosine head (CosFace) on features: ``(N, C, h, w)`` -> unit embeddings ``(N, E)``.

    Args:
        feature_shape: (C, h, w).
        identities: P, the number of people.
        width: first width; it doubles with every halving of the map, which ends at 4x4 or below.
        embedding: E.
        dropout: before the embedding.
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        identities: int,
        width: int = 64,
        embedding: int = 256,
        dropout: float = 0.2,
    ) -> None:
        channels, height, side = feature_shape
        layers: list[nn.Module] = [
            nn.BatchNorm2d(channels, affine=False),  # features come at any scale
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ResidualBlock(width, width, 1),
        ]
        while side > 4:
            layers += [ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 2 * width, 1)]
            width, height, side = 2 * width, (height + 1) // 2, (side + 1) // 2
        layers += [
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(width * height * side, embedding, bias=False),
            nn.BatchNorm1d(embedding),
        ]
        super().__init__(nn.Sequential(*layers), identities, embedding)
