"""The defence behind a feature store: found, checked against the manifest, and published to attackers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from crafter_pl.attacks.base import Target
from crafter_pl.data.store import read_manifest, seedless
from crafter_pl.defenses.base import Defense, load_defense
from crafter_pl.defenses.options import ProtectOptions, names
from crafter_pl.errors import UserError

OWN_SEED = 2**31 - 1  # what attackers key the published defence with: the store's seed is not known to them
_NOT_SETTINGS = ("seed", "shards", "count", "cost", "fingerprint")  # one protection may differ in these


def same_protection(stores: list[str]) -> list[list[str]]:
    """Groups stores that are equal in everything except the seed: several queries of each face.

    Raises:
        UserError: two stores of a group have one seed, too: they are the same.
    """
    groups: dict[str, dict[int | None, str]] = {}
    for store in stores:
        manifest = read_manifest(store)
        plan = {key: value for key, value in manifest.items() if key not in _NOT_SETTINGS}
        plan["settings"] = seedless(manifest["settings"])
        group = groups.setdefault(json.dumps(plan, sort_keys=True), {})
        if manifest.get("seed") in group:
            raise UserError(
                f"two sets of features are the same, {group[manifest.get('seed')]} and {store}: name each "
                "feature store once"
            )
        group[manifest.get("seed")] = store
    return [list(group.values()) for group in groups.values()]


class Published:
    """Finds the defences of stores; each checkpoint is loaded once."""

    def __init__(self, home: Path, device: str, given: list[str] | None = None) -> None:
        """Remember where an experiment's own defences are, which others are given, and where to put them.

        Raises:
            UserError: a given checkpoint does not exist.
        """
        self.home, self.device, self.given = home, device, [Path(path) for path in given or []]
        for path in self.given:
            if not path.is_file():
                raise UserError(f"--defenses {path} does not exist: give the checkpoint of a defence")
        self.loaded: dict[Path, Defense] = {}

    def target(self, store: str, manifest: dict[str, Any]) -> tuple[Target, list[str]]:
        """What attackers may know of a store, and what the report must note if that is not all.

        The checkpoint is looked for among the given ones, beside the store, where `predict` writes it, and in
        the experiment's own folder of that defence. It counts only if its weights are those that the manifest
        names and its settings can be put in force. The seed is the defender's secret.
        """
        told = {key: value for key, value in manifest.items() if key not in ("seed", "fingerprint")}
        told["settings"] = seedless(manifest["settings"])
        places = [Path(store).parent.parent, self.home / manifest["defense"]]
        own = [place / "checkpoints" / "best.ckpt" for place in places]
        paths = list(dict.fromkeys([*self.given, *own]))
        hidden = Target(told, None, checkpoint=str(own[0]))
        if "defense_sha256" not in manifest:
            return hidden, [
                f"{store} was written before stores named the weights of their defence: no attack could "
                "query the defence. Craft it again for a full audit."
            ]
        found = [path for path in paths if path.is_file()]
        nowhere = f"no checkpoint in {' or '.join(str(path) for path in paths)}: give it as --defenses"
        why = [] if found else [nowhere]
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
