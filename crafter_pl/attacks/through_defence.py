"""Inversion through the published defence: looks for the picture that the defence turns into this feature."""

from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.adapted import AdaptedAttack
from crafter_pl.attacks.surrogate import DefenseSurrogate
from crafter_pl.attacks.white_box import WhiteBoxAttack
from crafter_pl.crafting.inversion import InversionResult, Objective
from crafter_pl.data.transport import received
from crafter_pl.errors import UserError

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
        self.ckpt, self.basic = ckpt, WhiteBoxAttack(name=name, **plain)

    @property
    def runs(self) -> str:
        """Those of the surrogate, whatever the attack's name."""
        return self.stage_class.stage_name

    def adapted(self, file: str) -> dict[str, str | None]:
        """Those of the inversion, and the surrogate's."""
        return {**self.basic.checkpoints, self.runs: file}

    def prepare(self, device: str) -> None:
        """Loads what inverts, and the nets that stand for the defence."""
        super().prepare(device)
        WhiteBoxAttack.prepare(self, device)

    def objective(self, features: Tensor) -> Objective:
        """``|P(E) - F|^2 + weight |E - Q(F)|^2`` as a function of ``E``."""
        through, near = super().objective(features), super().objective(self._undo(features))
        return lambda seen: through(self.net.doing(seen)) + self.weight * near(seen)

    @torch.no_grad()
    def _undo(self, features: Tensor) -> Tensor:
        return self.net.undoing(features)

    def _start(self, features: Tensor, index: Tensor, restart: int) -> Tensor:
        if self.amortizer is None or restart > 1:
            return super()._start(features, index, restart)
        return super()._start(self._undo(features) if restart == 0 else features, index, 0)

    def _rank(self, result: InversionResult, features: Tensor, index: Tensor) -> Tensor:
        if not self.verify:
            return super()._rank(result, features, index)
        pictures = self._draw(features, result.z)
        with torch.enable_grad():
            protected = self.net.defense.protect(pictures, OWN_KEYS + index, self.net.options)
        protected = received(protected, self.net.options.transport).to(features)
        return (protected - features).square().flatten(1).sum(1)

    def settings(self) -> dict[str, Any]:
        """The white-box attack's own, and what this one adds."""
        return {**WhiteBoxAttack.settings(self), "weight": self.weight, "verify": self.verify}
