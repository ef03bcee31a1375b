"""An attack of one's own that adapts: a linear decoder, learnt from faces that the defence has protected."""

import torch
from torch import Tensor

from crafter_pl.attacks.base import Attack, Target
from crafter_pl.errors import UserError
from crafter_pl.stages import GanPrior, TaskModel, load_stage


class LinearDecoder(Attack):
    """Queries the defence with a public prior's faces; ridge regression from feature to picture."""

    adaptive = True

    def __init__(self, pairs: int = 256, ridge: float = 0.1, name: str = "linear") -> None:
        self.pairs, self.ridge, self.name = pairs, ridge, name
        self.checkpoints = {"task": None, "prior": None}  # the experiment's own

    def aim(self, target: Target | None) -> None:
        """Refuses a defence that is not at hand."""
        super().aim(target)
        if target is not None and target.defense is None:
            raise UserError(f"attack {self.name}: give the defence's checkpoint (--defenses)")

    def prepare(self, device: str) -> None:
        """Draws faces, has them protected by a seed and keys of its own, and learns."""
        prior, target = load_stage(self.checkpoint("prior"), GanPrior), self.target
        z = torch.randn(self.pairs, prior.latent_dim, generator=torch.Generator().manual_seed(0))
        faces = [prior.generator(part).detach() for part in z.split(64)]
        if target is None:  # unprotected features: nothing to adapt to
            edge = load_stage(self.checkpoint("task"), TaskModel).to(device).edge
            seen = [edge(part.to(device)) for part in faces]
        else:  # the data set's pictures have small keys
            pairs = zip(faces, torch.arange(2**40, 2**40 + self.pairs, device=device).split(64), strict=True)
            seen = [target.defense.protect(part.to(device), i, target.options) for part, i in pairs]
        x, y = (torch.cat(parts).detach().cpu().double().flatten(1) for parts in (seen, faces))
        self.shape, self.mean, self.face, self.seen = faces[0].shape[1:], x.mean(0), y.mean(0), x - x.mean(0)
        gram, power = self.seen @ self.seen.T, self.ridge * self.seen.square().sum(1).mean()
        self.weights = torch.linalg.solve(gram + power * torch.eye(self.pairs), y - self.face)

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features `(N, C, h, w)` -> pictures `(N, 3, S, S)` in [0, 1], on the CPU."""
        made = (features.flatten(1).cpu().double() - self.mean) @ self.seen.T @ self.weights + self.face
        return made.clamp(0, 1).float().view(-1, *self.shape)

    def settings(self) -> dict[str, object]:
        """Everything that changes a reconstruction."""
        return {"pairs": self.pairs, "ridge": self.ridge}
