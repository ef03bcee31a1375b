"""LowKey: a cloak that moves a face away from where recognisers have it."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from crafter_pl.defenses.baselines.cloak import Cloak
from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.limits import AboveZero, FromZero, PositiveInt
from crafter_pl.nets import OracleNet
from crafter_pl.stages import Embedder, Upstream


class LowKey(Cloak[ProtectOptions]):
    """Moves a picture's embedding away from its own, for two recognisers at once, blurred or not.

    Cherepanova et al., LowKey: Leveraging Adversarial Attacks to Protect Social Media Users from Facial
    Recognition, ICLR 2021. By signed gradient steps from x it maximises
    ``1/2n sum_i (|A_i(x) - A_i(x')|^2 + |A_i(x) - A_i(G(x'))|^2) / |A_i(x)| - alpha * D(x, x')``, where the
    A_i are n embedders, of norm 1 here, and G is a Gaussian blur.

    Not the authors': D has the form of LPIPS alone. LPIPS needs AlexNet's ImageNet weights, a download; here
    it is the distance of unit activations in the first two layers of each of the same embedders, which were
    trained on faces: so ``alpha`` is not on the scale of theirs (0.05 in their code), and D is no measure of
    what people see. The start is x itself, without their noise: the blur's term has a gradient there.

    `fit` learns nothing; it shows what the cloaks of a few public faces look like.

    Args:
        task_ckpt: the task model (edge encoder); null finds the experiment's own.
        embedder_ckpt: the first recogniser, in colour; null finds the experiment's own.
        embedder_plain_ckpt: the second, of other layers; null finds the experiment's own.
        alpha: weight of the perceptual distance, the trade-off: the larger, the less is seen, down to about a
            step, since D has no gradient at x.
        steps: signed gradient steps (the authors': 50).
        lr: size of a step, in pixel values (the authors': 0.0025).
    """

    embedder = Upstream(Embedder)  # the frozen recognisers
    embedder_plain = Upstream(Embedder)
    stage_name = "lowkey"
    tradeoff = "alpha"
    recorded = ("alpha", "steps", "lr")

    def __init__(
        self,
        task_ckpt: str | None = None,
        embedder_ckpt: str | None = None,
        embedder_plain_ckpt: str | None = None,
        alpha: FromZero = 5.0,
        steps: PositiveInt = 25,
        lr: AboveZero = 0.005,
    ) -> None:
        super().__init__()

    @torch.enable_grad()
    def search(self, image: Tensor, options: ProtectOptions) -> Tensor:
        """One picture ``(1, 3, H, W)`` in [0, 1] -> its cloak."""
        h, nets = self.hparams, self.embedders()
        own = [net.embed(image) for net in nets]
        maps = early(nets, image)
        picture = image
        for _ in range(h["steps"]):
            picture = picture.detach().requires_grad_()
            views = (picture, blur(picture))
            away = [
                (net.embed(view) - at).square().sum()
                for net, at in zip(nets, own, strict=True)
                for view in views
            ]
            gain = torch.stack(away).mean() - h["alpha"] * perceptual(early(nets, picture), maps).sum()
            (gradient,) = torch.autograd.grad(gain, picture)
            picture = (picture.detach() + h["lr"] * gradient.sign()).clamp(0, 1)
        return picture


def blur(images: Tensor) -> Tensor:
    """Gaussian blur as the authors' at 112 pixels, of sigma 3 and a window of 7; scaled with the picture."""
    scale = images.shape[-1] / 112
    radius = max(1, round(3 * scale))
    return gaussian_blur(images, [2 * radius + 1, 2 * radius + 1], [3 * scale, 3 * scale])


def early(nets: list[OracleNet], images: Tensor) -> list[Tensor]:
    """Activations ``(N, C, h, w)`` in the first layers of each net, scaled to length 1 at each place."""
    return [F.normalize(layer, dim=1) for net in nets for layer in net.activations(images, 2)]


def perceptual(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """LPIPS with weights of 1: the layers' mean squared distances over places, summed, ``(N,)``.

    Args:
        maps: of `early`.
        others: alike, of the pictures compared with.
    """
    apart = [(one - other).square().sum(1).mean((1, 2)) for one, other in zip(maps, others, strict=True)]
    return torch.stack(apart).sum(0)
