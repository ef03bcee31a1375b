"""What leaves the edge: defences with one interface."""

from crafter_pl.defenses.adversarial_learning import AdversarialLearning
from crafter_pl.defenses.answers import Answers
from crafter_pl.defenses.base import Defense, load_defense
from crafter_pl.defenses.cem import Cem
from crafter_pl.defenses.crafter import Crafter
from crafter_pl.defenses.crafter_generator import CrafterGenerator
from crafter_pl.defenses.crafter_variants import (
    CrafterFast,
    CrafterReference,
    CrafterVariant,
    CrafterZ,
)
from crafter_pl.defenses.disco import Disco
from crafter_pl.defenses.fawkes import Fawkes
from crafter_pl.defenses.lowkey import LowKey
from crafter_pl.defenses.noise import Noise
from crafter_pl.defenses.nopeek import NoPeek
from crafter_pl.defenses.tiprdc import Tiprdc

__all__ = [
    "AdversarialLearning",
    "Answers",
    "Cem",
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
    "Tiprdc",
    "load_defense",
]
