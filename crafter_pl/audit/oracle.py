"""The oracle in the attackers' own domain. It stands here, not among the stages, since it needs an attack."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.black_box import BlackBox
from crafter_pl.limits import ClosedUnitInterval
from crafter_pl.stages import IdentityOracle, Upstream, load_stage, read_checkpoint


class ReconstructionOracle(IdentityOracle):
    """An oracle that has learnt what reconstructions of the private people look like.

    A recogniser of clean pictures may miss a person whom a reconstruction does show, only because of the
    decoder's blur. This one learns from pictures of ``private_train`` (and public people), a share of them
    passed through "encoder, then decoder": unprotected features, decoded by the black-box attack.

    Args:
        black_box_ckpt: the decoder and, through it, the encoder; null finds the experiment's own.
        reconstructed: share of the training pictures that are reconstructions, in [0, 1]; the others are
            originals.
        options: those of `IdentityOracle`.
    """

    decoder = Upstream(BlackBox, "black_box")  # the frozen decoder, with the encoder upstream of it

    def __init__(
        self,
        black_box_ckpt: str | None = None,
        reconstructed: ClosedUnitInterval = 0.5,
        **options: Any,  # noqa: ANN401 (of many types)
    ) -> None:
        super().__init__(**options)

    @torch.no_grad()
    def shown(self, images: Tensor) -> Tensor:
        """Passes a random share of the pictures ``(N, 3, H, W)`` through encoder and decoder."""
        chosen = torch.rand(len(images), device=images.device) < self.hparams["reconstructed"]
        made = self.decoder.reconstruct(self.decoder.encode(images)).to(images.dtype)
        return torch.where(chosen[:, None, None, None], made, images)


def load_oracle(path: str | Path) -> IdentityOracle:
    """Rebuilds an oracle of either kind from its checkpoint, frozen.

    Raises:
        UserError: the file is missing, damaged, or not of an oracle.
    """
    kinds = {cls.__name__: cls for cls in (IdentityOracle, ReconstructionOracle)}
    checkpoint = read_checkpoint(path, "oracle")
    return load_stage(path, kinds.get(str(checkpoint.get("stage_class")), IdentityOracle), checkpoint)
