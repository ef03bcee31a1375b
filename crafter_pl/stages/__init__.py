"""LightningModules that are trained before the game: task, prior, amortizer, oracle, embedder."""

from crafter_pl.files import sha256
from crafter_pl.stages.amortizer import Amortizer
from crafter_pl.stages.augment import flip, warp
from crafter_pl.stages.base import Stage, load_stage, stages
from crafter_pl.stages.checkpoints import named_run, read_checkpoint
from crafter_pl.stages.cloud import CloudClassifier
from crafter_pl.stages.embedder import Embedder
from crafter_pl.stages.oracle import IdentityOracle
from crafter_pl.stages.prior import GanPrior
from crafter_pl.stages.quality import relative_error
from crafter_pl.stages.recogniser import PrivateRecogniser
from crafter_pl.stages.scored import Scored
from crafter_pl.stages.task import TaskModel
from crafter_pl.stages.upstream import Upstream

__all__ = [
    "Amortizer",
    "CloudClassifier",
    "Embedder",
    "GanPrior",
    "IdentityOracle",
    "PrivateRecogniser",
    "Scored",
    "Stage",
    "TaskModel",
    "Upstream",
    "flip",
    "load_stage",
    "named_run",
    "read_checkpoint",
    "relative_error",
    "sha256",
    "stages",
    "warp",
]
