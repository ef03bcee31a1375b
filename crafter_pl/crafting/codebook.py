"""From answers to the number of a message: codebooks, quantisers, and how they are learnt on public faces."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.errors import UserError

_EDGE = 1e-4  # codewords' probabilities stay that far from 0 and 1


class Codebook(nn.Module):
    """The message is the nearest codeword by `divergence` (Bregman clustering, Banerjee et al. 2005).

    In float64. Whoever relies on the proof gives one row at a time: rounding that depends on neighbours would
    be another channel.

    Args:
        codewords: probabilities ``(M, A)``; brought within [1e-4, 1 - 1e-4].
        weights: of the attributes ``(A,)``, see `attribute_weights`; None: all alike.
    """

    codewords: Tensor
    weights: Tensor

    def __init__(self, codewords: Tensor, weights: Tensor | None = None) -> None:
        super().__init__()
        self.codewords = nn.Buffer(codewords.double().clamp(_EDGE, 1 - _EDGE))
        self.weights = nn.Buffer(torch.ones_like(self.codewords[0]) if weights is None else weights.double())

    def forward(self, answers: Tensor) -> Tensor:
        """Logits ``(N, A)`` -> messages ``(N,)``; of equally near ones the first."""
        weights = self.weights * torch.logit(self.codewords)
        offset = (self.weights * torch.log1p(-self.codewords)).sum(1)
        # The divergence less what it has of the answers alone is linear in the probabilities.
        return ((answers.double().sigmoid()[:, None] * weights).sum(2) + offset).argmax(1)


def attribute_weights(probabilities: Tensor) -> Tensor:
    """One over what a public face's answers tell of each attribute, in nats, scaled to a mean of 1: ``(A,)``.

    A rare attribute has few nats, and codewords would be spent on the common ones alone: a mean AUC counts
    all alike.

    Args:
        probabilities: of public faces ``(N, A)``, in [0, 1].
    """
    p = probabilities.double().cpu()
    told = _entropy(p.mean(0)) - _entropy(p).mean(0)
    weights = 1 / told.clamp(min=1e-3)
    return weights / weights.mean()


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) + torch.special.entr(1 - p)


def divergence(probabilities: Tensor, codewords: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted sum over independent attributes of ``KL``, in nats: ``(N, A)`` from ``(M, A)``, ``(N, M)``."""
    p, c = probabilities.double(), codewords.double().clamp(_EDGE, 1 - _EDGE)
    w = torch.ones_like(c[0]) if weights is None else weights.double()
    return -(w * _entropy(p)).sum(1)[:, None] - (w * p) @ c.log().T - (w * (1 - p)) @ torch.log1p(-c).T


def learn_codebook(
    probabilities: Tensor,
    size: int,
    weights: Tensor | None = None,
    seed: int = 0,
    restarts: int = 4,
    iterations: int = 100,
) -> Codebook:
    """Lloyd's algorithm with the divergence: the best codeword of a cell is the mean probability.

    Args:
        probabilities: of public faces ``(N, A)``, in [0, 1].
        size: codewords, M; at most N.
        weights: of the attributes ``(A,)``; None: all alike.
        seed: of the starts (k-means++).
        restarts: of which the best is kept.
        iterations: of each, at most.

    Raises:
        UserError: there are fewer faces than codewords.
    """
    p = probabilities.double().cpu()
    if not 1 <= size <= len(p):
        raise UserError(f"a codebook of {size} words needs as many public faces; there are {len(p)}")
    generator = torch.Generator().manual_seed(seed)
    best, found = math.inf, p[:size]
    for _ in range(restarts):
        words = _spread(p, size, weights, generator)
        before = math.inf
        for _ in range(iterations):
            nearest, cell = divergence(p, words, weights).min(1)
            if (now := float(nearest.mean())) >= before - 1e-9:
                break
            before = now
            words, counts = _means(p, cell, words)
            lost = (counts == 0).nonzero()[:, 0]  # they go where the answers are worst served
            words[lost] = p[nearest.argsort(descending=True)[: len(lost)]]
        if before < best:
            best, found = before, words
    return Codebook(found, weights)


