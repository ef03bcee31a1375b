"""People's pictures in turn, sent through a defence: by whoever has a gallery of suspects."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.queries import Queries
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import rank_in_person
from crafter_pl.defenses import Defense, ProtectOptions
from crafter_pl.errors import UserError

HELD_OUT = 40  # public people on whom an attacker with a gallery tries what to do with it


class PeopleQueries(Queries):
    """Queries of some people, picture by picture: everybody's first, then everybody's second, ...

    So an attacker who has suspects' pictures sends them through the defence: the part ``gallery``. On people
    who are no suspects, ``held_out``, who are of ``public_val``, it is tried before. Of ``strangers``, any
    public people, one learns what differs between pictures of one person.
    """

    def __init__(
        self, folder: str | Path, defense: Defense[Any], options: ProtectOptions, data: FacesDataModule
    ) -> None:
        super().__init__(folder, defense, options, data)
        self.images = lambda rows: data.dataset("gallery").take(rows)["image"]

    def order(self, split: str = "gallery") -> Tensor:
        """The part's pictures, rows of the data set ``(M,)``."""
        return people_rows(self.data, split)


def people_rows(data: FacesDataModule, part: str, pictures: int = 0) -> Tensor:
    """Rows of a part: everybody's first picture, then everybody's second, ...

    Args:
        data: set up.
        part: ``gallery``, ``held_out`` or ``strangers``; the latter two are up to `HELD_OUT` people, who have
            two pictures or more.
        pictures: of each, at most; 0: all.

    Raises:
        UserError: it is another part.
    """
    if part not in (parts := {"gallery": "gallery", "held_out": "public_val", "strangers": "public"}):
        raise UserError(f"an attacker with a gallery has no pictures of {part}")
    everybody = data.dataset(parts[part])
    rows, people = everybody.index, everybody.faces.identity[everybody.index]
    if part != "gallery":
        known, counts = people.unique(return_counts=True)
        kept = torch.isin(people, known[counts > 1][:HELD_OUT])  # with one picture nobody can be looked for
        rows, people = rows[kept], people[kept]
    rank = rank_in_person(people)
    order = rank.argsort(stable=True)
    return rows[order][rank[order] < (pictures or len(rows))]
