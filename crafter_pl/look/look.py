"""The verb `look`: the faces, the nets, the page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from crafter_pl import __version__
from crafter_pl.audit import find
from crafter_pl.audit.show.page import render
from crafter_pl.commands import Commands, settings_of
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.framing import OFFICIAL
from crafter_pl.data.pictures import Refused, shown
from crafter_pl.device import pick_device
from crafter_pl.edge.faces import Finder, cut
from crafter_pl.edge.photos import open_photo, photographs
from crafter_pl.errors import UserError
from crafter_pl.files import write_file
from crafter_pl.limits import PositiveInt
from crafter_pl.look.rebuilt import Missing, Shown, rebuilt
from crafter_pl.stages import TaskModel, load_stage


@dataclass(frozen=True)
class Look:
    """Show faces, what an attacker rebuilds from what is sent, and what a message says, on one page.

    Nothing is sent, and no account is charged.

    Args:
        photos: photographs, and folders of them; none: faces of the data.
        data: the faces that are shown where no photographs are given, the first picture of each of the first
            private people (default: the synthetic ones).
        faces: of each photograph the largest face, all, or none: it is a face already.
        count: how many faces are shown, at most.
        task_ckpt: checkpoint of the task model (default: the experiment's own).
        experiment: folder under runs_dir whose trained nets are shown.
        runs_dir: folder of all runs.
        out: the HTML file; it needs no other one (default: RUNS_DIR/EXPERIMENT/look.html).
        device: auto, cpu, cuda, cuda:1, ...
    """

    photos: list[str] | None = None
    data: FacesDataModule | None = None
    faces: Literal["largest", "all", "none"] = "largest"
    count: PositiveInt = 4
    task_ckpt: str | None = None
    experiment: str = "synthetic"
    runs_dir: str = "runs"
    out: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Looked:
    """All that the page shows.

    Attributes:
        names: of the faces.
        originals: ``(N, 3, S, S)`` in [0, 1].
        shown: what attackers made of them.
        settings: of the certified defences, see `rebuilt`.
        missing: what there is no net for.
    """

    names: list[str]
    originals: Tensor
    shown: list[Shown]
    settings: list[str]
    missing: list[Missing]

    @property
    def notes(self) -> dict[str, str]:
        """A sentence on each heading."""
        return {one.title: one.note for one in self.shown}


def look(asked: Look) -> Path:
    """Writes the page, readable by its owner alone where it shows photographs, and says where it is.

    Raises:
        UserError: task model or decoder are missing, no photograph has a face, or the data are not those that
            the nets were trained on.
    """
    found = looked(asked)
    if found.missing:
        lines = [f"not shown, not trained: {one.what}: {one.command}" for one in found.missing]
        print("\n".join(lines), flush=True)
    out = Path(asked.out or Path(asked.runs_dir) / asked.experiment / "look.html")
    page = render("look", found=found, photographs=bool(asked.photos), version=__version__)
    write_file(out, page, 0o600 if asked.photos else 0o666)
    print(f"look: {out}", flush=True)
    return out


def looked(asked: Look) -> Looked:
    """Opens faces and nets, and lets the attackers draw."""
    from crafter_pl.plugins import import_stages

    import_stages()
    home, device = Path(asked.runs_dir) / asked.experiment, pick_device(asked.device)
    data = asked.data
    if data is None and not asked.photos:
        data = FacesDataModule()
    commands = Commands(home, {} if data is None else settings_of(data))
    task = load_stage(find.find_task(commands, asked.task_ckpt), TaskModel).to(device)
    if asked.photos:
        names, faces = _from_photographs(asked, task, device)
    else:
        assert data is not None
        names, faces = _from_data(data, task, asked.count)
    return Looked(names, faces.cpu(), *rebuilt(task, commands, faces.to(device), device))


def _from_data(data: FacesDataModule, task: TaskModel, count: int) -> tuple[list[str], Tensor]:
    """The first picture of each of the first private people."""
    data.setup("test")
    if task.trained_on[0] is not None and not data.same_people(task.trained_on[0]):
        raise UserError(
            "the task model was trained on another split, and may know the people that would be shown: give "
            "the --data that it was trained with, such as --data configs/small.yaml after make demo, or "
            "photographs"
        )
    rows = data.rows(find.SPLIT)
    first = [int((rows["identity"] == person).nonzero()[0]) for person in rows["identity"].unique()[:count]]
    return [f"person {number}" for number in range(1, len(first) + 1)], rows["image"][first]


def _from_photographs(asked: Look, task: TaskModel, device: str) -> tuple[list[str], Tensor]:
    """The faces that are found, cut as the encoder knows them."""
    if task.trained_on[1] == "synthetic":
        print("note: these nets were trained on faces drawn by code, not on photographs", flush=True)
    finder = Finder(asked.faces, frame=task.frame or OFFICIAL, device=device)
    listed, refused = photographs(asked.photos or [], set())
    names, faces = [], list[Tensor]()
    for path in listed:
        try:
            picture, _ = open_photo(Path(path))
            places = finder.find(picture)
        except Refused as found:
            refused.append((path, found))
            continue
        names += [Path(path).name] * len(places)
        faces += [cut(picture, place, int(task.hparams["image_size"])) for place in places]
    for path, why in refused:
        print(f"skipped {shown(path)}: {why}", flush=True)
    if not faces:
        raise UserError("no face was found in the photographs given: --faces none takes a picture as a face")
    if len(faces) > asked.count:
        print(f"note: the first {asked.count} of {len(faces)} faces; more by --count", flush=True)
    return names[: asked.count], torch.stack(faces[: asked.count]).float() / 255
