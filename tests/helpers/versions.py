"""What the versions of defences, attacks and pictures stand for: a few figures of each, in versions.json.

`python tests/helpers/versions.py` writes the file anew, where a `version` was raised or a case is new. Small
nets with keyed weights in float64 on the CPU, and few steps: the figures are the same on every processor.
"""

import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crafter_pl import attacks as atk
from crafter_pl import defenses as dfn
from crafter_pl.attacks.adaptive_black_box import AdaptiveBlackBox, AdaptiveDecoderAttack
from crafter_pl.attacks.adaptive_white_box import AdaptiveWhiteBox, AdaptiveWhiteBoxAttack
from crafter_pl.attacks.student import AdaptiveStudent, Student
from crafter_pl.attacks.surrogate import DefenseSurrogate
from crafter_pl.attacks.watch_list import Linked, Matched
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.crafting.settings import CraftSettings
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.stages import Amortizer, GanPrior, TaskModel
from crafter_pl.stages.base import Stage
from crafter_pl.stages.embedder import Embedder

FILE = Path(__file__).with_name("versions.json")
RENEW = (
    "raise the class's `version`, then run `python tests/helpers/versions.py` and commit its versions.json"
)
SIZE, FACES, FIGURES = 16, 3, 6
FEW = {"steps": 2, "start_steps": 1, "inner_steps": 1, "iterations": 1, "critic_steps": 1}
FEW |= {"task_weight": 0.1, "critic_batch": 2}


def keyed(name: str, *shape: int) -> Tensor:
    """Standard normal numbers that hang on a name alone."""
    count = torch.Size(shape).numel()
    return keyed_normal(
        zlib.crc32(name.encode()), torch.zeros(1, dtype=torch.int64), count, dtype=torch.float64
    ).view(shape)


def figures(values: Tensor) -> list[float]:
    """A few numbers that change with any of the values: their projections on keyed directions."""
    flat = values.detach().double().flatten()
    directions = keyed("directions", FIGURES, len(flat)) / len(flat) ** 0.5
    return [round(float(one), 7) for one in directions @ flat]


