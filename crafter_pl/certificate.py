"""From the bits of a channel to what anybody can do with its messages: bounds, the sample's ceiling.

The bounds follow from `Channel.factor`, K. They are averages over people: who has a rare message may be named
by it, see `pointwise`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Certificate:
    """What a channel lets through, and what follows.

    Attributes:
        bits: ``log2 K`` of one picture's message.
        epsilon: of randomised response; None: there is none.
    """

    bits: float
    epsilon: float | None = None

    def naming(self, people: float, guesses: int = 1, pictures: int = 1) -> float:
        """Success of naming somebody, on average, among so many equally likely ones: ``min(1, K^k L / N)``.

        Args:
            people: N, at least 1.
            guesses: L, a list of them; a worst case over attacks and judges is one.
            pictures: k of one person, chosen adaptively, each with fresh coins.
        """
        return self.gained(guesses / people, pictures)

    def gained(self, blind: float, pictures: int = 1) -> float:
        """Any success whose best blind rate is known, such as rebuilding closer than a threshold.

        Args:
            blind: the best rate without the message, in [0, 1]: of naming the largest share of one person.
            pictures: k.
        """
        if blind <= 0:
            return 0.0
        return min(1.0, 2 ** min(0.0, math.log2(blind) + self.bits * pictures))

    def accepting(self, far: float) -> float:
        """True accepts of any test of a message at a false accept rate: ``e^eps FAR``; 1 without epsilon."""
        return 1.0 if self.epsilon is None else min(1.0, math.exp(min(self.epsilon, 700)) * far)

    def linking(self, far: float) -> float:
        """True accepts of any test of two messages: ``e^(2 eps) FAR``; 1 without epsilon."""
        return 1.0 if self.epsilon is None else min(1.0, math.exp(min(2 * self.epsilon, 700)) * far)

    def pointwise(self, prior: float, frequency: float | None = None) -> float:
        """Posterior of one person after one message, not on average.

        Args:
            prior: of the person.
            frequency: public share of the message; None: unknown.

        Returns:
            ``min(1, p / P(m))`` where the frequency is known, and with randomised response
            ``p e^eps / (1 - p + p e^eps)`` at most; else 1.
        """
        found = 1.0 if not frequency else min(1.0, prior / frequency)
        if self.epsilon is None:
            return found
        odds = math.exp(min(self.epsilon, 700))
        return min(found, prior * odds / (1 - prior + prior * odds))


def ceiling(messages: Tensor, identity: Tensor, guesses: int = 1) -> float:
    """What nobody can exceed on these faces by their messages alone: each message names its commonest owners.

    ``sum_m max_s n(s, m) / n``; with a list of guesses the largest ``L`` counts of each message.

    Args:
        messages: ``(N,)`` int64.
        identity: whose they are, int64 ``(N,)``.
        guesses: L.
    """
    people, place = identity.unique(return_inverse=True)
    kinds, kind = messages.unique(return_inverse=True)
    counts = torch.bincount(kind * len(people) + place, minlength=len(kinds) * len(people))
    best = counts.view(len(kinds), len(people)).topk(min(guesses, len(people)), dim=1).values
    return float(best.sum()) / len(messages)


def chance_beyond(hits: int, tries: int, rate: float) -> float:
    """Probability of as many hits or more, each try by itself a hit, on average with at most this rate.

    The binomial tail; of tries with unequal rates of that mean it is an upper bound above the mean
    (Hoeffding 1956).

    Args:
        hits: seen.
        tries: of which.
        rate: in [0, 1].
    """
    if hits <= 0 or rate >= 1:
        return 1.0
    if rate <= 0:
        return 0.0
    logs = [
        math.lgamma(tries + 1) - math.lgamma(k + 1) - math.lgamma(tries - k + 1)
        + k * math.log(rate) + (tries - k) * math.log1p(-rate)
        for k in range(hits, tries + 1)
    ]  # fmt: skip
    top = max(logs)
    return min(1.0, math.exp(top) * math.fsum(math.exp(one - top) for one in logs))
