"""What every setting of an attack is measured by: the same public faces, and oracles that judge."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.audit import find, load
from crafter_pl.audit.options import Options
from crafter_pl.commands import Commands, settings_of
from crafter_pl.device import pick_device
from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.metrics import Estimate, IdentityBootstrap, identity_similarity

SPLIT = "public_val"


@dataclass(frozen=True)
class Score:
    """What an attack gets from unprotected features of `N` faces.

    Attributes:
        similarity: cosine of an oracle's embeddings of reconstruction and original, mean over the oracles.
        by_oracle: the same of each oracle.
        rank1: share of faces whose nearest embedding among all other originals is the same person's, mean
            over the oracles.
        pixel_error: squared, mean over values.
        feature_loss: squared distance of the features over their number.
        seconds_per_face: that it takes.
        per_face: the similarity of each face, `N` numbers.
    """

    similarity: Estimate
    by_oracle: dict[str, Estimate]
    rank1: Estimate
    pixel_error: Estimate
    feature_loss: Estimate
    seconds_per_face: float
    per_face: list[float]


class Bench:
    """Loads the nets and the `public_val` people, and embeds their pictures.

    Args:
        asked: the audit whose data, nets and oracles it uses.
        faces: how many are attacked.

    Attributes:
        images: ``(N, 3, H, W)``, the faces that every setting attacks.
        features: ``(N, C, h, w)``, theirs.
        identity: ``(N,)``, whose they are.
        owner: ``(M,)``, whom the pictures show among which oracles look for a face: all of the split.
        boot: resamples of the people of `images`.
        commands: of the experiment.
        data: of the audit.
        key: all that a score depends on besides the attack.

    Raises:
        UserError: too few people, or checkpoints that are missing or do not belong to these data.
    """

    def __init__(self, asked: Options, faces: int) -> None:
        self.data = data = asked.data
        self.batch_size, self.seed = asked.batch_size, asked.seed
        self.device = pick_device(asked.device)
        data.setup("test")
        self.commands = Commands(asked.home, settings_of(data))
        task_path = find.find_task(self.commands, asked.task_ckpt)
        self._task, notes = load.load_task(task_path, data)
        self._task.to(self.device)
        files, missing = find.find_oracles(self.commands, asked.oracles)
        self._oracles = {one.name: one for one in load.load_oracles(files, data, self.device)}
        for note in (*notes, *missing):
            print(f"note: {note}", flush=True)
        everybody = data.dataset(SPLIT)
        self.owner = everybody.faces.identity[everybody.index]
        self._rows = spread(self.owner, faces)
        batch = everybody.take(everybody.index[self._rows])
        self.images, self.identity = batch["image"], batch["identity"]
        parts = everybody.index.split(self.batch_size)
        self._galleries = {
            name: torch.cat([self._batched(oracle.embed, everybody.take(part)["image"]) for part in parts])
            for name, oracle in self._oracles.items()
        }
        self.features = self._encode(self.images)
        self.boot = IdentityBootstrap(self.identity, asked.bootstrap, self.seed)
        hashes = [sha256(task_path), *map(sha256, files)]
        where = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else "cpu"
        self.key = [data.split_hash, batch["index"].tolist(), hashes, where, self.batch_size, self.seed]

    @torch.no_grad()
    def _batched(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return torch.cat([function(p.to(self.device)).float().cpu() for p in images.split(self.batch_size)])

    def _encode(self, images: Tensor) -> Tensor:
        return self._batched(self._task.edge, images)

    def measure(self, attack: Attack) -> Score:
        """Attacks all faces, and scores the reconstructions.

        Raises:
            ValueError: these are of another shape than the faces, or not finite.
        """
        began, parts = time.perf_counter(), []
        for number, part in enumerate(self.features.split(self.batch_size)):
            with torch.random.fork_rng():
                torch.manual_seed(self.seed + number * self.batch_size)
                parts.append(attack.reconstruct(part).float().cpu())
        seconds, made = time.perf_counter() - began, torch.cat(parts)
        if made.shape != self.images.shape or not bool(torch.isfinite(made).all()):
            raise ValueError(
                f"attack {attack.name} returned {tuple(made.shape)}, or values that are not finite"
            )
        similar, right = {}, []
        for name, oracle in self._oracles.items():
            gallery, embedded = self._galleries[name], self._batched(oracle.embed, made)
            similar[name] = identity_similarity(embedded, gallery[self._rows])
            others = (embedded @ gallery.T).scatter_(1, self._rows[:, None], -2)  # without the face itself
            right.append(self.owner[others.argmax(1)] == self.identity)
        per_face = torch.stack(list(similar.values())).mean(0)

        def mean(values: Tensor) -> Estimate:
            return self.boot.mean(values).estimate()

        return Score(
            similarity=mean(per_face),
            by_oracle={name: mean(values) for name, values in similar.items()},
            rank1=mean(torch.stack(right).float().mean(0)),
            pixel_error=mean((made - self.images).square().flatten(1).mean(1)),
            feature_loss=mean((self._encode(made) - self.features).square().flatten(1).mean(1)),
            seconds_per_face=seconds / len(made),
            per_face=per_face.tolist(),
        )


def spread(identity: Tensor, count: int) -> Tensor:
    """Rows of pictures of people with two or more: everybody's first, then everybody's second, ...

    Args:
        identity: ``(M,)``, whom each picture shows.
        count: how many rows, if there are as many.

    Raises:
        UserError: fewer than two such people, or a count under 1.
    """
    groups = [(identity == person).nonzero()[:, 0].tolist() for person in identity.unique()]
    groups = [rows for rows in groups if len(rows) > 1]
    if len(groups) < 2 or count < 1:
        raise UserError(
            f"{len(groups)} people of {SPLIT} have two pictures or more, and --faces is {count}: give at "
            "least 2 people (public_val_fraction of the data) and 1 face"
        )
    dealt = [row for turn in itertools.zip_longest(*groups) for row in turn if row is not None]
    return torch.tensor(dealt[:count])
