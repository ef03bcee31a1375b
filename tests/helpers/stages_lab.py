"""What a stage makes of keyed pictures, and the figures of its run."""

import csv

import torch
from experiment import Told

from crafter_pl.attacks import BlackBox
from crafter_pl.stages import Amortizer, Embedder, GanPrior, IdentityOracle, TaskModel


def pictures(count=4, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(stage):
    """What others ask a stage for."""
    images = pictures()
    if isinstance(stage, TaskModel):
        return [stage.edge(images), stage.cloud(stage.edge(images))]
    if isinstance(stage, GanPrior):
        z = torch.randn(4, stage.latent_dim, generator=torch.Generator().manual_seed(1))
        return [stage.generator(z), stage.critic(images)]
    if isinstance(stage, IdentityOracle):
        return [stage.logits(images), stage.embed(images)]
    if isinstance(stage, Embedder):
        return [stage.embed(images)]
    if isinstance(stage, BlackBox):
        return [stage.reconstruct(stage.encode(images))]
    if isinstance(stage, Amortizer):
        return [stage(stage.upstream["task"].edge(images))]
    with torch.enable_grad():
        return [Told(stage).protect(images, torch.arange(4)), stage.critic(images).detach()]


def figures(run):
    """The last row of a run's metrics.csv: what was logged."""
    with open(run / "metrics.csv", newline="") as file:
        return {k: float(v) for k, v in list(csv.DictReader(file))[-1].items()}
