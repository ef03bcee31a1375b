"""What can be seen in the features: attacks with one interface, each handed only what it may know."""

from crafter_pl.attacks.base import Attack, Ruler, Target
from crafter_pl.attacks.black_box import BlackBox, DecoderAttack
from crafter_pl.attacks.feature_to_id import FeatureToID, FeatureToIdentity
from crafter_pl.attacks.white_box import WhiteBoxAttack

__all__ = [
    "Attack",
    "BlackBox",
    "DecoderAttack",
    "FeatureToID",
    "FeatureToIdentity",
    "Ruler",
    "Target",
    "WhiteBoxAttack",
]
