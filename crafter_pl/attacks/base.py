"""The one interface of attacks: features in, pictures out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor

from crafter_pl.errors import UserError
from crafter_pl.stages.base import sha256


class Attack(ABC):
    """An attack reconstructs pictures from features alone.

    What it knows besides them is what its constructor names: checkpoints trained on public people. It is
    never handed a private picture, a label or an unprotected private feature together with its protected one.
    """

    name: str
    checkpoints: dict[str, str | None]

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
