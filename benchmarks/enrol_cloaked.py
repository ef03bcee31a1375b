"""What cloaks were made for: a recogniser that learns people from cloaked pictures meets them uncloaked.

    python benchmarks/enrol_cloaked.py --data configs/small.yaml --experiment small \
        --cloaks "[fawkes-rho0.017, lowkey-alpha5]"

The experiment of Fawkes (USENIX Security 2020) and LowKey (ICLR 2021): whoever runs a recogniser enrols
private people, here with their private_test pictures, cloaked or not, and is shown clean ones, here those of
private_train. A face is named by the nearest centroid of embeddings: where its own person alone has cloaked,
as the authors do it, and where everybody has. The recognisers are the experiment's embedders, which have
learned public people only; the cloaks were made against one of them (Fawkes) or both.
"""

import sys
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn import functional as F

from crafter_pl.audit.show.table import Table, rate
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import check_several
from crafter_pl.defenses.base import load_defense
from crafter_pl.defenses.baselines.cloak import Cloak
from crafter_pl.errors import UserError
from crafter_pl.metrics import IdentityBootstrap
from crafter_pl.plugins import import_stages
from crafter_pl.progress import Steps
from crafter_pl.stages import Embedder, load_stage

_BATCH = 32


def enrol(
    data: FacesDataModule,
    cloaks: list[str],
    recognisers: list[str] | None = None,
    experiment: str = "synthetic",
    runs_dir: str = "runs",
    bootstrap: int = 1000,
) -> str:
    """Enrol cloaked pictures, name clean ones.

    Args:
        data: the faces, split as the stages were trained with.
        cloaks: names of runs of Fawkes or LowKey.
        recognisers: names of runs of embedders (default: embedder and embedder_plain).
        experiment: folder of the runs under runs_dir.
        runs_dir: folder of all runs.
        bootstrap: resamples of people.

    Returns:
        A Markdown table: share of clean pictures that are named right, by each recogniser, for what it was
        enrolled with; 95 % intervals over people.

    Raises:
        UserError: a checkpoint that is missing, or of something else.
    """
    home = Path(runs_dir) / experiment
    data.setup("test")
    enrolled, probes = data.rows("private_test"), data.rows("private_train")
    check_several(len(enrolled["identity"].unique()), "--data.private_people")
    nets = {
        name: load_stage(home / name / "checkpoints" / "best.ckpt", Embedder)
        for name in recognisers or ["embedder", "embedder_plain"]
    }
    galleries = {"uncloaked": (enrolled["image"], False)}
    for name in cloaks:
        cloak = load_defense(home / name / "checkpoints" / "best.ckpt")
        if not isinstance(cloak, Cloak):
            raise UserError(f"--cloaks {name}: {type(cloak).__name__} is not a cloak (Fawkes, LowKey)")
        parts, steps = [], Steps(name, len(enrolled["image"]), unit="pictures")
        for images in enrolled["image"].split(_BATCH):
            parts.append(cloak.cloak(images, cloak.options()))
            steps.step(len(images))
        steps.close()
        cloaked = torch.cat(parts)
        galleries |= {f"{name}, one person": (cloaked, True), f"{name}, everybody": (cloaked, False)}
    boot = IdentityBootstrap(probes["identity"].numpy(), bootstrap)
    right = {
        name: [named(net, pictures, enrolled, probes, alone) for net in nets.values()]
        for name, (pictures, alone) in galleries.items()
    }
    lines = [[name, *(rate(boot.mean(hits).estimate()) for hits in own)] for name, own in right.items()]
    return Table(["enrolled with", *nets], lines).markdown() + "\n"


@torch.no_grad()
def named(
    net: Embedder, gallery: Tensor, enrolled: dict[str, Tensor], probes: dict[str, Tensor], alone: bool
) -> Tensor:
    """1 where the nearest centroid of the people enrolled is the probe's own, else 0, ``(N,)``.

    Args:
        net: embeds pictures.
        gallery: what is enrolled in place of the pictures of ``enrolled``, alike.
        enrolled: clean pictures (``image``, ``identity``).
        probes: clean pictures to be named, of the same people.
        alone: only the probe's own person is enrolled by the gallery's pictures, all others by clean ones.
    """
    known, group = enrolled["identity"].unique(return_inverse=True)

    def embed(images: Tensor) -> Tensor:
        return torch.cat([net.embed(batch) for batch in images.split(_BATCH)])

    def centroids(images: Tensor) -> Tensor:
        embeddings = embed(images)
        sums = embeddings.new_zeros(len(known), embeddings.shape[1]).index_add(0, group, embeddings)
        return F.normalize(sums)

    shown, own = embed(probes["image"]), torch.searchsorted(known, probes["identity"])
    cloaked = centroids(gallery)
    cosines = shown @ (centroids(enrolled["image"]) if alone else cloaked).T
    cosines[torch.arange(len(own)), own] = (shown * cloaked[own]).sum(1)
    return (cosines.argmax(1) == own).float()


def main(args: list[str] | None = None) -> int:
    """Prints the table that the command line asks for; 2 after a user's mistake."""
    import_stages()
    try:
        print(auto_cli(enrol, args=args, as_positional=False))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
