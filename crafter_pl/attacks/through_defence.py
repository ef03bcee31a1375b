"""Inversion through the published defence: looks for the picture that the defence turns into this feature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.adaptive import AdaptedAttack
from crafter_pl.attacks.surrogate import DefenseSurrogate
from crafter_pl.attacks.white_box import WhiteBoxAttack
from crafter_pl.crafting.inversion import InversionResult
from crafter_pl.data.transport import received
from crafter_pl.errors import UserError
from crafter_pl.stages.base import load_stage

OWN_KEYS = 2**40  # where the attacker's picture indices begin: those of the data set are its rows, far below


class ThroughDefenceAttack(AdaptedAttack, WhiteBoxAttack):
    """White-box inversion whose objective re-applies the defence, by nets that have learnt it (A1).

    ``z*(F) = argmin_z |P(E) - F|^2 + weight |E - Q(F)|^2`` with ``E = Enc(G(z))``, and looks at ``G(z*)``. P
    and Q are those of a `DefenseSurrogate`, which has learnt from public faces what the defence does to a
    feature and how to undo it. The starts are the amortizer's latents of ``Q(F)`` and of ``F``, then cold
    ones; each face keeps the best.

    The nets and not the defence itself: Crafter's gradient would run through the conjugate gradients of all
    its outer steps at once. But the defence may judge in the end (``verify``).

    For each defence it takes the surrogate that was trained against exactly that one, among the runs whose
    names begin with ``surrogate`` (see `AdaptedAttack`). On unprotected features it is the white-box attack.

    Args:
        ckpt: checkpoint of a `DefenseSurrogate`, such as one of its rounds; null finds it as said.
        name: how the report calls it.
        weight: of the second term; 0 leaves Q the start alone.
        verify: compare the starts by ``|protect(G(z)) - F|^2`` instead: crafts a picture for each start, with
            keys of the attacker's own.
        plain: settings of the `WhiteBoxAttack`; of ``restarts`` the first two are those from ``Q(F)`` and
            from ``F``.
    """

    version = 1
    stage_class = DefenseSurrogate

    def __init__(
        self,
        ckpt: str | None = None,
        name: str = "through_defence",
        weight: float = 4.0,
        verify: bool = False,
        **plain: Any,  # noqa: ANN401 (WhiteBoxAttack says)
    ) -> None:
        if weight < 0:
            raise UserError(f"attack {name}: weight {weight} must be at least 0")
        super().__init__(name=name, **plain)
        self.weight, self.verify = weight, verify
        self.ckpt, self.basic = ckpt, self.checkpoints

    @property
    def runs(self) -> str:
        """Those of the surrogate, whatever the attack's name."""
        return self.stage_class.stage_name

    def adapted(self, file: str) -> dict[str, str | None]:
        """Those of the inversion, and the surrogate's."""
        return {**self.basic, self.runs: file}

    def prepare(self, device: str) -> None:
        """Loads what inverts, and the nets that stand for the defence."""
        super().prepare(device)
        if self.target is not None:
            self.stage = load_stage(self.checkpoint(self.runs), DefenseSurrogate).to(device)

    def render(self, latent: Tensor) -> Tensor:
        """``Enc(G(z))``; what the defence makes of it beside it, where there is one."""
        seen = super().render(latent)
        return seen if self.target is None else self._join(self.stage.doing(seen), seen)

    def _join(self, crafted: Tensor, clean: Tensor) -> Tensor:
        """Both terms of the objective as one feature, ``(N, 2C, h, w)``."""
        return torch.cat([crafted, self.weight**0.5 * clean], 1)

    def _search(self, features: Tensor, index: Tensor) -> Tensor:
        if self.target is None:
            return super()._search(features, index)
        with torch.no_grad():
            self._undone = self.stage.undoing(features)
        return super()._search(self._join(features, self._undone), index)

    def _start(self, features: Tensor, index: Tensor, restart: int) -> Tensor:
        if self.target is None or self.amortizer is None or restart > 1:
            return super()._start(features, index, restart)
        source = self._undone if restart == 0 else features.chunk(2, 1)[0]
        return super()._start(source, index, 0)

    def _rank(self, result: InversionResult, features: Tensor, index: Tensor) -> Tensor:
        if self.target is None or not self.verify:
            return super()._rank(result, features, index)
        pictures = self._draw(features, result.z)
        with torch.enable_grad():
            protected = self.stage.defense.protect(pictures, OWN_KEYS + index, self.stage.options)
        protected = received(protected, self.stage.options.transport).to(features)
        return (protected - features.chunk(2, 1)[0]).square().flatten(1).sum(1)

    def settings(self) -> dict[str, Any]:
        """The white-box attack's own, and on crafted features what this one adds."""
        own = {} if self.target is None else {"weight": self.weight, "verify": self.verify}
        return {**super().settings(), **own}
