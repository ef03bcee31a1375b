"""Privacy: whom a recogniser names in a picture, and how alike it finds two of them."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from crafter_pl.metrics.collected import Collected

FAR = 0.01
_FIRST_TRY = 4  # times the false accepts: how many of the most similar impostor pairs are looked at first
CHUNK = 4_000_000  # weights held at once: resamples x pairs, about 32 MB in float64

Floats = NDArray[np.float64]


def topk_hits(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Say for each picture whether its person is among the ``k`` best guesses (the paper's Eval Acc).

    Args:
        logits: ``(N, P)``, one column a person.
        labels: ``(N,)`` int64 in ``[0, P)``.
        k: guesses allowed; more than ``P`` means all.

    Returns:
        ``(N,)`` bool.

    Raises:
        ValueError: on logits that are not finite (NaN would be sorted first, and count as a hit).
    """
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the oracle's logits are not finite; its input or its weights are broken")
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)


def worst_case_chance(named: Tensor, labels: Tensor, people: int) -> Tensor:
    """Worst-case rate if every reconstruction had been made from *another* person's picture, by picture.

    Several attacks and oracles have several guesses at each picture, so the worst case has a higher chance
    level than ``1 / people``. The mean over the pictures is the mean, over all permutations that give each
    picture another person's label, of the rate at which any guess names that label. Each other label is
    equally often a picture's, so it is exact and needs no sampling: picture ``i`` has
    ``|guesses_i without label_i| / (people - 1)``, where equal guesses count once.

    Args:
        named: ``(V, N)`` int64, the person that each of ``V`` attack-oracle pairs names; all in the same
            label space.
        labels: ``(N,)`` int64, the true person.
        people: how many labels there are.

    Returns:
        ``(N,)`` float64 in [0, 1].

    Raises:
        ValueError: with fewer than two people.
    """
    if people < 2:
        raise ValueError(f"a permutation needs at least 2 people, got {people}")
    guessed = torch.zeros(labels.shape[0], people, dtype=torch.bool)
    guessed.scatter_(1, named.T.contiguous(), True)
    guessed.scatter_(1, labels[:, None], False)
    return guessed.sum(dim=1).double() / (people - 1)


def identity_similarity(made: Tensor, originals: Tensor) -> Tensor:
    """Cosine of an oracle's embeddings of reconstruction and original: high where it sees the same person.

    The paper calls this "FSIM". It is *not* the image-quality index FSIM (feature similarity by phase
    congruency); the name says what it is here. As a metric it is torchmetrics' `CosineSimilarity`.

    Args:
        made: embeddings ``(N, E)``.
        originals: embeddings ``(N, E)``.

    Returns:
        ``(N,)`` in [-1, 1].
    """
    return torch.cosine_similarity(made, originals, dim=1)


