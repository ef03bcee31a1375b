"""LightningModules that are trained before the game: task, prior, amortizer, oracle, embedder."""

from crafter_pl.files import sha256
from crafter_pl.stages.amortizer import Amortizer
from crafter_pl.stages.base import Stage, load_stage
from crafter_pl.stages.cloud import CloudClassifier
from crafter_pl.stages.embedder import Embedder
from crafter_pl.stages.oracle import IdentityOracle
from crafter_pl.stages.prior import GanPrior
from crafter_pl.stages.task import TaskModel

__all__ = [
    "Amortizer",
    "CloudClassifier",
    "Embedder",
    "GanPrior",
    "IdentityOracle",
    "Stage",
    "TaskModel",
    "load_stage",
    "sha256",
]
