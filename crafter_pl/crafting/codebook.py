"""From answers to the number of a message: codebooks, quantisers, and how they are learnt on public faces."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.answers import ATTRIBUTES, Answers
from crafter_pl.errors import UserError


class Codebook(nn.Module):
    """The message is the nearest codeword by `divergence` (Bregman clustering, Banerjee et al. 2005).

    In float64. Whoever relies on the proof gives one row at a time: rounding that depends on neighbours would
    be another channel.

    Args:
        codewords: statistics ``(M, A)``, of attributes probabilities; see `Answers.settled`.
        weights: of the outputs ``(A,)``, see `Answers.weights`; None: all alike.
        answers: what outputs mean.
    """

    codewords: Tensor
    weights: Tensor

    def __init__(
        self, codewords: Tensor, weights: Tensor | None = None, answers: Answers = ATTRIBUTES
    ) -> None:
        super().__init__()
        self.answers = answers
        self.codewords = nn.Buffer(answers.settled(codewords.double()))
        self.weights = nn.Buffer(torch.ones_like(self.codewords[0]) if weights is None else weights.double())

    def forward(self, answers: Tensor) -> Tensor:
        """Outputs ``(N, A)`` -> messages ``(N,)``; of equally near ones the first."""
        slopes, offsets = self.answers.plane(self.codewords, self.weights)
        # The divergence less what it has of the answers alone is linear in the statistic.
        return ((self.answers.statistic(answers.double())[:, None] * slopes).sum(2) + offsets).argmax(1)


def divergence(
    statistics: Tensor, codewords: Tensor, weights: Tensor | None = None, answers: Answers = ATTRIBUTES
) -> Tensor:
    """Of statistics ``(N, A)`` from codewords ``(M, A)``: ``(N, M)``; of attributes in nats."""
    return answers.far(statistics, codewords, weights)


def learn_codebook(
    statistics: Tensor,
    size: int,
    weights: Tensor | None = None,
    seed: int = 0,
    restarts: int = 4,
    iterations: int = 100,
    answers: Answers = ATTRIBUTES,
) -> Codebook:
    """Lloyd's algorithm with the divergence: the best codeword of a cell is the mean statistic.

    Args:
        statistics: of public faces ``(N, A)``.
        size: codewords, M; at most N.
        weights: of the outputs ``(A,)``; None: all alike.
        seed: of the starts (k-means++).
        restarts: of which the best is kept.
        iterations: of each, at most.
        answers: what outputs mean.

    Raises:
        UserError: there are fewer faces than codewords.
    """
    p = statistics.double().cpu()
    if not 1 <= size <= len(p):
        raise UserError(f"a codebook of {size} words needs as many public faces; there are {len(p)}")
    generator = torch.Generator().manual_seed(seed)
    best, found = math.inf, p[:size]
    for _ in range(restarts):
        words = _spread(p, size, weights, generator, answers)
        before = math.inf
        for _ in range(iterations):
            nearest, cell = divergence(p, words, weights, answers).min(1)
            if (now := float(nearest.mean())) >= before - 1e-9:
                break
            before = now
            words, counts = _means(p, cell, words)
            lost = (counts == 0).nonzero()[:, 0]  # they go where the answers are worst served
            words[lost] = p[nearest.argsort(descending=True)[: len(lost)]]
        if before < best:
            best, found = before, words
    return Codebook(found, weights, answers)


def _means(p: Tensor, cell: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each word's cell, or the word where that is empty; how many are in each."""
    counts = torch.bincount(cell, minlength=len(words))
    means = torch.zeros_like(words).index_add_(0, cell, p) / counts.clamp(min=1)[:, None]
    return torch.where((counts > 0)[:, None], means, words), counts


def _spread(
    p: Tensor, size: int, weights: Tensor | None, generator: torch.Generator, answers: Answers
) -> Tensor:
    """Starts of Lloyd's algorithm: each further one is drawn by its divergence from those before."""
    chosen = [int(torch.randint(len(p), (1,), generator=generator))]
    nearest = divergence(p, p[chosen], weights, answers)[:, 0]
    while len(chosen) < size:
        odds = nearest.clamp(min=0)
        odds = odds if float(odds.sum()) > 0 else torch.ones_like(odds)
        chosen.append(int(torch.multinomial(odds, 1, generator=generator)))
        nearest = torch.minimum(nearest, divergence(p, p[chosen[-1:]], weights, answers)[:, 0])
    return p[chosen]


