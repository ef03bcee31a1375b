"""Utility and leakage of certified messages over bits, epsilon and levels, by a trained head.

    python benchmarks/certificate_curve.py CHECKPOINT --data configs/celeba.yaml --bits "[1,2,3,4,5,6,8,10]"

No feature is crafted: the figures are of the messages themselves, which is all that a feature of the pool can
say. A row beside: the cloud's own answers and the head's, real numbers without a bound, read by linear
discriminant analysis.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import auto_cli
from torch import Tensor

from crafter_pl.attacks.gallery_lda import Discriminant
from crafter_pl.attacks.message import message_attackers
from crafter_pl.attacks.people import people_rows
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import Table, number, rate
from crafter_pl.certificate import Certificate, ceiling
from crafter_pl.crafting.channel import Channel
from crafter_pl.crafting.codebook import learn_messages
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses import Certified
from crafter_pl.errors import UserError
from crafter_pl.files import write_file
from crafter_pl.metrics import Bootstrapped, IdentityBootstrap, mean_of, person_means
from crafter_pl.stages import load_stage

HEAD = ["message", "bits", "mean AUC on the needs", "gallery names", "most exposed", "ceiling", "bound"]


def curve(
    checkpoint: str,
    *,
    data: str,
    bits: list[int] | None = None,
    epsilon: list[float] | None = None,
    levels: list[int] | None = None,
    floor: float = 0.002,
    gallery_images: int = 0,
    bootstrap: int = 1000,
    out: str | None = None,
) -> None:
    """Prints a table of all codebooks.

    Args:
        checkpoint: of a trained `Certified`: its needs and its head.
        data: config of the faces that it was trained on.
        bits: of codebooks.
        epsilon: of randomised response behind each.
        levels: of quantisers of each attribute.
        floor: see `Certified`.
        gallery_images: pictures of each person that attackers have; 0: all.
        bootstrap: resamples of people.
        out: file for the rows as JSON.
    """
    torch.set_num_threads(1)
    faces = FacesDataModule(**yaml.safe_load(Path(data).read_text(encoding="utf-8")))
    faces.setup()
    defense = load_stage(checkpoint, Certified)
    rows = faces.rows("private_test")
    gallery = faces.dataset("gallery").take(people_rows(faces, "gallery", gallery_images))
    answer, columns = defense.answering(), defense.columns
    own, its = (_answers(answer, one["image"]) for one in (rows, gallery))
    public = faces.dataset("public_train")
    known = torch.cat([_answers(answer, public.take(one)["image"]) for one in public.index.split(256)])
    cloud = torch.nn.Sequential(defense.task.net.encoder_module(), defense.task.net.cloud)
    clouds, theirs = (_answers(cloud, one["image"])[:, columns] for one in (rows, gallery))
    boot, identity = IdentityBootstrap(rows["identity"], bootstrap), rows["identity"]
    truth = rows["attributes"][:, columns]
    both = [i for i in range(len(columns)) if 0 < float(truth[:, i].mean()) < 1]
    people = gallery["identity"].unique()

    def auc(scores: Tensor) -> Bootstrapped:
        return mean_of(boot.auc(scores[:, both], truth[:, both]))

    def named(scores: Tensor) -> tuple[Bootstrapped, float]:
        hits = (people[scores.argmax(1)] == identity).double()
        return boot.mean(hits), float(person_means(hits[:, None], identity)[2].max())

    made: list[dict[str, Any]] = []

    def add(name: str, scores: Tensor, found: tuple[Bootstrapped, float], **more: Any) -> None:
        made.append(
            {
                "message": name,
                "auc": auc(scores).estimate(),
                "named": found[0].estimate(),
                "exposed": found[1],
                **more,
            }
        )
        print(
            json.dumps({key: getattr(value, "value", value) for key, value in made[-1].items()}), flush=True
        )

    for name, one, other in (("the cloud's answers", clouds, theirs), ("the head's answers", own, its)):
        lda = Discriminant(other, gallery["identity"], len(columns), 0.1)
        add(name, one, named(lda(one)))
    p = known.double().sigmoid()
    shapes = [(f"{count} bits", count, None) for count in bits or []]
    shapes += [(f"{count} levels each", 0, count) for count in levels or []]
    for name, count, level in shapes:
        messages = learn_messages(p, count, level, floor)
        shares = torch.bincount(messages(known), minlength=len(messages.codewords)).double()
        for eps in [None, *(epsilon or [])]:
            channel = Channel(messages, eps)
            generator = torch.Generator().manual_seed(0)
            sent = channel(own, torch.rand(len(own), generator=generator, dtype=torch.float64))
            scores = message_attackers(channel, its, gallery["identity"], shares / shares.sum())
            best = max((named(score(sent)) for score in scores.values()), key=lambda one: one[0].value)
            bound = Certificate(channel.bits, eps).naming(len(people))
            title = name if eps is None else f"{name}, ε {eps:g}"
            more = {"bits": channel.bits, "ceiling": ceiling(sent, identity), "bound": bound}
            add(title, messages.codewords[sent], best, **more)
    table = [
        [
            one["message"],
            f"{one['bits']:.2f}" if "bits" in one else "-",
            number(one["auc"]),
            rate(one["named"]),
            percent(one["exposed"]),
            percent(one["ceiling"]) if "ceiling" in one else "-",
            ("-" if one["bound"] >= 1 else percent(one["bound"])) if "bound" in one else "none",
        ]
        for one in made
    ]
    print(f"needs: {', '.join(defense.answered)}; {len(identity)} faces of {len(people)} people")
    print(Table(HEAD, table).markdown())
    if out is not None:
        plain = [{k: vars(v) if hasattr(v, "low") else v for k, v in one.items()} for one in made]
        write_file(Path(out), json.dumps(plain, indent=1) + "\n")


@torch.no_grad()
def _answers(net: torch.nn.Module, images: Tensor) -> Tensor:
    return torch.cat([net(part) for part in images.split(64)])


if __name__ == "__main__":
    try:
        auto_cli(curve, as_positional=True)
    except UserError as error:
        sys.exit(f"error: {error}")
