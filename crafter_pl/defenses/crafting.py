"""What defences share that craft: their options, and the frozen nets that crafting walks through."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch

from crafter_pl.crafting.settings import CraftNets, CraftSettings, Precision
from crafter_pl.defenses.options import KeyedOptions
from crafter_pl.errors import UserError
from crafter_pl.nets import Bfloat16, bf16_is_slow, freeze
from crafter_pl.stages.amortizer import Amortizer
from crafter_pl.stages.prior import GanPrior
from crafter_pl.stages.task import TaskModel


@dataclass(frozen=True, kw_only=True)
class CraftOptions(KeyedOptions):
    """Of a defence that crafts by Algorithm 1 or a relative of it.

    Args:
        beta: weight of utility against privacy.
        steps: outer crafting steps.
        precision: of crafting.
    """

    beta: float
    steps: int
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Refuses what would not protect."""
        if self.steps < 1:
            raise UserError(
                f"{self.steps} crafting steps would send the feature as good as unprotected: give at "
                "least 1 (--protect.steps)"
            )

    def name(self, critic: str = "fixed") -> str:
        """``beta1`` and the like; an adapting critic and another precision than float32 are named."""
        marks = [critic] * (critic != "fixed") + [self.precision] * (self.precision != "float32")
        return "-".join([f"beta{self.beta:g}", *marks])

    def on(self, settings: CraftSettings) -> CraftSettings:
        """Algorithm 1's settings with these in their place."""
        return replace(settings, beta=self.beta, steps=self.steps, precision=self.precision)


def trained_options(settings: CraftSettings) -> dict[str, Any]:
    """What Algorithm 1's settings say of `CraftOptions`."""
    return {"beta": settings.beta, "steps": settings.steps, "precision": settings.precision}


class FrozenNets:
    """`frozen(device, dtype)` gives `CraftNets`, batch norms folded; those of an earlier device are dropped.

    Args:
        task: the encoder and the cloud's classifier.
        prior: the generator.
        amortizer: where an inversion starts; None where nothing is inverted.
    """

    def __init__(self, task: TaskModel, prior: GanPrior, amortizer: Amortizer | None = None) -> None:
        self.task, self.prior, self.amortizer = task, prior, amortizer
        self._made: dict[tuple[torch.device, torch.dtype], CraftNets] = {}

    def __call__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> CraftNets:
        """The nets; with bfloat16 the amortizer stays in float32."""
        self._made = {key: nets for key, nets in self._made.items() if key[0] == device}
        if (device, dtype) not in self._made:
            narrow = dtype == torch.bfloat16
            if narrow and bf16_is_slow(device.type):
                print("note: no instructions for bf16 here: crafting in float32 is much faster", flush=True)
            wide = torch.float32 if narrow else dtype
            walked = (self.task.net.encoder_module(), self.prior.generator, self.task.net.cloud)
            nets = [freeze(net).to(device, wide) for net in walked]
            if device.type == "cpu":  # half the time for a single picture's answers (docs/LOG.md)
                nets[2] = nets[2].to(memory_format=torch.channels_last)
            encoder, generator, classifier = (Bfloat16(net) for net in nets) if narrow else nets
            amortizer = None if self.amortizer is None else copy.deepcopy(self.amortizer).to(device, wide)
            self._made[device, dtype] = CraftNets(encoder, generator, amortizer, classifier)
        return self._made[device, dtype]
