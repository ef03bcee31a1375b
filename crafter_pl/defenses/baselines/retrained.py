"""What defences share that train the backend anew: a game on public faces, and its own encoder and cloud."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crafter_pl.defenses.base import Defense
from crafter_pl.defenses.options import OptionsT
from crafter_pl.nets import SplitClassifier
from crafter_pl.stages.augment import flip


class Game(Defense[OptionsT]):
    """A defence that learns on public faces in turns, against an adversary if there is one.

    A subclass sets `net` and, after ``super().__init__()``, perhaps `adversary`; `utility` collects
    the cloud's answers in validation. Among its init arguments are ``lr``, with an adversary
    ``adversary_steps``.

    On several processes with an adversary: ``--trainer.strategy ddp_find_unused_parameters_true``.
    """

    net: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.adversary: nn.Module | None = None
        self.utility = self.task.answers.metric()

    def defenders(self) -> list[nn.Module]:
        """The nets that the defence trains."""
        return [self.net]

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """Adam for the defence, and for the adversary."""
        own = [p for net in self.defenders() for p in net.parameters()]
        optimizers = [torch.optim.Adam(own, lr=self.hparams["lr"])]
        if self.adversary is not None:
            lr = self.hparams.get("adversary_lr", 1e-3)
            optimizers.append(torch.optim.Adam(self.adversary.parameters(), lr=lr))
        return optimizers

    def turn(self, player: int, loss: Callable[[], Tensor], times: int = 1) -> None:
        """Updates of the defence (player 0) or of the adversary (1), by a loss that is computed for each."""
        optimizers = self.optimizers()
        optimizer: Any = optimizers[player] if isinstance(optimizers, list) else optimizers
        with self.toggled_optimizer(optimizer):
            for _ in range(times):
                found = loss()
                optimizer.zero_grad()
                self.manual_backward(found)
                optimizer.step()


class Retrained(Game[OptionsT]):
    """A defence that trains encoder and cloud classifier itself, from the task model's, on public faces.

    Each batch gives the adversary, if there is one, ``adversary_steps`` updates on `spy`, then encoder and
    classifier one on `defend`. Unlike Crafter such a defence changes the backend: a service would have to
    roll out encoder *and* classifier.

    A subclass sets `recorded`, implements `defend`; one with an adversary also sets `adversary` and
    implements `spy`. What leaves the edge is `features`. Among its init arguments is ``task_ckpt``.

    On several processes: ``--trainer.strategy ddp_find_unused_parameters_true``.
    """

    retrains = ("encoder", "cloud")

    def __init__(self) -> None:
        super().__init__()
        self.net: SplitClassifier = copy.deepcopy(self.task.net).requires_grad_(True).train()

    # ---- the game -----------------------------------------------------------------------------------------
    def features(self, images: Tensor) -> Tensor:
        """Pictures ``(N, 3, H, W)`` -> what leaves the edge, ``(N, C, h, w)``, differentiable."""
        return self.net.encode(images)

    def to_cloud(self, features: Tensor) -> Tensor:
        """What the classifier gets of the features."""
        return features

    def spy(self, features: Tensor, images: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The adversary's loss."""
        raise TypeError(f"{type(self).__name__} has an adversary, and does not implement spy")

    def defend(
        self, features: Tensor, images: Tensor, batch: dict[str, Tensor], task: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What encoder and classifier minimise.

        Args:
            features: of `features`.
            images: the pictures, mirrored at random.
            batch: with ``attributes`` and ``identity``.
            task: loss of the cloud's answers; without labels from the task model's own.

        Returns:
            The loss, and figures to log beside it.
        """
        raise TypeError(f"{type(self).__name__} does not implement defend")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The adversary's updates, then one of the defence."""
        images, logged = flip(batch["image"]), {}
        aims = self.task.answers.aims(self.task.truth(batch))
        if self.adversary is not None:
            with torch.no_grad():
                seen = self.features(images)
            self.turn(1, lambda: self.spy(seen, images, batch), self.hparams["adversary_steps"])

        def defended() -> Tensor:
            features = self.features(images)
            answers = self.net.cloud(self.to_cloud(features))
            logged["task"] = self.task.answers.loss(answers, aims)
            loss, figures = self.defend(features, images, batch, logged["task"])
            logged.update(figures)
            return loss

        self.turn(0, defended)
        self.log_dict({f"train/{key}": value for key, value in logged.items()}, prog_bar=True)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Its own classifier's scores, and what `watch` finds, on held-out public people."""
        features = self.to_cloud(self.features(batch["image"]))
        self.utility.update(self.net.cloud(features), self.task.truth(batch))
        self.log(f"val/{self.task.answers.main}", self.utility, prog_bar=True)
        figures = {f"val/{key}": value for key, value in self.watch(features, batch).items()}
        self.log_dict(figures, batch_size=len(features))

    def watch(self, features: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """More figures for validation: by default none."""
        return {}

    # ---- predict ------------------------------------------------------------------------------------------
    @torch.no_grad()
    def protect(self, images: Tensor, index: Tensor, options: OptionsT) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)`` of its own encoder."""
        return self.features(images)

    def edge_module(self) -> nn.Module:
        """Its own encoder."""
        return self.net.encoder_module()

    def edge_graph(self, options: OptionsT) -> nn.Module | None:
        """Its own encoder: what it gives is protected."""
        return self.edge_module()

    def cloud_module(self) -> nn.Module:
        """Its own classifier."""
        return self.net.cloud