def _means(p: Tensor, cell: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each word's cell, or the word where that is empty; how many are in each."""
    counts = torch.bincount(cell, minlength=len(words))
    means = torch.zeros_like(words).index_add_(0, cell, p) / counts.clamp(min=1)[:, None]
    return torch.where((counts > 0)[:, None], means, words), counts


def _spread(p: Tensor, size: int, weights: Tensor | None, generator: torch.Generator) -> Tensor:
    """Starts of Lloyd's algorithm: each further one is drawn by its divergence from those before."""
    chosen = [int(torch.randint(len(p), (1,), generator=generator))]
    nearest = divergence(p, p[chosen], weights)[:, 0]
    while len(chosen) < size:
        odds = nearest.clamp(min=0)
        odds = odds if float(odds.sum()) > 0 else torch.ones_like(odds)
        chosen.append(int(torch.multinomial(odds, 1, generator=generator)))
        nearest = torch.minimum(nearest, divergence(p, p[chosen[-1:]], weights)[:, 0])
    return p[chosen]


def merged(codebook: Codebook, probabilities: Tensor, floor: float) -> Codebook:
    """Without the words that fewer than a share ``floor`` of public faces have: a rare word names its owner.

    The rarest goes first; its faces go to the nearest words that are left. Then every word is the mean of its
    faces.

    Args:
        codebook: learnt.
        probabilities: of public faces ``(N, A)``.
        floor: in [0, 1).
    """
    p, words, weights = probabilities.double().cpu(), codebook.codewords.cpu(), codebook.weights.cpu()
    while True:
        cell = divergence(p, words, weights).argmin(1)
        counts = torch.bincount(cell, minlength=len(words)).double()
        if len(words) == 1 or float(counts.min()) >= floor * len(p):
            return Codebook(words, weights)
        while counts.isfinite().sum() > 1 and float(counts.min()) < floor * len(p):
            gone = int(counts.argmin())
            counts[gone] = math.inf
            rows = (cell == gone).nonzero()[:, 0]
            if len(rows):
                far = divergence(p[rows], words, weights)
                far[:, counts.isinf()] = math.inf
                cell[rows] = far.argmin(1)
                counts += torch.bincount(cell[rows], minlength=len(words))
        words = _means(p, cell, words)[0][counts.isfinite()]


class Quantiser(nn.Module):
    """Each attribute by itself in ``L`` levels: a product of scalar quantisers, ``M = L ** A`` messages.

    Args:
        edges: where an attribute's levels are parted, probabilities ``(A, L - 1)``, ascending.
        codewords: what each message says, ``(M, A)``; the first attribute's level changes last.
    """

    codewords: Tensor

    def __init__(self, edges: Tensor, codewords: Tensor) -> None:
        super().__init__()
        self.edges, self.codewords = nn.Buffer(edges.double()), nn.Buffer(codewords.double())

    def forward(self, answers: Tensor) -> Tensor:
        """Logits ``(N, A)`` -> messages ``(N,)``."""
        level = (answers.double().sigmoid()[:, :, None] > self.edges).sum(2)
        found, levels = torch.zeros_like(level[:, 0]), self.edges.shape[1] + 1
        for one in level.unbind(1):
            found = found * levels + one
        return found


def learn_quantiser(probabilities: Tensor, levels: int) -> Quantiser:
    """Levels of equal shares of the public faces; each says its faces' mean.

    Args:
        probabilities: of public faces ``(N, A)``, in [0, 1].
        levels: L.

    Raises:
        UserError: L is below 2, or there are more than 2 ** 20 messages.
    """
    p, attributes = probabilities.double().cpu(), probabilities.shape[1]
    if levels < 2 or levels**attributes > 2**20:
        raise UserError(
            f"{levels} levels of {attributes} attributes are {levels**attributes} messages: give 2 or "
            "more levels, and no more than 2**20 messages"
        )
    shares = torch.arange(1, levels, dtype=torch.float64) / levels
    edges = torch.quantile(p, shares, dim=0).T.contiguous()
    level = (p[:, :, None] > edges).sum(2)
    held = F.one_hot(level, levels).double()  # (N, A, L)
    means = (held * p[:, :, None]).sum(0) / held.sum(0).clamp(min=1)
    grid = torch.cartesian_prod(*[torch.arange(levels)] * attributes).view(-1, attributes)
    return Quantiser(edges, means[torch.arange(attributes), grid].clamp(_EDGE, 1 - _EDGE))


def learn_messages(
    probabilities: Tensor, bits: int, levels: int | None, floor: float
) -> Codebook | Quantiser:
    """A codebook of at most ``2 ** bits`` words, rare ones merged, or ``levels`` of each attribute.

    Args:
        probabilities: of public faces ``(N, A)``, in [0, 1].
        bits: see `learn_codebook`.
        levels: see `learn_quantiser`; None: a codebook.
        floor: see `merged`.
    """
    p = probabilities
    if levels is not None:
        return learn_quantiser(p, levels)
    return merged(learn_codebook(p, min(2**bits, len(p)), attribute_weights(p)), p, floor)
