"""The panel of oracles: independent recognisers that say whom a reconstruction shows; the worst case.

One recogniser can be fooled by patterns that no human sees; a picture that any of several names is
identified.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crafter_pl.audit.schema import FalseSecurity, WorstCase
from crafter_pl.errors import UserError
from crafter_pl.metrics import IdentityBootstrap, identity_similarity, topk_hits, worst_case_chance
from crafter_pl.stages.oracle import IdentityOracle


@dataclass(frozen=True)
class Judgement:
    """What each of `O` oracles says about `N` pictures."""

    hits: Tensor  # (O, N) bool: names the right person
    top5: Tensor  # (O, N) bool: has the right person among its five best guesses
    named: Tensor  # (O, N) int64: whom it names, as a row of `Panel.people`
    similarity: Tensor  # (O, N): cosine of the embeddings of picture and original
    embeddings: list[Tensor]  # of each oracle (N, E), unit vectors


class Panel:
    """Oracles with the truth about the audited pictures.

    Args:
        oracles: by name, the first being the one of the paper's Eval Acc; moved to `device` by the caller.
        images: originals `(N, 3, H, W)` in [0, 1].
        identity: `(N,)` raw identity of each.
        device: where the oracles are.
        batch_size: pictures judged at a time.

    Raises:
        UserError: if an oracle does not know one of the people.
    """

    def __init__(
        self,
        oracles: Mapping[str, IdentityOracle],
        images: Tensor,
        identity: Tensor,
        device: str,
        batch_size: int,
    ) -> None:
        """Embed the originals, and judge them: how good each oracle is."""
        self.oracles, self.device, self.batch_size = oracles, device, batch_size
        self.classes = {name: torch.as_tensor(o.hparams["identities"]).long() for name, o in oracles.items()}
        for name, classes in self.classes.items():
            if strangers := sorted(set(identity.tolist()) - set(classes.tolist())):
                raise UserError(
                    f"Oracle {name} was trained on other people: it does not know {len(strangers)} of the "
                    f"{len(identity.unique())} audited ones (first {strangers[0]}). Train it on this split."
                )
        self.people = torch.cat(list(self.classes.values())).unique()
        self.truth = torch.searchsorted(self.people, identity)
        self.identity = identity
        self.embeddings = [self.batched(oracle.embed, images) for oracle in oracles.values()]
        self.originals = self.judge(images)

    @torch.no_grad()
    def batched(self, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """A function of pictures or features ``(N, ...)``, a few at a time."""
        parts = values.split(self.batch_size)
        return torch.cat([function(part.to(self.device)).float().cpu() for part in parts])

    def judge(self, images: Tensor) -> Judgement:
        """Let every oracle look at pictures `(N, 3, H, W)`, in the order of the originals."""
        hits, top5, named, similarity, embeddings = [], [], [], [], []
        for (name, oracle), original in zip(self.oracles.items(), self.embeddings, strict=True):
            logits, classes = self.batched(oracle.logits, images), self.classes[name]
            label = (classes[None, :] == self.identity[:, None]).long().argmax(dim=1)
            hits.append(topk_hits(logits, label, 1))
            top5.append(topk_hits(logits, label, 5))
            named.append(torch.searchsorted(self.people, classes[logits.argmax(dim=1)]))
            embeddings.append(self.batched(oracle.embed, images))
            similarity.append(identity_similarity(embeddings[-1], original))
        return Judgement(
            torch.stack(hits), torch.stack(top5), torch.stack(named), torch.stack(similarity), embeddings
        )


class Joint(NamedTuple):
    """What several attacks together make of each picture."""

    hits: Tensor  # (N,) bool: any attack's reconstruction is named by any oracle
    chance: Tensor  # (N,) float64: how often that would be so by chance, see `worst_case_chance`

    @property
    def rate(self) -> float:
        """Of the pictures that are hit."""
        return float(self.hits.double().mean())


def any_of(judgements: Sequence[Judgement], panel: Panel) -> Joint:
    """Join what the panel says of several attacks."""
    hits = torch.cat([judgement.hits for judgement in judgements]).any(dim=0)
    named = torch.cat([judgement.named for judgement in judgements])
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
