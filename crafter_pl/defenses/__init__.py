"""What leaves the edge: defences with one interface."""

from crafter_pl.defenses.base import Defense, load_defense
from crafter_pl.defenses.baselines.adversarial_learning import AdversarialLearning
from crafter_pl.defenses.baselines.cem import Cem
from crafter_pl.defenses.baselines.disco import Disco
from crafter_pl.defenses.baselines.fawkes import Fawkes
from crafter_pl.defenses.baselines.lowkey import LowKey
from crafter_pl.defenses.baselines.noise import Noise
from crafter_pl.defenses.baselines.nopeek import NoPeek
from crafter_pl.defenses.baselines.tiprdc import Tiprdc
from crafter_pl.defenses.certified import Certified
from crafter_pl.defenses.crafter import Crafter
from crafter_pl.defenses.crafter_generator import CrafterGenerator
from crafter_pl.defenses.crafter_variants import (
    Answers,
    CrafterFast,
    CrafterReference,
    CrafterVariant,
    CrafterZ,
)
from crafter_pl.defenses.options import ProtectOptions

__all__ = [
    "AdversarialLearning",
    "Answers",
    "Cem",
    "Certified",
    "Crafter",
    "CrafterFast",
    "CrafterGenerator",
    "CrafterReference",
    "CrafterVariant",
    "CrafterZ",
    "Defense",
    "Disco",
    "Fawkes",
    "LowKey",
    "NoPeek",
    "Noise",
    "ProtectOptions",
    "Tiprdc",
    "load_defense",
]
