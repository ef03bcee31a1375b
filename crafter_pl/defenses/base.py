"""The one interface of defences: pictures in, the features that leave the edge out."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, cast

from torch import Tensor, nn

from crafter_pl.data.store import FORMAT_VERSION
from crafter_pl.defenses.options import KeyedOptions, OptionsT, ProtectOptions, names
from crafter_pl.errors import UserError
from crafter_pl.limits import checked
from crafter_pl.stages import Stage, TaskModel, Upstream, load_stage, read_checkpoint, stages


class Defense(Stage, Generic[OptionsT]):
    """A stage that protects pictures; `predict` protects a split and writes the feature store.

    A subclass implements `protect`, and holds the task model upstream. What a user may set anew for every
    store is an option: a field of its own `options_class`, described under ``Args``, checked by
    its type. What training depends on is an init argument; `recorded` puts it into the manifest. One
    that trains nothing inherits `Untrained`, and is fitted all the same: its checkpoint names its task model.

    Class attributes:
        version: raised by hand whenever equal weights, settings and pictures give other features than before;
            stores, attackers' queries and what has learnt from them name it (tests/helpers/versions.py).
        options_class: the options of `protect`.
        recorded: the init arguments that are settings of the protection, in the manifest.
        tradeoff: the init argument that sets the trade-off where training does; it names the store.
        retrains: what the defence changes of the backend: ``encoder``, ``cloud``, or nothing.
    """

    task = Upstream(TaskModel)  # the frozen task model
    version: ClassVar[int] = 1
    options_class: ClassVar[type[ProtectOptions]] = ProtectOptions
    recorded: ClassVar[tuple[str, ...]] = ()
    tradeoff: ClassVar[str] = ""
    retrains: ClassVar[tuple[str, ...]] = ()

    def protect(self, images: Tensor, index: Tensor, options: OptionsT) -> Tensor:
        """Turns pictures into features that may leave the edge.

        Args:
            images: ``(N, 3, H, W)`` in [0, 1].
            index: the pictures' stable indices, int64 ``(N,)``.
            options: of `options`.

        Returns:
            Features ``(N, C, h, w)``.
        """
        raise TypeError(f"{type(self).__name__} does not implement protect")

    def options(self, **given: Any) -> OptionsT:  # noqa: ANN401 (numbers and names)
        """What is in force: as it was trained, with what is ``given`` in its place (null: as it was trained).

        Raises:
            UserError: it has no such option, or not with that value.
        """
        self.refuse_unknown(given)
        others = {name: value for name, value in given.items() if value is not None}
        exact = checked(self.options_class, {**self.trained_options(), **others}, "--protect")
        return cast(OptionsT, self.options_class(**exact))

    @classmethod
    def refuse_unknown(cls, given: Iterable[str]) -> None:
        """Raises UserError where an option is not among those of this class; lists these."""
        known = names(cls.options_class)
        if strange := [name for name in given if name not in known]:
            instead = f"; its trade-off is set in training (--model.init_args.{cls.tradeoff})"
            raise UserError(
                f"{cls.stage_name} has no option {', '.join(strange)}: it has {', '.join(known)} "
                f"(--protect.*){instead * bool(cls.tradeoff)}"
            )

    def trained_options(self) -> dict[str, Any]:
        """The options that its own settings say; others have their class's defaults."""
        return {name: self.hparams[name] for name in names(self.options_class) if name in self.hparams}

    def settings(self, options: OptionsT) -> dict[str, Any]:
        """The settings in force, for the manifest: how features travel only if that is not in float32."""
        own = {name.rstrip("_"): self.hparams[name] for name in self.recorded}
        others = {key: value for key, value in asdict(options).items() if key != "transport"}
        return {
            **own,
            **others,
            **({} if options.transport == "float32" else {"transport": options.transport}),
        }

    def edge_module(self) -> nn.Module:
        """The encoder that runs on the edge: pictures -> unprotected features; attackers know it."""
        return self.task.net.encoder_module()

    def edge_graph(self, options: OptionsT) -> nn.Module | None:
        """`protect` as one net: what runs on a device that has no Python.

        Args:
            options: of `options`.

        Returns:
            Pictures ``(N, 3, S, S)`` in [0, 1], and where `edge_noise` is above 0 that many standard normal
            numbers for each, ``(N, edge_noise)``, -> features ``(N, C, h, w)``, with the settings in force.
            A net that gives more names all that it gives in ``outputs``. By default None: protecting is no
            single forward pass.
        """
        return None

    @property
    def edge_noise(self) -> int:
        """How many standard normal numbers `edge_graph` takes for each picture."""
        return 0

    def cloud_module(self) -> nn.Module:
        """The classifier that answers in the cloud: features -> logits; another where it is retrained."""
        return self.task.net.cloud

    def weights_hash(self) -> str:
        """SHA-256 over the own weights and the upstream files: with the settings in force, the defence."""
        digest = hashlib.sha256(
            json.dumps(sorted(digest for _, digest in self.upstream_files.values())).encode()
        )
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def store_name(self, options: OptionsT) -> str:
        """Default name of a set of features: ``lambda0.5`` and the like, or the stage's, and its own options.

        Those that every defence has, and those that are as it was trained, are not named.
        """
        name = (
            f"{self.tradeoff.rstrip('_')}{self.hparams[self.tradeoff]:g}"
            if self.tradeoff
            else self.stage_name
        )
        own = set(names(self.options_class)) - set(names(KeyedOptions))
        trained = asdict(self.options())
        changed = [
            f"-{key}{value}" for key, value in asdict(options).items() if key in own and value != trained[key]
        ]
        return name + "".join(changed)

    def manifest(self, split_hash: str, split: str, options: OptionsT) -> dict[str, Any]:
        """What a manifest says of features that this defence makes, but for their count and shards."""
        settings = self.settings(options)
        return {
            "format_version": FORMAT_VERSION,
            "defense": self.stage_name,
            "version": self.version,
            "settings": settings,
            "encoder_sha256": self.upstream_files["task"][1],
            "split_hash": split_hash,
            "split": split,
            "shape": list(self.task.feature_shape),
            "dtype": options.transport,
            "seed": int(settings.get("seed", 0)),
            "defense_sha256": self.weights_hash(),
            "retrains": list(self.retrains),
        }


def defenses() -> dict[str, type[Defense[Any]]]:
    """Every class of defence that has been imported, by its name."""
    return cast(dict[str, type[Defense[Any]]], stages(Defense))


def load_defense(path: str | Path) -> Defense[Any]:
    """Rebuilds any defence from its checkpoint, frozen.

    Raises:
        UserError: the file is missing, damaged, or not of a defence.
    """
    checkpoint, found = read_checkpoint(path, "defense"), defenses()
    name = checkpoint.get("stage_class")
    if name not in found:
        raise UserError(f"{path} is a checkpoint of {name or 'something else'}, not of a defence")
    return load_stage(path, found[name], checkpoint)
