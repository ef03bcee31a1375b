"""An attack of a test's own, named in configs as `attack_spy.Spy`: remembers what it was told."""

import os
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


class Dies(Spy):
    """Ends the process of a certain rank instead."""

    def __init__(self, on_rank: str, name: str = "dies") -> None:
        super().__init__(name)
        self.on_rank = on_rank

    def reconstruct(self, features: Tensor) -> Tensor:
        if os.environ.get("LOCAL_RANK") == self.on_rank:
            os._exit(3)
        return super().reconstruct(features)
