"""What image cloaks share: the picture is changed a little before the encoder, and the backend not at all."""

import torch
from torch import Tensor

from crafter_pl.defenses.options import OptionsT
from crafter_pl.defenses.untrained import Untrained
from crafter_pl.nets import OracleNet
from crafter_pl.stages.embedder import Embedder


class Cloak(Untrained[OptionsT]):
    """A defence that changes the picture within a small visible budget: features are ``Enc(cloak(X))``.

    Encoder and classifier stay as they are. A cloak is made against face recognisers of public people, and
    should carry over to others. Each picture has a cloak of its own, whatever else is in its batch.

    A subclass declares the embedders (`Upstream`), sets `recorded` and
    `tradeoff`, and implements `search`. `fit` shows the cloaks of a few public faces; a subclass may learn in
    `training_step`.
    """

    def embedders(self) -> list[OracleNet]:
        """The embedders' frozen nets."""
        return [stage.net for stage in self.upstream.values() if isinstance(stage, Embedder)]

    def search(self, image: Tensor, options: OptionsT) -> Tensor:
        """One picture ``(1, 3, H, W)`` in [0, 1] -> its cloaked picture, alike and without gradients."""
        raise TypeError(f"{type(self).__name__} does not implement search")

    def cloak(self, images: Tensor, options: OptionsT) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> cloaked pictures, alike and without gradients.

        One after the other, as an edge device has them. In a batch the rounding of a picture hangs on the
        others, and the sign of a small gradient on rounding: a cloak would be another in another batch.
        """
        # a copy begins at an aligned address, wherever in the batch the picture was
        return torch.cat([self.search(image.clone(), options) for image in images.split(1)])

    def protect(self, images: Tensor, index: Tensor, options: OptionsT) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)`` of the cloaked ones."""
        cloaked = self.cloak(images, options)
        with torch.no_grad():
            return self.task.edge(cloaked)

    # ---- fit ----------------------------------------------------------------------------------------------
    def on_validation_epoch_end(self) -> None:
        """Cloaks a few held-out public faces, logs how visible it is and how far it goes, and draws them.

        ``val/dssim`` is the mean DSSIM, ``val/cosine`` that of an embedder's cosine of picture and cloak.
        """
        images = self.spread_images(self.val_split, 8)
        cloaked = self.cloak(images, self.options())
        with torch.no_grad():
            pairs = [(net.embed(images), net.embed(cloaked)) for net in self.embedders()]
        cosine = torch.stack([(one * other).sum(1) for one, other in pairs]).mean()
        self.log_dict({"val/dssim": dssim(cloaked, images).mean(), "val/cosine": cosine}, prog_bar=True)
        self.log_grid("original_cloaked", torch.cat([images, cloaked]), columns=len(images))


def dssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural dissimilarity ``(1 - SSIM) / 2`` of each picture to its original, ``(N,)``, 0 if equal.

    The usual Gaussian window (sigma 1.5), but cut off at the borders: the usual SSIM leaves 5 pixels at each
    side nearly out, over half of a picture of 32, and a cloak would hide there.

    Args:
        images: ``(N, 3, S, S)`` in [0, 1].
        originals: alike.
    """
    place = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype)
    weights = torch.softmax(-(place[:, None] - place).square() / (2 * 1.5**2), 1)
    products = (images, originals, images.square(), originals.square(), images * originals)
    x, y, xx, yy, xy = (weights @ product @ weights.T for product in products)
    light = (2 * x * y + 0.01**2) / (x.square() + y.square() + 0.01**2)
    structure = (2 * (xy - x * y) + 0.03**2) / (xx - x.square() + yy - y.square() + 0.03**2)
    return (1 - (light * structure).mean((1, 2, 3))) / 2
