"""A gallery in an attack's own domain: a recogniser may know people better by pictures as blurred."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crafter_pl.attacks.reader import Gallery
from crafter_pl.audit.attack import Job
from crafter_pl.audit.panel import Panel
from crafter_pl.data.split import rank_in_person
from crafter_pl.judges import GalleryJudge, Judge

FEWEST = 10


@dataclass(frozen=True)
class Domain:
    """What an attack draws of the suspects' other pictures, and of public people's.

    Attributes:
        suspects: the gallery.
        held_out: public people, on whom it is decided which gallery counts; of fewer than `FEWEST` people the
            originals do.
        job: draws both, one after the other.
    """

    suspects: Gallery
    held_out: Gallery
    job: Job

    def judges(self, panel: Panel) -> tuple[list[Judge], dict[str, str]]:
        """The panel, where each recogniser knows people by the gallery that serves it better.

        Better is what names more of the held-out people's first pictures, as drawn, by their others: as they
        are, or as drawn, too.

        Returns:
            The judges, and for each recogniser ``originals`` or ``drawn``.
        """
        drawn, count = self.job.pictures(), len(self.suspects.identity)
        judges, chosen = [], {}
        for judge in panel.judges.values():
            if isinstance(judge, GalleryJudge):
                made, clean = panel.embedded(judge, drawn), panel.embedded(judge, self.held_out.images)
                known = {"originals": clean, "drawn": made[count:]}
                rates = {name: self._named(judge, made[count:], own) for name, own in known.items()}
                best = max(rates, key=lambda name: rates[name])  # the originals, if alike
                chosen[judge.name] = best if len(self.held_out.people) >= FEWEST else "originals"
                if chosen[judge.name] == "drawn":
                    judge = GalleryJudge(judge.recogniser, made[:count], self.suspects.identity, judge.kept)
            judges.append(judge)
        return judges, chosen

    def _named(self, judge: GalleryJudge, made: Tensor, known: Tensor) -> float:
        """Share of the first pictures whose person has the most similar mean of the others."""
        probe, identity = rank_in_person(self.held_out.identity) == 0, self.held_out.identity
        if not len(identity[~probe]):
            return 0.0
        theirs = GalleryJudge(judge.recogniser, known[~probe], identity[~probe])
        found = theirs.identities[theirs.scores(made[probe]).argmax(1)]
        return float((found == identity[probe]).float().mean())


def features(suspects: Gallery, held_out: Gallery) -> Tensor:
    """What an attack is given to draw, ``(1, N, C, h, w)``."""
    return torch.cat([suspects.features, held_out.features])[None]
