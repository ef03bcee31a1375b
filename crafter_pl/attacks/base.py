"""The one interface of attacks: features in, pictures out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from crafter_pl.errors import UserError
from crafter_pl.stages.base import sha256

if TYPE_CHECKING:
    from crafter_pl.defenses.base import Defense


@dataclass(frozen=True)
class Target:
    """What an attacker may know of the defence behind the features: it is published, its keys are not.

    Attributes:
        manifest: the feature store's manifest: the defence, its settings in force, the hash of its weights.
        defense: the published defence with those settings in force, to be queried with public pictures or
            differentiated through; None if its checkpoint is not at hand.
    """

    manifest: dict[str, Any]
    defense: Defense | None


class Attack(ABC):
    """An attack reconstructs pictures from features alone.

    What it knows besides them is what its constructor names: checkpoints trained on public people. It is
    never handed a private picture, a label or an unprotected private feature together with its protected one.
    """

    name: str
    checkpoints: dict[str, str | None]
    target: Target | None = None

    def aim(self, target: Target | None) -> None:
        """Told before each set of features which defence made it; None: these features are unprotected.

        Called before `describe` and `prepare`. An attack that adapts chooses here what fits the defence; by
        default an attack only takes note.
        """
        self.target = target

    def observe(self, queries: Tensor) -> Tensor:
        """What the attack makes of several protected features of each face, ``(K, N, C, h, w)``.

        Returns:
            ``(N, C, h, w)``: by default the first query alone, as if there had been no other.
        """
        return queries[0]

    def resolve(self, experiment_dir: str | Path) -> None:
        """Fills checkpoints that were left null with those of the experiment's own stages."""
        for stage, path in self.checkpoints.items():
            if path is None:
                self.checkpoints[stage] = str(Path(experiment_dir) / stage / "checkpoints" / "best.ckpt")

    def checkpoint(self, stage: str) -> str:
        """Path of the checkpoint of ``stage``.

        Raises:
            UserError: it was left null, and `resolve` has not filled it.
        """
        path = self.checkpoints[stage]
        if path is None:
            raise UserError(
                f"attack {self.name} has no checkpoint of stage {stage!r}: give its path, or call "
                "resolve(experiment_dir) before prepare()"
            )
        return path

    @abstractmethod
    def prepare(self, device: str) -> None:
        """Loads the nets onto ``device``; after `resolve`."""

    @abstractmethod
    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> pictures ``(N, 3, S, S)`` in [0, 1], on the CPU."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The attack's own settings, as JSON takes them."""

    def describe(self) -> dict[str, Any]:
        """Name, settings and the SHA-256 of every checkpoint: what results depend on besides features."""
        files = {stage: sha256(path) for stage, path in self.checkpoints.items() if path is not None}
        return {
            "name": self.name,
            "class": type(self).__name__,
            "settings": self.settings(),
            "checkpoints": files,
        }
