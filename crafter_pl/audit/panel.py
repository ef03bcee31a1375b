"""The panel of oracles: independent recognisers that say whom a reconstruction shows.

One recogniser can be fooled by patterns that no human sees; a picture that any of several names is
identified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from crafter_pl.errors import UserError
from crafter_pl.metrics import identity_similarity, topk_hits
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
            strangers = sorted(set(identity.tolist()) - set(classes.tolist()))
            if strangers:
                raise UserError(
                    f"Oracle {name} was trained on other people: it does not know {len(strangers)} of the "
                    f"{len(identity.unique())} audited ones (first {strangers[0]}). Train it on this split."
                )
        self.people = torch.cat(list(self.classes.values())).unique()
        self.truth = torch.searchsorted(self.people, identity)
        self.identity = identity
        self.embeddings = [self._batched(oracle.embed, images) for oracle in oracles.values()]
        self.originals = self.judge(images)

    def _batched(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [function(part.to(self.device)).float().cpu() for part in images.split(self.batch_size)]
        return torch.cat(parts)

    def judge(self, images: Tensor) -> Judgement:
        """Let every oracle look at pictures `(N, 3, H, W)`, in the order of the originals."""
        hits, top5, named, similarity, embeddings = [], [], [], [], []
        for (name, oracle), original in zip(self.oracles.items(), self.embeddings, strict=True):
            logits, classes = self._batched(oracle.logits, images), self.classes[name]
            label = (classes[None, :] == self.identity[:, None]).long().argmax(dim=1)
            hits.append(topk_hits(logits, label, 1))
            top5.append(topk_hits(logits, label, 5))
            named.append(torch.searchsorted(self.people, classes[logits.argmax(dim=1)]))
            embeddings.append(self._batched(oracle.embed, images))
            similarity.append(identity_similarity(embeddings[-1], original))
        return Judgement(
            torch.stack(hits), torch.stack(top5), torch.stack(named), torch.stack(similarity), embeddings
        )