def tar_at_far(
    scores: ArrayLike,
    identity: ArrayLike,
    far: float = FAR,
    weights: ArrayLike | None = None,
    enrolled: ArrayLike | None = None,
) -> Floats | None:
    """True accept rate at a fixed false accept rate, over all pairs of a reconstruction and an original.

    Would a face matcher take a reconstruction for another picture of the same person? A pair is genuine if
    the original is *another* picture of the same person, as a matcher would have it on file, and an impostor
    pair if it shows somebody else; a reconstruction with its own original is neither. The threshold is the
    lowest score above which at most ``far`` of the impostor pairs lie, so a matcher that sees nothing has a
    rate of about ``far``. With weights the threshold is set anew in each weighting, and a pair counts as the
    product of its people's weights.

    Args:
        scores: how alike every reconstruction is to every original, ``(N, N)``, in the same order.
        identity: ``(N,)``, whose pictures they are.
        far: the false accept rate, in (0, 1).
        weights: ``(B, P)`` of the people in ascending order; by default one weighting in which all count
            once.
        enrolled: ``(M,)``, if the columns are of other pictures than the rows, or of people: whose they are.

    Returns:
        ``(B,)`` in [0, 1], NaN where one person alone has weight; None if nobody has two pictures, or there
        is but one person.
    """
    people, group = np.unique(np.asarray(identity), return_inverse=True)
    drawn = np.ones((1, len(people))) if weights is None else np.asarray(weights, dtype=np.float64)
    scores, other = np.asarray(scores, dtype=np.float64), group
    if enrolled is not None:
        audited = np.isin(np.asarray(enrolled), people)
        scores, other = scores[:, audited], np.searchsorted(people, np.asarray(enrolled)[audited])
    same = group[:, None] == other[None, :]
    genuine = same if enrolled is not None else same & ~np.eye(len(group), dtype=bool)
    if not genuine.any() or same.all():
        return None
    first, second = np.nonzero(~same)
    rows, columns = (np.bincount(one, minlength=len(people)).astype(float) for one in (group, other))
    allowed = far * ((drawn @ rows) * (drawn @ columns) - drawn**2 @ (rows * columns))
    thresholds = _thresholds(scores[first, second], group[first], other[second], drawn, allowed, far)
    first, second = np.nonzero(genuine)
    order = np.argsort(scores[first, second])  # a person's pairs are counted by ranks, not pair by pair
    accepted, person = scores[first, second][order], group[first][order]
    step, rates = max(1, CHUNK // len(accepted)), np.full(len(drawn), np.nan)
    for start in range(0, len(drawn), step):
        rows = drawn[start : start + step]
        mass = np.zeros((len(rows), len(accepted) + 1))
        np.cumsum(rows[:, person], axis=1, out=mass[:, 1:])
        below = np.searchsorted(accepted, thresholds[start : start + step], side="right")
        with np.errstate(invalid="ignore", divide="ignore"):
            rates[start : start + step] = 1 - mass[np.arange(len(rows)), below] / mass[:, -1]
    rates[np.isnan(thresholds)] = np.nan
    return rates


def _thresholds(
    scores: Floats,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    weights: Floats,
    allowed: Floats,
    far: float,
) -> Floats:
    """The threshold of every weighting ``(B,)``; NaN where one person alone has weight.

    Only the most similar pairs decide: so few are looked at first, and more where those do not reach. Of the
    impostor pairs a weight of ``allowed`` ``(B,)`` may lie above it.
    """
    kept, found = min(len(scores), int(_FIRST_TRY * far * len(scores)) + 1), np.full(len(weights), np.nan)
    todo = np.arange(len(weights))
    while len(todo):
        top = np.argpartition(-scores, kept - 1)[:kept]
        top = top[np.argsort(-scores[top], kind="stable")]
        step, late = max(1, CHUNK // kept), []
        for start in range(0, len(todo), step):
            rows = todo[start : start + step]
            mass = np.cumsum(weights[rows][:, first[top]] * weights[rows][:, second[top]], axis=1)
            above = (mass <= allowed[rows, None] * (1 + 1e-9)).sum(axis=1)
            reached = above < kept
            found[rows[reached]] = scores[top][above[reached]]
            late.append(rows[~reached])
        if kept == len(scores):
            break  # no impostor pair of the others has any weight
        todo, kept = np.concatenate(late), min(len(scores), 4 * kept)
    return found


def person_means(values: Tensor, identity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each person's mean of values ``(N, D)``.

    Returns:
        The people ``(P,)``, ascending; the place of each value's person among them ``(N,)``; the means
        ``(P, D)``.
    """
    people, place = identity.unique(return_inverse=True)
    total = values.new_zeros(len(people), values.shape[1]).index_add_(0, place, values)
    return people, place, total / torch.bincount(place)[:, None]


def log_odds(scores: Tensor) -> Tensor:
    """Each person's log-odds against all others, of log-likelihoods ``(N, P)``, ``P`` at least 2; float64."""
    scores = scores.double()
    total = scores.logsumexp(1, keepdim=True)
    others = total + torch.log1p(-(scores - total).exp().clamp(max=0.5))
    top = scores.argmax(1, keepdim=True)  # its difference from the total may be lost to rounding
    rest = scores.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    return scores - others.scatter(1, top, rest)


def accepted(scores: ArrayLike, identity: ArrayLike, threshold: float) -> tuple[Floats, Floats]:
    """How often a matcher with a threshold of its own takes a reconstruction for another original's person.

    Args:
        scores: as of `tar_at_far`.
        identity: ``(N,)``, whose pictures they are.
        threshold: above which two pictures count as one person's.

    Returns:
        For each picture ``(N,)`` the share of the person's other originals, and of other people's, that are
        above; NaN where there are none.
    """
    people = np.asarray(identity)
    same, above = people[:, None] == people[None, :], np.asarray(scores) > threshold
    kinds = (same & ~np.eye(len(people), dtype=bool), ~same)
    with np.errstate(invalid="ignore"):
        genuine, impostor = ((above & kind).sum(1) / kind.sum(1) for kind in kinds)
    return genuine, impostor


def equal_error_rate(
    scores: ArrayLike, identity: ArrayLike, weights: ArrayLike | None = None
) -> Floats | None:
    """The rate at which a matcher's threshold errs alike on pairs of one person and of two people.

    Args:
        scores: how alike each two features are, ``(N, N)``.
        identity: ``(N,)``, whose they are.
        weights: as of `tar_at_far`.

    Returns:
        ``(B,)`` in [0, 1], 0.5 for a matcher that sees nothing; NaN where one person alone has weight; None
        if nobody has two features, or there is but one person. Thresholds are looked at between up to 500
        quantiles of the scores of pairs of one person.
    """
    people, group = np.unique(np.asarray(identity), return_inverse=True)
    drawn = np.ones((1, len(people))) if weights is None else np.asarray(weights, dtype=np.float64)
    scores = np.asarray(scores, dtype=np.float64)
    same, count = group[:, None] == group[None, :], len(people)
    genuine = same & ~np.eye(len(group), dtype=bool)
    if not genuine.any() or same.all():
        return None
    found = np.unique(scores[genuine])
    edges = found if len(found) <= 500 else np.quantile(found, np.linspace(0, 1, 500))
    edges = np.concatenate([[np.nextafter(edges[0], -np.inf)], edges])  # below all: nobody is refused
    place = np.searchsorted(edges, scores, side="left")  # how many edges are below
    cell = (group[:, None] * count + group[None, :]) * (len(edges) + 1) + place
    shape = (count, count, len(edges) + 1)
    counts = [np.bincount(cell[kind], minlength=np.prod(shape)).reshape(shape) for kind in (genuine, ~same)]
    own = np.diagonal(counts[0]).T.astype(float)  # (P, T)
    refused = drawn @ own.cumsum(1)
    accepted = np.einsum("bp,pqt,bq->bt", drawn, counts[1].astype(float), drawn, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        frr = refused / refused[:, -1:]
        far = 1 - accepted.cumsum(1) / accepted.sum(1, keepdims=True)
    gap = np.abs(frr - far)
    rows, best = np.arange(len(drawn)), np.argmin(np.where(np.isnan(gap), np.inf, gap), axis=1)
    return (frr[rows, best] + far[rows, best]) / 2


class TarAtFar(Collected):
    """`tar_at_far` over all pictures seen; NaN where there is no pair to compare."""

    parts = ("made", "originals", "identity")  # (N, E), (N, E), (N,)

    def compute(self) -> Tensor:
        """Scalar in [0, 1], float32."""
        made, originals, identity = self.seen
        found = tar_at_far((made @ originals.T).double(), identity)
        return torch.tensor(np.nan if found is None else found[0], dtype=torch.float32)
