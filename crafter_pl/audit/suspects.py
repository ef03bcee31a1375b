"""What an attacker who has other pictures of the private people makes of them: the gallery, by features."""

from pathlib import Path

from torch import Tensor

from crafter_pl.attacks.base import Gallery
from crafter_pl.attacks.queries import GalleryQueries
from crafter_pl.audit.features import Loaded, encode
from crafter_pl.audit.process_group import ProcessGroup
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import first_of_each
from crafter_pl.errors import UserError
from crafter_pl.stages.task import TaskModel


class Suspects:
    """The gallery, sent through the encoder and the defence behind a set of features.

    Args:
        data: set up.
        pictures: of each person, at most; 0: all.
        task: the task model, for unprotected features.
        folder: where what a defence has crafted is kept.
        group: processes that share the crafting.
        batch_size: pictures encoded at a time.
    """

    def __init__(
        self,
        data: FacesDataModule,
        pictures: int,
        task: TaskModel,
        folder: Path,
        group: ProcessGroup,
        batch_size: int,
    ) -> None:
        self.data, self.task, self.folder, self.group = data, task, folder, group
        self.pictures, self.batch_size = pictures, batch_size
        self._known: dict[str, Gallery] = {}

    def gallery(self, loaded: Loaded) -> Gallery:
        """As the attacker has it for these features; all processes call it together.

        Raises:
            UserError: the defence behind them is not at hand.
        """
        label = loaded.about.label
        if label not in self._known:
            everybody = self.data.dataset("gallery")
            people = everybody.faces.identity[everybody.index]
            rows = everybody.index[first_of_each(people, self.pictures)]
            rows, features = (self._plain if loaded.target is None else self._crafted)(rows, loaded)
            batch = everybody.take(rows)
            self._known[label] = Gallery(batch["image"], batch["identity"], features)
        return self._known[label]

    def _plain(self, rows: Tensor, loaded: Loaded) -> tuple[Tensor, Tensor]:
        images = self.data.dataset("gallery").take(rows)["image"]
        return rows, encode(self.task, images, self.group.device, self.batch_size)[0]

    def _crafted(self, rows: Tensor, loaded: Loaded) -> tuple[Tensor, Tensor]:
        target = loaded.target
        assert target is not None
        if target.defense is None or target.options is None:
            raise UserError(
                f"the defence behind {loaded.about.title} is not at hand: attackers with a gallery send it "
                "through the defence. Give its checkpoint as --defenses, or leave them out (--rulers)"
            )
        queries = GalleryQueries(self.folder, target.defense, target.options, self.data)
        queries.ensure(len(rows), "gallery", self.group.rank, self.group.world, self.group.wait)
        features, _, order = queries.batch(len(rows), "gallery")
        return order, features
