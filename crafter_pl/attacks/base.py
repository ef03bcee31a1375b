"""The one interface of attacks: features in, pictures out."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from crafter_pl.commands import Commands
from crafter_pl.data.provenance import seedless
from crafter_pl.defenses.base import Defense, defenses
from crafter_pl.defenses.options import ProtectOptions, names
from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.stages.checkpoints import named_run

AdversaryT = TypeVar("AdversaryT", bound="Adversary")


@dataclass(frozen=True)
class Target:
    """What an attacker may know of the defence behind the features: it is published, its keys are not.

    Attributes:
        manifest: the feature store's manifest: the defence, its settings in force, the hash of its weights;
            without the seed.
        defense: the published defence, to be queried with public pictures or differentiated through; None if
            its checkpoint is not at hand, and for attacks that do not adapt.
        backend: what the defence has retrained and is at hand, the ``encoder`` or the ``cloud``: public, as
            the nets are that it replaces.
        checkpoint: where the defence is, or should be.
        options: what puts those settings in force, with a seed of the attacker's own; None without a defence.
    """

    manifest: dict[str, Any]
    defense: Defense[Any] | None
    backend: dict[str, nn.Module] = field(default_factory=dict)
    checkpoint: str | None = None
    options: ProtectOptions | None = None


def fits(learned: dict[str, Any] | None, target: Target) -> bool:
    """Whether something was learned from exactly this defence: class, version, settings, weights; any seed.

    Args:
        learned: ``defense``, ``version``, ``settings`` and ``defense_sha256``, as a manifest has them.
        target: the defence.
    """
    if learned is None:
        return False
    digest = target.manifest.get("defense_sha256")
    if digest is None and target.defense is not None:
        digest = target.defense.weights_hash()
    return (
        learned["defense"] == target.manifest["defense"]
        and learned.get("version", 1) == target.manifest.get("version", 1)  # older than versions: 1
        and _plain(learned["settings"]) == _plain(target.manifest["settings"])
        and learned["defense_sha256"] == digest
    )


def _plain(settings: dict[str, Any]) -> str:
    return json.dumps(seedless(settings), sort_keys=True)


def checkpoint_of(home: Path, stage: str, given: str | None) -> str:
    """The path that a checkpoint argument means, see `named_run`: in an experiment's folder, or as given."""
    run = named_run(stage, given)
    return str(given) if run is None else str(home / run / "checkpoints" / "best.ckpt")


