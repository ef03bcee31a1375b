"""The panel of judges: independent recognisers that say whom a reconstruction shows; the worst case.

One recogniser can be fooled by patterns that no human sees; a picture that any of several names is
identified.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from crafter_pl.audit.schema import FalseSecurity, WorstCase
from crafter_pl.errors import UserError
from crafter_pl.judges import Judge, embedded
from crafter_pl.metrics import IdentityBootstrap, identity_similarity, topk_hits, worst_case_chance


@dataclass(frozen=True)
class Judgement:
    """What each of `O` judges says about `N` pictures."""

    hits: Tensor  # (O, N) bool: names the right person
    top5: Tensor  # (O, N) bool: has the right person among its five best guesses
    named: Tensor  # (O, N) int64: whom it names, as a row of `Panel.people`
    similarity: Tensor  # (O, N): cosine of the embeddings of picture and original
    embeddings: list[Tensor]  # of each judge (N, E)


class Panel:
    """Judges with the truth about the audited pictures.

    Args:
        judges: the first is the one of the paper's Eval Acc.
        images: originals `(N, 3, H, W)` in [0, 1].
        identity: `(N,)` raw identity of each.
        device: where the judges are.
        batch_size: pictures judged at a time.
        cache: folder where pretrained judges' embeddings are kept by what they are of; None: nowhere.

    Raises:
        UserError: if a judge does not know one of the people.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        images: Tensor,
        identity: Tensor,
        device: str,
        batch_size: int,
        cache: Path | None = None,
    ) -> None:
        """Embed the originals, and judge them: how good each judge is."""
        self.judges = {judge.name: judge for judge in judges}
        self.device, self.batch_size, self.cache = device, batch_size, cache
        self.files = {judge.kept for judge in judges}  # of `cache` that were of use
        for judge in judges:
            if strangers := sorted(set(identity.tolist()) - set(judge.identities.tolist())):
                raise UserError(
                    f"{judge.name} was trained on other people, or its gallery lacks some: it does not know "
                    f"{len(strangers)} of the {len(identity.unique())} audited ones (first {strangers[0]}). "
                    "Train it on this split."
                )
        self.people = torch.cat([judge.identities for judge in judges]).unique()
        self.truth = torch.searchsorted(self.people, identity)
        self.identity = identity
        self.embeddings = [self.embedded(judge, images) for judge in judges]
        self.originals = self._judge(self.embeddings)

    @torch.no_grad()
    def batched(self, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """A function of pictures or features ``(N, ...)``, a few at a time."""
        parts = values.split(self.batch_size)
        return torch.cat([function(part.to(self.device)).float().cpu() for part in parts])

    def embedded(self, judge: Judge, images: Tensor) -> Tensor:
        """A judge's embeddings of pictures ``(N, 3, H, W)``; those of a pretrained one are kept."""
        if judge.seen:
            return self.batched(judge.embed, images)
        made, file = embedded(judge, images, self.device, self.batch_size, self.cache)
        self.files.add(file)
        return made

    def judge(self, images: Tensor, judges: Sequence[Judge] | None = None) -> Judgement:
        """Let every judge look at pictures `(N, 3, H, W)`, in the order of the originals.

        Args:
            images: in [0, 1].
            judges: the same with other galleries; None: the panel's.
        """
        found = [self.embedded(judge, images) for judge in self.judges.values()]
        return self._judge(found, judges)

    @torch.no_grad()
    def _judge(self, embeddings: list[Tensor], judges: Sequence[Judge] | None = None) -> Judgement:
        hits, top5, named, similarity = [], [], [], []
        every = zip(judges or self.judges.values(), embeddings, self.embeddings, strict=True)
        for judge, made, original in every:
            scores, known = judge.scores(made), judge.identities
            label = (known[None, :] == self.identity[:, None]).long().argmax(dim=1)
            hits.append(topk_hits(scores, label, 1))
            top5.append(topk_hits(scores, label, 5))
            named.append(torch.searchsorted(self.people, known[scores.argmax(dim=1)]))
            similarity.append(identity_similarity(made, original))
        return Judgement(
            torch.stack(hits), torch.stack(top5), torch.stack(named), torch.stack(similarity), embeddings
        )


class Joint(NamedTuple):
    """What several attacks together make of each picture."""

    hits: Tensor  # (N,) bool: any attack's reconstruction is named by any judge
    chance: Tensor  # (N,) float64: how often that would be so by chance, see `worst_case_chance`

    @property
    def rate(self) -> float:
        """Of the pictures that are hit."""
        return float(self.hits.double().mean())


def any_of(judgements: Sequence[Judgement], panel: Panel) -> Joint:
    """Join what the panel says of several attacks."""
    return joined(torch.cat([judgement.named for judgement in judgements]), panel)


def joined(named: Tensor, panel: Panel) -> Joint:
    """Join several guesses at each picture, rows of `Panel.people` ``(V, N)``."""
    hits = (named == panel.truth).any(dim=0)
    return Joint(hits, worst_case_chance(named, panel.truth, len(panel.people)))


def worst_case(joint: Joint, boot: IdentityBootstrap) -> WorstCase:
    """Of the pictures that are hit, with the level by chance."""
    return WorstCase(boot.mean(joint.hits).estimate(), float(joint.chance.mean()))


def false_security(
    basic: Sequence[Judgement], adaptive: Mapping[str, Judgement], panel: Panel, boot: IdentityBootstrap
) -> FalseSecurity | None:
    """Whether an attack that knows the defence identifies more faces than any that does not.

    One attack against one, the strongest of either side, so that both have as many guesses; the difference is
    paired over the resamples of people and must hold after each one's chance level is taken off. The adaptive
    one is the best of several: its interval is as wide as so many tries ask for (Bonferroni).

    Returns:
        The flag and its figures; None without both kinds of attacks.
    """
    if not basic or not adaptive:
        return None
    joints = {name: any_of([one], panel) for name, one in adaptive.items()}
    strongest = max(joints, key=lambda name: joints[name].rate)
    after, before = joints[strongest], max((any_of([one], panel) for one in basic), key=lambda own: own.rate)
    more = after.hits.double() - before.hits.double()
    gain, beyond = (
        boot.mean(one).estimate(len(adaptive)) for one in (more, more - (after.chance - before.chance))
    )
    return FalseSecurity(
        flag=gain.low > 0 and beyond.low > 0,
        basic=boot.mean(before.hits).estimate(),
        adaptive=boot.mean(after.hits).estimate(),
        gain=gain,
        gain_beyond_chance=beyond,
        strongest=strongest,
    )