class Lab:
    """Untrained checkpoints in a folder, and every case that stands in versions.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = FacesDataModule(
            people=4,
            images_per_person=4,
            image_size=SIZE,
            private_people=1,
            min_private_images=3,
            test_images=1,
        )
        data.setup()
        names = list(data.attribute_names)
        self.images = data.rows("public")["image"][:FACES].double()
        self.index = torch.arange(FACES)
        task = self.save(TaskModel(cut="layer1", attribute_names=names, image_size=SIZE))
        prior = {"latent_dim": 6, "width": 4, "critic_width": 4, "image_size": SIZE}
        prior = self.save(GanPrior(**prior))
        self.nets = {"task_ckpt": task, "prior_ckpt": prior}
        self.nets["amortizer_ckpt"] = self.save(Amortizer(task, prior, width=8))
        self.ckpt = {"black_box": self.save(atk.BlackBox(task, width=8))}
        self.ckpt["answers"] = self.save(atk.BlackBox(task, width=8, reads="answers"), "black_box_answers")
        self.ckpt["embedder"] = self.save(Embedder(width=4, embedding=8, identities=[0, 1], image_size=SIZE))
        crafter = dfn.Crafter(**self.nets, craft=CraftSettings(**FEW), critic_width=4, replay=0)
        self.ckpt["crafter"] = self.save(crafter)
        with torch.no_grad():
            self.features = dfn.load_defense(self.ckpt["crafter"]).double().task.edge(self.images)

    def save(self, stage: Stage, name: str = "", **buffers: float) -> str:
        """Writes a checkpoint of the stage with keyed weights."""
        with torch.no_grad():
            for key, value in sorted(stage.state_dict().items()):
                if key in buffers:
                    value.fill_(buffers[key])
                elif value.is_floating_point() and value.ndim and value.numel():
                    value.copy_(_weight(key, value))
        file = self.folder / f"{name or stage.stage_name}.ckpt"
        upstream = {key: list(entry) for key, entry in stage.upstream_files.items()}
        content = {"stage_class": type(stage).__name__, "upstream": upstream, "split_hash": None}
        content |= {"hyper_parameters": dict(stage.hparams), "state_dict": stage.state_dict()}
        torch.save(content, file)
        return str(file)

    # Cases: (class, name) and their figures

    def cases(self) -> Iterator[tuple[type, str, list[float]]]:
        """All of them."""
        yield FacesDataModule, "synthetic", figures(self.images)
        for defense, name, told in self.defenses():
            yield type(defense), name, figures(self.protected(defense, defense.options(**told)))
        for attack, name, features in self.attacks():
            yield type(attack), name, self.attacked(attack, features)

    def protected(self, defense: dfn.Defense, options: ProtectOptions) -> Tensor:
        """The pictures' features: in float32 where a net is passed once, else in float64."""
        if isinstance(defense, (dfn.CrafterGenerator, dfn.Certified)):
            return defense.protect(self.images.float(), self.index, options)
        defense.double()
        if isinstance(defense, dfn.CrafterReference):  # the nets that it takes in float32
            exact = defense.crafter.frozen(defense.device, torch.float64)
            defense.crafter.frozen = lambda *_: exact
        torch.set_default_dtype(torch.float64)  # of the critics that are made on the way
        try:
            return defense.protect(self.images, self.index, options)
        finally:
            torch.set_default_dtype(torch.float32)

    def defenses(self) -> Iterator[tuple[dfn.Defense, str, dict[str, Any]]]:
        """Every defence, Crafter with each use of the critic; their options."""
        told = {"precision": "float64", "beta": 0.5}
        for critic in ("fixed", "adapted", "per_batch"):
            yield self._loaded("crafter"), critic, {**told, "critic": critic}
        for cls in (dfn.CrafterFast, dfn.CrafterZ):
            yield self._variant(cls), "", {**told, "steps": 2}
        yield self._variant(dfn.CrafterReference), "", {"beta": 0.5, "steps": 1}
        answers = dfn.Answers(self.nets["task_ckpt"], self.nets["prior_ckpt"], CraftSettings(**FEW))
        yield dfn.load_defense(self.save(answers)), "", told
        needs = ["Smiling", "Eyeglasses"]
        certified = dfn.Certified(self.nets["task_ckpt"], self.nets["prior_ckpt"], needs, work=None)
        certified.codewords, certified.shares = torch.empty(4, 2).double(), torch.empty(4)
        certified.pool = torch.empty(4, 3, *certified.task.feature_shape)
        for epsilon in (None, 1.0):
            yield dfn.load_defense(self.save(certified)), str(epsilon), {"epsilon": epsilon}
        task = {"task_ckpt": self.nets["task_ckpt"]}
        game = {**task, "decoder": "paper", "width": 8}
        made: list[tuple[str, dfn.Defense, dict[str, float]]] = [
            ("gaussian", dfn.Noise(**task), {"square": 1.0}),
            ("laplace", dfn.Noise(**task, kind="laplace"), {"square": 1.0}),
            ("adversarial_learning", dfn.AdversarialLearning(**game), {}),
            ("cem", dfn.Cem(**game, centres=2), {}),
            ("disco", dfn.Disco(**game), {}),
            ("nopeek", dfn.NoPeek(**task), {}),
            ("tiprdc", dfn.Tiprdc(**task, width=8, people=[0, 1]), {}),
            ("fawkes", dfn.Fawkes(**task, embedder_ckpt=self.ckpt["embedder"], steps=2), {}),
            (
                "lowkey",
                dfn.LowKey(
                    **task,
                    embedder_ckpt=self.ckpt["embedder"],
                    embedder_plain_ckpt=self.ckpt["embedder"],
                    steps=2,
                ),
                {},
            ),
        ]
        for sees in ("features", "answers"):
            made.append(
                (
                    sees,
                    dfn.CrafterGenerator(**task, crafter_ckpt=self.ckpt["crafter"], sees=sees, width=8),
                    {},
                )
            )
        for name, stage, buffers in made:
            yield dfn.load_defense(self.save(stage, f"{stage.stage_name}-{name}", **buffers)), name, {}

    def _variant(self, cls: type[dfn.CrafterVariant]) -> dfn.Defense:
        return dfn.load_defense(self.save(cls(self.nets["task_ckpt"], self.ckpt["crafter"])))

    def _loaded(self, stage: str) -> dfn.Defense:
        return dfn.load_defense(self.ckpt[stage])

    def attacks(self) -> Iterator[tuple[atk.Attack | atk.Reader, str, Tensor]]:
        """Every attack and ruler; the features that it is let at."""
        plain = {**self.nets, "steps": 2, "lr": 0.05, "restarts": 2}
        decoder = {"task_ckpt": self.nets["task_ckpt"], "black_box_ckpt": self.ckpt["black_box"]}
        yield atk.WhiteBoxAttack(**plain), "white_box", self.features
        layers = {**plain, "radii": [0.2], "layer_steps": [2]}
        yield atk.LayerwiseAttack(**layers), "layerwise", self.features
        yield atk.HybridAttack(**decoder, steps=2), "hybrid", self.features
        for name in ("black_box", "answers"):
            yield atk.DecoderAttack(self.ckpt[name]), name, self.features
        queries = torch.stack([self.features, self.features.flip(1)])
        averaged = atk.AveragedAttack(atk.DecoderAttack(self.ckpt["black_box"]))
        yield averaged, "averaged", averaged.observe(queries)
        identities = self.save(
            atk.FeatureToIdentity(self.nets["task_ckpt"], width=8, embedding=8, identities=[1, 2])
        )
        yield atk.FeatureToID(identities), "feature_to_id", self.features
        crafter = self.ckpt["crafter"]
        learnt = {
            AdaptiveDecoderAttack: AdaptiveBlackBox(crafter, self.ckpt["black_box"]),
            AdaptiveWhiteBoxAttack: AdaptiveWhiteBox(
                crafter, self.nets["prior_ckpt"], self.nets["amortizer_ckpt"], inversion_steps=2
            ),
            atk.ThroughDefenceAttack: DefenseSurrogate(crafter, width=8, blocks=1, hidden=8),
        }
        for kind, stage in learnt.items():
            options = {"black_box_ckpt": self.ckpt["black_box"]} if kind is AdaptiveDecoderAttack else plain
            attack = kind(file := self.save(stage), **options)
            attack.target, attack.checkpoints = atk.Target({}, None), attack.adapted(file)
            yield attack, stage.stage_name, self.features

        student = Student(self.nets["task_ckpt"], None, embedding=6, identities=[0, 1])
        adapted = AdaptiveStudent(crafter, plain := self.save(student))
        for reader in (Matched(plain, "matched", 2, "both"), Linked(plain, "linked", 2)):
            yield reader, reader.name, self.features
        for reader in (kind(file := self.save(adapted)) for kind in (atk.WatchList, atk.Link)):
            reader.target, reader.checkpoints = atk.Target({}, None), reader.adapted(file)
            yield reader, reader.name, self.features
        yield atk.GalleryLDA(components=4), "gallery_lda", self.features
        yield atk.LinkLDA(components=4), "link_lda", self.features

    def attacked(self, attack: atk.Attack | atk.Reader, features: Tensor) -> list[float]:
        """What it makes of the features, in float64; of the people in a gallery of the same, mirrored."""
        attack.prepare("cpu")
        for one in (attack, getattr(attack, "base", None)):
            for value in vars(one).values() if one is not None else ():
                for net in value if isinstance(value, list) else [value]:
                    if isinstance(net, nn.Module):
                        net.double()
        if isinstance(attack, atk.Attack):
            return figures(attack.reconstruct(features))
        attack.enrol(atk.Gallery(self.images, torch.arange(len(features)) // 2, features.flip(3)))
        seen = attack.identify(features)
        return figures(attack.similarity(features) if seen is None else seen)


def _weight(name: str, value: Tensor) -> Tensor:
    """Keyed values of about the size that a net begins with."""
    drawn = keyed(f"{name} {tuple(value.shape)}", min(value.numel(), 4096))
    drawn = drawn.repeat(-(-value.numel() // len(drawn)))[: value.numel()].view(value.shape)  # for the time
    if value.ndim > 1:
        return drawn / value[0].numel() ** 0.5
    if name.endswith("running_var"):
        return (0.2 * drawn).exp()
    return 0.1 * drawn + (1 if name.endswith("weight") else 0)


def measured() -> dict[str, dict[str, Any]]:
    """By class its version, and the figures of each of its cases."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, name, values in Lab(Path(folder)).cases():
            own = found.setdefault(kind.__name__, {"version": kind.version, "figures": {}})
            own["figures"][name] = values
    return found


def changed(before: list[float], after: list[float]) -> bool:
    """Whether figures differ by more than rounding may."""
    return len(before) != len(after) or any(
        abs(a - b) > 1e-5 * max(1, abs(a)) for a, b in zip(before, after, strict=True)
    )


def renewed(kept: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The file's new content.

    Raises:
        ValueError: figures changed, and no version was raised.
    """
    new = {}
    for kind, own in found.items():
        old = kept.get(kind, {"version": 0, "figures": {}})
        same = old["version"] == own["version"]
        cases = {}
        for name, values in own["figures"].items():
            before = old["figures"].get(name)
            if same and before is not None:
                if changed(before, values):
                    raise ValueError(
                        f"{kind} ({name}) gives other results than its version {own['version']} did: {RENEW}"
                    )
                values = before
            cases[name] = values
        new[kind] = {"version": own["version"], "figures": cases}
    return new


def main() -> None:
    """Writes versions.json."""
    kept = json.loads(FILE.read_text()) if FILE.is_file() else {}
    FILE.write_text(json.dumps(renewed(kept, measured()), indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
