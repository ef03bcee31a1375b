"""Inversion through the published defence: looks for the picture that the defence turns into this feature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.base import Attack, Target
from crafter_pl.attacks.wrapper import Wrapper
from crafter_pl.errors import UserError
from crafter_pl.nets import fold_batchnorm

OWN_KEYS = 2**40  # where the attacker's picture indices begin: those of the data set are its rows, far below


class ThroughDefenceAttack(Wrapper):
    """Undoes the defence by a fixed-point iteration: the strongest knowledge that an attacker can have.

    A defence moves a feature from ``Enc(X)`` to ``F* = protect(X)``. The attacker guesses a picture ``X_k``
    (an inversion of the target ``T_k``, at first of ``F*``), protects the guess itself, and sees by how much
    the defence moved it: ``d_k = protect(X_k) - Enc(X_k)``. Taking that back gives the next target,
    ``T_k+1 = (1 - step) T_k + step (F* - d_k)``. At a fixed point ``protect(X) = F*`` if the inversion is
    exact. Each face keeps the guess with the smallest ``|protect(X_k) - F*|^2``.

    It needs nothing of a defence but `Defense.protect`, with pictures of the attacker's own: guesses made
    from public checkpoints and the feature. The keys of random numbers are not known to it: it queries with
    indices of its own, and takes the mean over ``queries`` of them.

    Features that are unprotected are inverted plainly, as in 0 rounds.

    **Cost:** every round protects ``queries`` pictures for each face, and the last guess is protected, too:
    for Crafter about the time of crafting the faces, ``rounds + 1`` times, besides as many inversions.

    Differentiating through Crafter instead is left out on purpose: a gradient of ``|protect(G(z)) - F*|^2``
    would run through the conjugate gradients of every outer step, which are second-order products
    themselves, for all outer steps at once; and with the displacement held constant in the gradient, it is
    this iteration.

    Args:
        base: the attack that inverts the targets; null is `WhiteBoxAttack` with its defaults.
        rounds: displacements taken back.
        step: how much of a displacement is taken back at a time, in (0, 2].
        queries: protected features of each guess, averaged; 1 is enough where the defence is deterministic.
        batch_size: pictures protected at a time.
        name: how the report calls it.
    """

    adaptive = True

    def __init__(
        self,
        base: Attack | None = None,
        rounds: int = 6,
        step: float = 1.0,
        queries: int = 1,
        batch_size: int = 64,
        name: str = "through_defence",
    ) -> None:
        if rounds < 0 or not 0 < step <= 2 or queries < 1 or batch_size < 1:
            raise UserError(
                f"attack {name}: rounds {rounds} must be at least 0, step {step} in (0, 2], queries "
                f"{queries} and batch_size {batch_size} at least 1"
            )
        super().__init__(base, name)
        self.rounds, self.step, self.queries, self.batch_size = rounds, step, queries, batch_size

    def aim(self, target: Target | None) -> None:
        """Takes note of the defence.

        Raises:
            UserError: it is not at hand.
        """
        if target is not None and target.defense is None:
            raise UserError(
                f"attack {self.name} goes through the defence {target.manifest['defense']}, whose checkpoint "
                "is not at hand: put it where the report's note says, or leave this attack out (--attacks)"
            )
        super().aim(target)

    def prepare(self, device: str) -> None:
        """Loads what inverts, and puts the defence onto ``device``."""
        super().prepare(device)
        self.device = device
        if self.target is not None:
            assert self.target.defense is not None
            defense = self.target.defense.to(device)
            self.encoder = fold_batchnorm(defense.edge_module()).to(device)

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> the pictures in [0, 1] that the defence would turn into them."""
        guess = self.base.reconstruct(features)
        if self.target is None:
            return guess
        best, best_error = guess, features.new_full((len(features),), torch.inf)
        target = features
        for turn in range(self.rounds + 1):
            protected = self._protect(guess)
            error = (protected - features).square().flatten(1).sum(1)
            better = error < best_error
            best = torch.where(better.view(-1, 1, 1, 1), guess, best)
            best_error = torch.where(better, error, best_error)
            if turn == self.rounds:
                break
            moved = protected - self._encode(guess)
            target = torch.lerp(target, features - moved, self.step)
            guess = self.base.reconstruct(target)
        return best

    def _protect(self, images: Tensor) -> Tensor:
        """The defence's features of the attacker's own pictures, mean over the queries, on the CPU."""
        assert self.target is not None and self.target.defense is not None
        parts = []
        for offset in range(0, len(images), self.batch_size):
            part = images[offset : offset + self.batch_size].to(self.device)
            own = OWN_KEYS + self.queries * torch.arange(offset, offset + len(part), device=self.device)
            total = torch.zeros((), device=self.device)
            for query in range(self.queries):
                with torch.enable_grad():
                    total = total + self.target.defense.protect(part, own + query).detach().float()
            parts.append((total / self.queries).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        return torch.cat([self.encoder(part.to(self.device)).cpu() for part in images.split(self.batch_size)])

    def settings(self) -> dict[str, Any]:
        """Everything that changes a reconstruction, the hash and the settings of the defence among it."""
        own = {name: getattr(self, name) for name in ("rounds", "step", "queries", "batch_size")}
        if self.target is not None:
            assert self.target.defense is not None
            own["defense"] = self.target.defense.weights_hash()
            own["defense_settings"] = self.target.defense.protection()
        return {**own, **super().settings()}