class Adversary(ABC):
    """What attacks and rulers share: what they are bound to, their checkpoints, how a report describes them.

    One that is built names its settings alone. `against` binds a copy to the features of one defence: that
    copy has its checkpoints, is described, prepared and let at the features.

    Class attributes:
        version: raised by hand whenever equal checkpoints, settings and features give another result than
            before; reconstructions that are kept name it (tests/helpers/versions.py).

    Attributes:
        target: of a bound one, what made the features; None: they are unprotected.
        commands: of a bound one, those of the experiment whose checkpoints it uses.
        among: of a bound one, the only checkpoints that one that adapts may choose from; None: all finished
            runs of the experiment.
    """

    version: ClassVar[int] = 1
    name: str
    checkpoints: dict[str, str | None]
    target: Target | None = None
    commands: Commands | None = None
    among: list[str] | None = None
    adaptive: bool = False  # it knows the defence: it learnt from its features, or goes through it

    def against(
        self: AdversaryT, target: Target | None, commands: Commands, among: list[str] | None = None
    ) -> AdversaryT:
        """A copy for the features of one defence; this one stays as it is.

        It is handed no more than it may know: only one that adapts gets the defence.

        Args:
            target: what made the features; None: they are unprotected.
            commands: of the experiment whose checkpoints stand for those that were left null, or named by
                their run.
            among: the only checkpoints that one that adapts may choose from; None: all finished runs of the
                experiment.

        Raises:
            UserError: it cannot attack this defence; says what to train or give first.
        """
        bound = copy.copy(self)
        bound.commands, bound.among = commands, among
        bound.checkpoints = {
            stage: checkpoint_of(commands.home, stage, path) for stage, path in self.checkpoints.items()
        }
        if target is not None and not self.adaptive:
            target = replace(target, defense=None, checkpoint=None, options=None)
        bound.aim(target)
        return bound

    def aim(self, target: Target | None) -> None:
        """Called once on a bound copy, whose checkpoints are those given and the experiment's own.

        One that adapts chooses here what fits the defence; by default it only takes note. Nets are loaded by
        `prepare`.

        Raises:
            UserError: it cannot attack this defence; says what to train or give first.
        """
        self.target = target

    def retrained(self, part: str) -> dict[str, str]:
        """For the settings: the hash of the defence if it has retrained the ``encoder`` or ``cloud``."""
        if self.target is None or part not in self.target.manifest.get("retrains", ()):
            return {}
        return {f"{part}_of": self.target.manifest["defense_sha256"]}

    def published(self, part: str) -> nn.Module:
        """What the defence has made of the ``encoder`` or ``cloud`` that it retrained.

        Raises:
            UserError: the defence is not at hand.
        """
        assert self.target is not None
        if part not in self.target.backend:
            raise UserError(
                f"attack {self.name}: the defence {self.target.manifest['defense']} has retrained the {part}"
                ": give the checkpoint of the defence"
            )
        return self.target.backend[part]

    @property
    def learnt(self) -> bool:
        """Whether it knows what it is bound to: one that does not shows no protection, whatever it gets."""
        return self.target is None or self.adaptive

    def observe(self, queries: Tensor) -> Tensor:
        """What it makes of several protected features of each face, ``(K, N, C, h, w)``.

        Returns:
            ``(N, C, h, w)``: by default the first query alone, as if there had been no other.
        """
        return queries[0]

    def checkpoint(self, stage: str) -> str:
        """Path of the checkpoint of ``stage``.

        Raises:
            UserError: it was left null, and the attack is bound to no experiment.
        """
        path = self.checkpoints[stage]
        if path is None:
            raise UserError(
                f"attack {self.name} has no checkpoint of stage {stage!r}: give its path, or bind the attack "
                "to an experiment's: against(target, commands)"
            )
        return path

    @abstractmethod
    def prepare(self, device: str) -> None:
        """Loads the nets onto ``device``."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Its own settings, as JSON takes them."""

    def describe(self) -> dict[str, Any]:
        """Name, version, settings and the SHA-256 of every checkpoint: all that counts besides features."""
        return {
            "name": self.name,
            "class": type(self).__name__,
            "version": self.version,
            "settings": self.settings(),
            "checkpoints": {key: sha256(path) for key, path in self.checkpoints.items() if path is not None},
        }


class Attack(Adversary):
    """An attack reconstructs pictures from features alone.

    What it knows besides them is what its constructor names, checkpoints trained on public people, and the
    `Target`. It is never handed a private picture, a label or an unprotected private feature together with
    its protected one.
    """

    def history(self) -> list[tuple[dict[str, int], Attack]]:
        """Earlier rounds of an attack that adapts to what it is bound to, for curves of its strength.

        Returns:
            For each round in order a label, ``{"round", "pairs", "epochs"}`` so far, and a bound attack that
            stands for it; by default none.
        """
        return []

    @abstractmethod
    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> pictures ``(N, 3, S, S)`` in [0, 1], on the CPU."""


def own_options(target: Target) -> dict[str, Any]:
    """A defence's options by name that are unlike its training's, but for the seed."""
    settings: dict[str, Any] = target.manifest["settings"]
    kinds = [cls for cls in defenses().values() if cls.stage_name == target.manifest["defense"]]
    known = [name for name in names(kinds[0].options_class) if name in settings] if kinds else []
    trained = {} if target.defense is None else asdict(target.defense.options())
    return {name: settings[name] for name in known if name != "seed" and settings[name] != trained.get(name)}


def options_of(target: Target, group: str) -> list[str]:
    """Words of a command that put a defence's settings in force: those of `own_options`.

    Args:
        target: the defence.
        group: of which group of options they are, such as ``protect``.
    """
    return [word for name, value in own_options(target).items() for word in (f"--{group}.{name}", str(value))]


def marks_of(target: Target) -> dict[str, str]:
    """What tells a defence from others by the same checkpoint: beta, transport, and its `own_options`."""
    settings = target.manifest["settings"]
    marks = {name: settings[name] for name in ("beta", "transport") if settings.get(name) is not None}
    if target.defense is not None:
        marks |= own_options(target)
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in marks.items()}


def place_of(target: Target, home: Path) -> tuple[Path, str]:
    """Where a defence's checkpoint is or should be, and what a run that learns from it adds to its name."""
    checkpoint = Path(target.checkpoint or home / target.manifest["defense"] / "checkpoints" / "best.ckpt")
    marks = [f"{'' if name == 'transport' else name}{value}" for name, value in marks_of(target).items()]
    return checkpoint, "-".join([checkpoint.parent.parent.name, *marks])
