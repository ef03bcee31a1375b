"""What is measured: a pure function for each figure, and a thin torchmetrics `Metric` where stages log it."""

from crafter_pl.metrics.attributes import AttributeAUC, attribute_auc, attribute_loss
from crafter_pl.metrics.bootstrap import Bootstrapped, Estimate, IdentityBootstrap, mean_of
from crafter_pl.metrics.identity import (
    FAR,
    TarAtFar,
    accepted,
    equal_error_rate,
    identity_similarity,
    log_odds,
    person_means,
    tar_at_far,
    topk_hits,
    worst_case_chance,
)
from crafter_pl.metrics.image import lpips, psnr, ssim

__all__ = [
    "FAR",
    "AttributeAUC",
    "Bootstrapped",
    "Estimate",
    "IdentityBootstrap",
    "TarAtFar",
    "accepted",
    "attribute_auc",
    "attribute_loss",
    "equal_error_rate",
    "identity_similarity",
    "log_odds",
    "lpips",
    "mean_of",
    "person_means",
    "psnr",
    "ssim",
    "tar_at_far",
    "topk_hits",
    "worst_case_chance",
]
