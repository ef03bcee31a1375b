"""An attack of a test's own, named in configs as `attack_spy.Spy`: remembers what it was told."""

from typing import Any

from torch import Tensor

from crafter_pl.attacks.base import Attack, Target

seen: list[Target | None] = []


class Spy(Attack):
    """Shows grey, whatever it sees."""

    adaptive = True

    def __init__(self, name: str = "spy") -> None:
        self.name, self.checkpoints = name, {}

    def aim(self, target: Target | None) -> None:
        super().aim(target)
        seen.append(target)

    def prepare(self, device: str) -> None:
        pass

    def reconstruct(self, features: Tensor) -> Tensor:
        return features.new_full((len(features), 3, 32, 32), 0.5)

    def settings(self) -> dict[str, Any]:
        return {}
