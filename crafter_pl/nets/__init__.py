"""Plain torch networks: nothing here knows Lightning, files or data sets."""

from crafter_pl.nets.crafting_net import CraftingNet, CraftingPass
from crafter_pl.nets.critic import Critic, gradient_penalty
from crafter_pl.nets.decoder import AnswersDecoder, FeatureMap, build_decoder
from crafter_pl.nets.encoder import SplitClassifier
from crafter_pl.nets.fold import fold_batchnorm, freeze
from crafter_pl.nets.generator import AmortizerNet, Enlarged, Generator, ImageEncoder, build_generator
from crafter_pl.nets.inception import InceptionFeatures
from crafter_pl.nets.mutual import MutualInformation
from crafter_pl.nets.oracle import CosineHead, FeatureHead, OracleNet, to_grey
from crafter_pl.nets.pruner import ChannelPruner
from crafter_pl.nets.style import StyleGenerator
from crafter_pl.nets.syncbn import SyncBatchNorm2d, synchronised
from crafter_pl.nets.wrapped import Bfloat16, Noisy, bf16_is_slow

__all__ = [
    "AmortizerNet",
    "AnswersDecoder",
    "Bfloat16",
    "ChannelPruner",
    "CosineHead",
    "CraftingNet",
    "CraftingPass",
    "Critic",
    "Enlarged",
    "FeatureHead",
    "FeatureMap",
    "Generator",
    "ImageEncoder",
    "InceptionFeatures",
    "MutualInformation",
    "Noisy",
    "OracleNet",
    "SplitClassifier",
    "StyleGenerator",
    "SyncBatchNorm2d",
    "bf16_is_slow",
    "build_decoder",
    "build_generator",
    "fold_batchnorm",
    "freeze",
    "gradient_penalty",
    "synchronised",
    "to_grey",
]
