"""Nets that an audit needs, loaded and checked: task model, judges, and the defences behind stores."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from crafter_pl.attacks.base import Target
from crafter_pl.audit.oracle import load_oracle
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.provenance import seedless
from crafter_pl.data.split import first_of_each
from crafter_pl.defenses.base import Defense, load_defense
from crafter_pl.defenses.options import ProtectOptions, names
from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.judges import GalleryJudge, Judge, OracleJudge, Recogniser, embedded
from crafter_pl.stages.base import load_stage
from crafter_pl.stages.checkpoints import read_checkpoint
from crafter_pl.stages.task import TaskModel, has_truth

EXAMPLES = 200  # public pictures in which a recogniser looks where faces are
OWN_SEED = 2**31 - 1  # what attackers key the published defence with: the store's seed is not known to them


def trained_on(path: str | Path) -> str | None:
    """Hash of the split that a checkpoint was trained on; None if it does not say."""
    return read_checkpoint(path).get("split_hash")


def load_task(path: Path, data: FacesDataModule) -> tuple[TaskModel, list[str]]:
    """The task model, and what the report must note about it.

    Raises:
        UserError: it is missing, or was made for other labels or another picture size.
    """
    task = load_stage(path, TaskModel)
    has_truth(task, data, str(path), partly=True)
    if task.hparams["image_size"] != data.image_size:
        raise UserError(
            f"the task model {path} was trained on pictures of {task.hparams['image_size']} pixels, the data "
            f"have {data.image_size}: give --data.image_size {task.hparams['image_size']}"
        )
    note = (
        "The task model was trained on another split: make sure that it has seen none of the private people."
    )
    return task, [] if data.same_people(trained_on(path)) else [note]


def load_oracles(paths: list[str], data: FacesDataModule, device: str) -> list[OracleJudge]:
    """The oracles of the panel; equal names are numbered.

    Raises:
        UserError: an oracle is there twice, or was trained on pictures of another size or on another split,
            where it may have seen the pictures that it is to judge.
    """
    loaded: dict[str, OracleJudge] = {}
    files: dict[str, str] = {}
    for path in paths:
        oracle = load_oracle(path)
        if trained_on(path) != data.split_hash:
            raise UserError(
                f"oracle {path} was trained on another split and may have seen the pictures that it is to "
                "judge: give the same --data settings as in its training, or train it again"
            )
        if (size := oracle.hparams["image_size"]) != data.image_size:
            raise UserError(
                f"oracle {path} was trained on pictures of {size} pixels, the data have {data.image_size}: "
                f"give --data.image_size {size}, or train it again"
            )
        if (digest := sha256(path)) in files:
            raise UserError(
                f"oracles {files[digest]} and {path} are the same: leave one out, or give one of another "
                "backbone or input"
            )
        files[digest] = path
        base = str(oracle.hparams["name"])
        names = (base, *(f"{base} {number}" for number in range(2, len(paths) + 1)))
        name = next(name for name in names if name not in loaded)
        loaded[name] = OracleJudge(oracle.to(device), path, name)
    return list(loaded.values())


def load_judges(
    recognisers: list[Recogniser],
    oracles: list[str],
    data: FacesDataModule,
    device: str,
    batch_size: int,
    pictures: int,
    cache: Path,
) -> tuple[list[Judge], list[str]]:
    """The panel, pretrained recognisers first, but those last that find no faces; and what is to be noted.

    Args:
        recognisers: they are prepared here.
        oracles: checkpoints.
        data: set up; people are enrolled by the role ``gallery``, the faces' frame is that of public_val.
        device: where the judges go.
        batch_size: pictures embedded at a time.
        pictures: of each person in a recogniser's gallery, at most; 0: all.
        cache: folder where embeddings are kept.

    Raises:
        UserError: see `load_oracles` and `Recogniser.prepare`; or two judges have one name.
    """
    judges: list[Judge] = []
    blind: list[Judge] = []
    notes = []
    for recogniser in recognisers:
        public = data.dataset("public_val")
        said = recogniser.prepare(device, public.take(public.index[:EXAMPLES])["image"])
        notes += said
        gallery = data.rows("gallery")
        enrolled = first_of_each(gallery["identity"], pictures)
        made, file = embedded(recogniser, gallery["image"][enrolled], device, batch_size, cache)
        one = GalleryJudge(recogniser, made, gallery["identity"][enrolled], file)
        (blind if said else judges).append(one)
    judges += [*load_oracles(oracles, data, device), *blind]
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise UserError(f"two judges have one name ({', '.join(names)}): give each its own init_args.name")
    return judges, notes


class Published:
    """Finds the defences of stores; each checkpoint is loaded once."""

    def __init__(self, home: Path, device: str, given: list[str] | None = None) -> None:
        """Remember where an experiment's own defences are, which others are given, and where to put them."""
        self.home, self.device, self.given = home, device, [Path(path) for path in given or []]
        self.loaded: dict[Path, Defense[Any]] = {}

    def target(self, store: str, manifest: dict[str, Any]) -> tuple[Target, list[str]]:
        """What attackers may know of a store, and what the report must note if that is not all.

        The checkpoint is looked for among the given ones, beside the store, where `predict` writes it, and in
        the experiment's own folder of that defence. It counts only if its weights are those that the manifest
        names and its settings can be put in force. The seed is the defender's secret.
        """
        told = {key: value for key, value in manifest.items() if key not in ("seed", "fingerprint")}
        told["settings"] = seedless(manifest["settings"])
        folders = (Path(store).parent.parent, self.home / manifest["defense"])
        own = [folder / "checkpoints" / "best.ckpt" for folder in folders]
        paths = list(dict.fromkeys([*self.given, *own]))
        hidden = Target(told, None, checkpoint=str(own[0]))
        if "defense_sha256" not in manifest:
            return hidden, [
                f"{store} was written before stores named the weights of their defence: no attack could "
                "query the defence. Craft it again for a full audit."
            ]
        found = [path for path in paths if path.is_file()]
        places = " or ".join(map(str, paths))
        why = [] if found else [f"no checkpoint in {places}: give it as --defenses"]
        for path in found:
            try:
                defense, options = self._in_force(path, manifest)
            except UserError as error:
                why.append(str(error))
                continue
            nets = {"encoder": defense.edge_module, "cloud": defense.cloud_module}
            backend = {part: nets[part]() for part in manifest.get("retrains", ())}
            return Target(told, defense, backend, str(path), options), []
        return hidden, [
            f"The defence behind {store} is not at hand ({'; '.join(why)}): no attack could query it."
        ]

    def _in_force(self, path: Path, manifest: dict[str, Any]) -> tuple[Defense[Any], ProtectOptions]:
        """The defence of a checkpoint, and what puts the manifest's settings in force, but for the seed.

        Raises:
            UserError: it is damaged, or not what made the store.
        """
        if path not in self.loaded:
            self.loaded[path] = load_defense(path).to(self.device)
        defense, settings = self.loaded[path], manifest["settings"]
        if defense.weights_hash() != manifest["defense_sha256"]:
            raise UserError(f"{path} has other weights")
        if (made := manifest.get("version", 1)) != defense.version:  # older than versions: 1
            raise UserError(
                f"the store was made by version {made} of {manifest['defense']}, this crafter_pl has version "
                f"{defense.version} and would answer queries otherwise: craft the store again"
            )
        known = names(defense.options_class)
        options = defense.options(**{key: settings[key] for key in known if key in settings})
        mine = json.loads(json.dumps(defense.settings(options)))
        if other := sorted(
            key for key in mine.keys() | settings.keys() if mine.get(key) != settings.get(key)
        ):
            raise UserError(f"{path} has other settings: {', '.join(other)}")
        return defense, replace(options, **({"seed": OWN_SEED} if "seed" in known else {}))
