"""What defences share that craft: their options, and the frozen nets that crafting walks through."""

import copy
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from crafter_pl.crafting.settings import CraftNets, CraftSettings, Precision
from crafter_pl.defenses.base import Defense
from crafter_pl.defenses.options import KeyedOptions
from crafter_pl.limits import FromZero, PositiveInt, checked
from crafter_pl.nets import Bfloat16, bf16_is_slow, freeze
from crafter_pl.stages import GanPrior, TaskModel


@dataclass(frozen=True, kw_only=True)
class CraftOptions(KeyedOptions):
    """Of a defence that crafts by Algorithm 1 or a relative of it.

    Args:
        beta: weight of utility against privacy.
        steps: outer crafting steps.
        precision: of crafting.
    """

    beta: FromZero
    steps: PositiveInt
    precision: Precision = "float32"

    def marks(self) -> list[str]:
        """What a store's name says besides beta: another precision than float32."""
        return [self.precision] * (self.precision != "float32")

    def on(self, settings: CraftSettings) -> CraftSettings:
        """Algorithm 1's settings with these in their place."""
        return replace(settings, beta=self.beta, steps=self.steps, precision=self.precision)


CraftOptionsT = TypeVar("CraftOptionsT", bound=CraftOptions)


class Crafting(Defense[CraftOptionsT], Generic[CraftOptionsT]):
    """A defence that crafts by Algorithm 1 or a relative of it, by ``craft_settings`` or its own `constants`.

    Class attributes:
        counting: which of Algorithm 1's settings count, and are in the manifest.
    """

    options_class = CraftOptions
    unsaved = ("craft",)  # see `keep`
    counting: ClassVar[tuple[str, ...]] = tuple(one.name for one in fields(CraftSettings))

    def keep(self, craft: CraftSettings | dict[str, Any]) -> None:
        """Takes an init argument as ``craft_settings``; checkpoints hold it as plain values."""
        given = craft if isinstance(craft, dict) else asdict(craft)
        self.craft_settings = CraftSettings(**checked(CraftSettings, given, "--model.init_args.craft"))
        self.hparams["craft"] = asdict(self.craft_settings)

    def constants(self) -> CraftSettings:
        """Algorithm 1's settings, but for the options."""
        return self.craft_settings

    def trained_options(self) -> dict[str, Any]:
        """Those of Algorithm 1's settings, and its own."""
        craft = self.constants()
        own = {"beta": craft.beta, "steps": craft.steps, "precision": craft.precision}
        return {**own, **super().trained_options()}

    def settings_of(self, options: CraftOptionsT) -> CraftSettings:
        """Algorithm 1's settings in force."""
        return options.on(self.constants())

    def settings(self, options: CraftOptionsT) -> dict[str, Any]:
        """Algorithm 1's and its own, for the manifest."""
        craft = asdict(self.settings_of(options))
        return {**{name: craft[name] for name in self.counting}, **super().settings(options)}

    def store_name(self, options: CraftOptionsT) -> str:
        """``beta1`` and the like."""
        return "-".join([f"beta{options.beta:g}", *options.marks()])


class FrozenNets:
    """`frozen(device, dtype)` gives `CraftNets`, batch norms folded; those of an earlier device are dropped.

    Args:
        task: the encoder and the cloud's classifier.
        prior: the generator.
        amortizer: where an inversion starts; by default where nothing is inverted.
    """

    def __init__(self, task: TaskModel, prior: GanPrior, amortizer: nn.Module | None = None) -> None:
        self.task, self.prior, self.amortizer = task, prior, amortizer or nn.Identity()
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
            if device.type == "cpu":  # half the time for a single picture's answers (dev/LOG.md)
                nets[2] = nets[2].to(memory_format=torch.channels_last)
            encoder, generator, classifier = (Bfloat16(net) for net in nets) if narrow else nets
            amortizer = copy.deepcopy(self.amortizer).to(device, wide)
            self._made[device, dtype] = CraftNets(
                encoder, generator, amortizer, classifier, copy.deepcopy(self.task.answers).to(device)
            )
        return self._made[device, dtype]