def merged(codebook: Codebook, statistics: Tensor, floor: float) -> Codebook:
    """Without the words that fewer than a share ``floor`` of public faces have: a rare word names its owner.

    The rarest goes first; its faces go to the nearest words that are left. Then every word is the mean of its
    faces.

    Args:
        codebook: learnt.
        statistics: of public faces ``(N, A)``.
        floor: in [0, 1).
    """
    p, words, weights = statistics.double().cpu(), codebook.codewords.cpu(), codebook.weights.cpu()
    answers = codebook.answers
    while True:
        cell = divergence(p, words, weights, answers).argmin(1)
        counts = torch.bincount(cell, minlength=len(words)).double()
        if len(words) == 1 or float(counts.min()) >= floor * len(p):
            return Codebook(words, weights, answers)
        while counts.isfinite().sum() > 1 and float(counts.min()) < floor * len(p):
            gone = int(counts.argmin())
            counts[gone] = math.inf
            rows = (cell == gone).nonzero()[:, 0]
            if len(rows):
                far = divergence(p[rows], words, weights, answers)
                far[:, counts.isinf()] = math.inf
                cell[rows] = far.argmin(1)
                counts += torch.bincount(cell[rows], minlength=len(words))
        words = _means(p, cell, words)[0][counts.isfinite()]


class Quantiser(nn.Module):
    """Each output by itself in ``L`` levels: a product of scalar quantisers, ``M = L ** A`` messages.

    Args:
        edges: where an output's levels are parted, statistics ``(A, L - 1)``, ascending.
        codewords: what each message says, ``(M, A)``; the first output's level changes last.
        answers: what outputs mean.
    """

    codewords: Tensor

    def __init__(self, edges: Tensor, codewords: Tensor, answers: Answers = ATTRIBUTES) -> None:
        super().__init__()
        self.answers = answers
        self.edges, self.codewords = nn.Buffer(edges.double()), nn.Buffer(codewords.double())

    def forward(self, answers: Tensor) -> Tensor:
        """Outputs ``(N, A)`` -> messages ``(N,)``."""
        level = (self.answers.statistic(answers.double())[:, :, None] > self.edges).sum(2)
        found, levels = torch.zeros_like(level[:, 0]), self.edges.shape[1] + 1
        for one in level.unbind(1):
            found = found * levels + one
        return found


def learn_quantiser(statistics: Tensor, levels: int, answers: Answers = ATTRIBUTES) -> Quantiser:
    """Levels of equal shares of the public faces; each says its faces' mean.

    Args:
        statistics: of public faces ``(N, A)``.
        levels: L.
        answers: what outputs mean.

    Raises:
        UserError: L is below 2, or there are more than 2 ** 20 messages.
    """
    p, attributes = statistics.double().cpu(), statistics.shape[1]
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
    return Quantiser(edges, answers.settled(means[torch.arange(attributes), grid]), answers)


def learn_messages(
    statistics: Tensor, bits: int, levels: int | None, floor: float, answers: Answers = ATTRIBUTES
) -> Codebook | Quantiser:
    """A codebook of at most ``2 ** bits`` words, rare ones merged, or ``levels`` of each output.

    Args:
        statistics: of public faces ``(N, A)``.
        bits: see `learn_codebook`.
        levels: see `learn_quantiser`; None: a codebook.
        floor: see `merged`.
        answers: what outputs mean.
    """
    p = statistics
    if levels is not None:
        return learn_quantiser(p, levels, answers)
    size, weights = min(2**bits, len(p)), answers.weights(p)
    return merged(learn_codebook(p, size, weights, answers=answers), p, floor)


def check_size(bits: int, levels: int | None, outputs: int, answers: Answers) -> None:
    """Refuses messages that cannot be: see `learn_messages`.

    Raises:
        UserError: there are too many, or levels of answers that do not stand by themselves.
    """
    if levels is not None and not answers.separate:
        raise UserError(
            f"levels are of answers each by itself, and {answers.served} are one: give bits "
            "(--model.init_args.levels null)"
        )
    if bits > 20 or levels == 1 or (levels or 0) ** outputs > 2**20:
        raise UserError(
            f"bits {bits}, levels {levels}: give 2 levels or more, and no more than 20 bits; a longer "
            "message protects nobody (--model.init_args.bits, levels)"
        )
