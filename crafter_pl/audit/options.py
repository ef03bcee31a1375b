"""What an audit is asked: the options of the verb."""

from dataclasses import dataclass
from pathlib import Path

from crafter_pl.attacks.base import Attack
from crafter_pl.attacks.reader import Reader
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import check_several
from crafter_pl.data.store import MANIFEST
from crafter_pl.errors import UserError
from crafter_pl.files import ordinary
from crafter_pl.judges import Recogniser
from crafter_pl.limits import NonNegativeInt


@dataclass(frozen=True)
class Options:
    """How to attack features, protected and not, and report what they hide and what they keep.

    Checkpoints are paths, or names of runs of the experiment.

    Args:
        data: the faces; the private_test part is audited.
        features: feature stores to audit, paths or names of the experiment's, one or more (default: the only
            one of the experiment). Stores that differ in their seed alone are several queries of the same
            faces.
        oracles: checkpoints of identity oracles; the first gives the paper's Eval Acc, all of them the worst
            case (default: all that the experiment has trained). A run that is not trained yet is left out,
            and the report says so.
        recognisers: pretrained face recognisers that judge before the oracles: the first then gives Eval Acc.
            Each knows the private people by a gallery of their other pictures.
        gallery_images: pictures of each person in the galleries of judges and readers, at most; 0: all.
        drawn_images: pictures of each person that every attack also draws for a gallery in its own domain, by
            which recognisers may know people better; 40 public people decide whether they do; 0: none.
        attacks: what to attack the features with, in place of a budget.
        budgets: lists of attacks by name, from few and quick to many and strong.
        budget: which of these lists (in our configs quick, standard, adaptive or exhaustive).
        rulers: what reads features without drawing a picture; reported apart: `GalleryLDA` and `WatchList`
            have other pictures of the people, `Link` says which two features are one person's, `FeatureToID`
            was trained on the people.
        clouds: checkpoints of cloud classifiers that have learned from unprotected features and from these
            defences': the utility in the training scenario, beside that of the trained classifier.
        defenses: checkpoints of the defences behind the stores, where they lie neither beside the store nor
            in the experiment's folder: attackers who adapt query them.
        adapted: checkpoints of stages that have adapted to these defences: attacks that adapt look at no
            others (default: at all finished ones of the experiment, and take the one that has learned most).
        groups: attributes by which utility and protection are also reported apart, such as `Male`: the faces
            that have it beside those that have not. One that the data lack is named and left out.
        task_ckpt: checkpoint of the task model (default: the experiment's own).
        experiment: folder under runs_dir where default checkpoints are looked for.
        runs_dir: folder of all runs.
        out: folder of the report (default: RUNS_DIR/EXPERIMENT/audit, for another budget than standard
            audit-BUDGET).
        device: auto, cpu, cuda, cuda:1, ...
        devices: processes on this machine that share the attacks, each on a device of its own; they are
            started here, or by torchrun or SLURM.
        num_nodes: machines, each with so many processes.
        batch_size: pictures or features at a time.
        bootstrap: resamples behind each interval.
        seed: of the bootstrap, and of attacks that draw random numbers.
        lpips: also measure LPIPS; needs ImageNet weights of AlexNet.
        overwrite: replace a report that is there; reconstructions that are still valid are used again.
    """

    data: FacesDataModule
    features: list[str] | str | None = None
    oracles: list[str] | str | None = None
    recognisers: list[Recogniser] | Recogniser | None = None
    gallery_images: NonNegativeInt = 8
    drawn_images: NonNegativeInt = 0
    attacks: list[Attack] | Attack | None = None
    budgets: dict[str, list[Attack]] | None = None
    budget: str = "standard"
    rulers: list[Reader] | Reader | None = None
    clouds: list[str] | str | None = None
    defenses: list[str] | str | None = None
    adapted: list[str] | str | None = None
    groups: list[str] | str | None = None
    task_ckpt: str | None = None
    experiment: str = "synthetic"
    runs_dir: str = "runs"
    out: str | None = None
    device: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    batch_size: int = 64
    bootstrap: int = 1000
    seed: int = 0
    lpips: bool = False
    overwrite: bool = False

    @property
    def home(self) -> Path:
        """The experiment's folder."""
        return Path(self.runs_dir) / self.experiment

    @property
    def budget_used(self) -> str | None:
        """The budget's name; None where attacks were given instead."""
        return self.budget if self.attacks is None else None

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        default = "audit" if self.budget_used in (None, "standard") else f"audit-{self.budget}"
        return self.home / default if self.out is None else Path(self.out)

    @property
    def cache(self) -> Path:
        """Where reconstructions are kept."""
        return self.folder / "cache"

    def check(self, attacks: list[Attack], rulers: list[Reader]) -> None:
        """Refuse what cannot be audited before anything is loaded.

        Raises:
            UserError: there is a report or a run in the folder, nothing to attack with, two attacks of one
                name, a number under 1, or a single private person.
        """
        if (self.folder / "report.json").exists() and not self.overwrite:
            raise UserError(
                f"there is a report in {self.folder} already: give --overwrite true, or another --out"
            )
        for name in ("report.json", "report.html", "table.csv"):
            ordinary(self.folder / name)
        if (self.folder / "checkpoints").exists() or (self.folder / MANIFEST).exists():
            raise UserError(f"{self.folder} holds a run or a feature store: give another --out")
        names = [adversary.name for adversary in (*attacks, *rulers)]
        if not attacks:
            raise UserError("an audit needs at least one attack: give --attacks or a --budget")
        if len(set(names)) < len(names):
            raise UserError(
                f"two attacks have one name ({', '.join(names)}): give each its own init_args.name"
            )
        if self.bootstrap < 1 or self.batch_size < 1:
            raise UserError(
                f"--bootstrap is {self.bootstrap} and --batch_size {self.batch_size}; give at least 1 for "
                "both"
            )
        if self.drawn_images and not self.recognisers:
            raise UserError(
                f"--drawn_images {self.drawn_images} is for recognisers that know people by a gallery: give "
                "--recognisers, or leave it out"
            )
        if self.drawn_images and self.data.identities == "none":
            raise UserError(
                f"--drawn_images {self.drawn_images} draws other pictures of each person, and with "
                "--data.identities none nobody has any: leave one of them out"
            )
        check_several(self.data.private_people, "--data.private_people")
