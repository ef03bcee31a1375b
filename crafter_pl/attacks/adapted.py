"""Attacks by stages that have adapted to a defence (A1): finding what fits the features at hand."""

import copy
import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from crafter_pl.attacks.adaptive import AdaptiveStage
from crafter_pl.attacks.base import Adversary, Attack, Target, fits, marks_of, options_of, place_of
from crafter_pl.commands import Commands, trained
from crafter_pl.data.provenance import present
from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.stages import load_stage, read_checkpoint


class Adapted(Adversary):
    """What attacks and readers share whose stage has adapted: they use the one trained against a defence.

    It looks among the experiment's finished runs of its stage, whatever they are called: at those that began
    with the nets that it uses on unprotected features, and at those whose name begins with `runs`, the
    attack's name unless a subclass says otherwise. Of several that fit it takes the one that has learned from
    most pairs, and of these in most epochs. Where `among` lists checkpoints it looks at these alone. On
    unprotected features, where there is nothing to adapt to, it is the attack that adaptation starts from.

    A subclass sets `ckpt` (a checkpoint of the stage, such as one of its rounds; None finds it as said) and
    `basic`, the attack on unprotected features.
    """

    stage_class: ClassVar[type[AdaptiveStage]]
    adaptive = True
    ckpt: str | None
    basic: Any  # an Attack or a Reader

    @property
    def runs(self) -> str:
        """How the folders of its stage begin; in `checkpoints` also the key of the stage that was chosen."""
        return self.name

    def adapted(self, file: str) -> dict[str, str | None]:
        """Its `checkpoints` with that one of the stage: by default no others."""
        return {self.runs: file}

    def against(self, target: Target | None, commands: Commands, among: list[str] | None = None) -> Any:  # noqa: ANN401 (another one, on unprotected features)
        """On unprotected features the attack that adaptation starts from, under this one's name."""
        adapted = super().against  # it finds nothing without a target
        bound = self.basic.against(None, commands) if target is None else adapted(target, commands, among)
        bound.name = self.name
        return bound

    def aim(self, target: Target | None) -> None:
        """Chooses the checkpoint for the features to come.

        Raises:
            UserError: none was trained against this defence; the message says how to train it.
        """
        assert target is not None and self.commands is not None
        super().aim(target)
        self.basic = self.basic.against(target, self.commands)
        self.checkpoints = self.adapted(self._choose(target, self.commands))

    def prepare(self, device: str) -> None:
        """Loads the nets that have adapted."""
        self.device = device
        self.net: Any = load_stage(self.checkpoint(self.runs), self.stage_class).to(device)

    def _choose(self, target: Target, commands: Commands) -> str:
        if self.ckpt is not None:
            if not Path(self.ckpt).is_file():
                raise UserError(f"attack {self.name}: there is no checkpoint {self.ckpt}")
            if not fits(_about(self.ckpt, sha256(self.ckpt))[1], target):
                raise UserError(
                    f"attack {self.name}: {self.ckpt} was not trained against {_what(target)}; give the "
                    "checkpoint that was, or none at all to let it be found"
                )
            return self.ckpt
        stage = self.stage_class.stage_name
        there = trained(commands.home, stage) if self.among is None else map(Path, self.among)
        found, others = [], []
        for best in there:
            kind, adaptation, began = _about(str(best), sha256(best) if best.is_file() else "")
            if adaptation is None or kind != self.stage_class.__name__:
                continue
            if not fits(adaptation, target):
                others.append(f"{best.parent.parent.name} learnt from {_other(adaptation, target)}")
            elif not self._starts_alike(best, began):
                others.append(f"{best.parent.parent.name} started from another net than this attack does")
            else:
                found.append((adaptation["pairs"], adaptation["epochs"], str(best)))
        if not found:
            where = f"{commands.home}/*" if self.among is None else "--adapted"
            looked = "; ".join(others) or f"no other run is of the stage {stage}"
            raise UserError(
                f"attack {self.name}: nothing in {where} was trained against {_what(target)} ({looked}); "
                f"train it first: {self._train(target, commands)}"
            )
        return max(found, key=lambda entry: entry[:2])[2]

    def _starts_alike(self, best: Path, began: dict[str, Any]) -> bool:
        """Whether a run bears this attack's name, or began with the nets that it uses itself."""
        return all(
            Path(file).is_file() and sha256(file) == began[key][1]
            for key, file in self.basic.checkpoints.items()
            if key in began and file is not None
        ) or best.parent.parent.name.startswith(self.runs)

    def _train(self, target: Target, commands: Commands) -> str:
        """The command that trains the stage against this defence."""
        stage, (checkpoint, name) = self.stage_class.stage_name, place_of(target, commands.home)
        taken = inspect.signature(self.stage_class).parameters
        more = ["--name", f"{self.runs}-{name}", *options_of(target, "model.init_args.protect")]
        more += [
            word
            for start, file in self.basic.checkpoints.items()
            if f"{start}_ckpt" in taken and file is not None and Path(file).parent.parent.name != start
            for word in (f"--model.init_args.{start}_ckpt", file)
        ]
        if checkpoint.resolve() != (commands.home / "crafter" / "checkpoints" / "best.ckpt").resolve():
            more += ["--model.init_args.defense_ckpt", str(checkpoint)]
        return commands.fit(stage, *more)


class AdaptedAttack(Adapted, Attack):
    """An attack by a stage that has adapted, see `Adapted`."""

    def settings(self) -> dict[str, Any]:
        """By default none: those of what has adapted are in its checkpoint."""
        return {}

    def history(self) -> list[tuple[dict[str, int], Attack]]:
        """The rounds of the chosen training, each with an attack by its checkpoint."""
        moments: list[tuple[dict[str, int], Attack]] = []
        files = Path(self.checkpoint(self.runs)).parent.glob("round-*.ckpt")
        found = [(file, read_checkpoint(file)["adaptation"]) for file in files]
        for file, adaptation in sorted(found, key=lambda entry: entry[1]["round"]):
            earlier = copy.copy(self)
            earlier.checkpoints = self.adapted(str(file))
            moments.append(({key: adaptation[key] for key in ("round", "pairs", "epochs")}, earlier))
        return moments


@lru_cache(maxsize=256)
def _about(path: str, digest: str) -> tuple[str | None, dict[str, Any] | None, dict[str, Any]]:
    """A checkpoint's class, what it has adapted to, and the hashes of what it began with."""
    content = read_checkpoint(path)
    adaptation = content.get("adaptation")
    return content.get("stage_class"), adaptation and present(adaptation), content.get("upstream", {})


def _other(adaptation: dict[str, Any], target: Target) -> str:
    """What a run has learnt from, as far as it is something else."""
    if adaptation["defense"] != target.manifest["defense"]:
        return str(adaptation["defense"])
    mine, its = target.manifest["settings"], adaptation["settings"]
    differs = [
        f"{key} {its.get(key)}"
        for key in sorted(mine.keys() | its.keys() - {"seed"})
        if its.get(key) != mine.get(key)
    ]
    if not differs:
        other = "version" if adaptation.get("version", 1) != target.manifest.get("version", 1) else "weights"
        return f"another {other} of {adaptation['defense']}"
    return f"{adaptation['defense']} with {', '.join(differs)}"


def _what(target: Target) -> str:
    words = ", ".join(f"{name} {value}" for name, value in marks_of(target).items())
    return f"{target.manifest['defense']}{f' ({words})' if words else ''} as it is"
