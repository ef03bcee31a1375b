"""What an attacker who has other pictures of the private people makes of them: the gallery, by features."""

from pathlib import Path

from crafter_pl.attacks.people import PeopleQueries, people_rows
from crafter_pl.attacks.reader import Gallery
from crafter_pl.audit.features import Loaded, encode
from crafter_pl.audit.process_group import ProcessGroup
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError
from crafter_pl.stages.task import TaskModel


class Suspects:
    """People's pictures, sent through the encoder and the defence behind a set of features.

    Args:
        data: set up.
        task: the task model, for unprotected features.
        folder: where what a defence has crafted is kept.
        group: processes that share the crafting.
        batch_size: pictures encoded at a time.
    """

    def __init__(
        self, data: FacesDataModule, task: TaskModel, folder: Path, group: ProcessGroup, batch_size: int
    ) -> None:
        self.data, self.task, self.folder, self.group = data, task, folder, group
        self.batch_size = batch_size
        self._known: dict[tuple[str, str, int], Gallery] = {}

    def gallery(self, loaded: Loaded, pictures: int, part: str = "gallery") -> Gallery:
        """As the attacker has it for these features; all processes call it together.

        Args:
            loaded: the features.
            pictures: of each person, at most; 0: all.
            part: ``gallery``; or public people, ``held_out`` or ``strangers``, see `people_rows`.

        Raises:
            UserError: the defence behind them is not at hand.
        """
        key = (loaded.about.label, part, pictures)
        if key not in self._known:
            rows = people_rows(self.data, part, pictures)
            batch = self.data.dataset("gallery").take(rows)
            if (target := loaded.target) is None:
                features = encode(self.task, batch["image"], self.group.device, self.batch_size)[0]
                features = self.group.agree(features)
            elif target.defense is None or target.options is None:
                raise UserError(
                    f"the defence behind {loaded.about.title} is not at hand, and attackers with a gallery "
                    "send it through the defence: give its checkpoint as --defenses, or do without these "
                    "attackers (--rulers null --drawn_images 0)"
                )
            else:
                queries = PeopleQueries(self.folder, target.defense, target.options, self.data)
                queries.ensure(len(rows), part, self.group.rank, self.group.world, self.group.wait)
                features = queries.batch(len(rows), part)[0]
            self._known[key] = Gallery(batch["image"], batch["identity"], features)
        return self._known[key]
