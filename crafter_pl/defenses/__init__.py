"""What leaves the edge: defences with one interface."""

from crafter_pl.defenses.adversarial_learning import AdversarialLearning
from crafter_pl.defenses.base import Defense, load_defense
from crafter_pl.defenses.crafter import Crafter

__all__ = ["AdversarialLearning", "Crafter", "Defense", "load_defense"]
