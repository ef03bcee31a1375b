"""What can be seen in the features: attacks with one interface, each handed only what it may know."""

from crafter_pl.attacks.averaged import AveragedAttack
from crafter_pl.attacks.base import Attack, Target
from crafter_pl.attacks.black_box import BlackBox, DecoderAttack
from crafter_pl.attacks.feature_to_id import FeatureToID, FeatureToIdentity
from crafter_pl.attacks.gallery_lda import GalleryLDA, LinkLDA
from crafter_pl.attacks.hybrid import HybridAttack
from crafter_pl.attacks.layerwise import LayerwiseAttack
from crafter_pl.attacks.reader import Gallery, Reader, Ruler
from crafter_pl.attacks.through_defence import ThroughDefenceAttack
from crafter_pl.attacks.watch_list import Link, WatchList
from crafter_pl.attacks.white_box import WhiteBoxAttack

__all__ = [
    "Attack",
    "AveragedAttack",
    "BlackBox",
    "DecoderAttack",
    "FeatureToID",
    "FeatureToIdentity",
    "Gallery",
    "GalleryLDA",
    "HybridAttack",
    "LayerwiseAttack",
    "Link",
    "LinkLDA",
    "Reader",
    "Ruler",
    "Target",
    "ThroughDefenceAttack",
    "WatchList",
    "WhiteBoxAttack",
]
