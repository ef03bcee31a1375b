"""Who is named by messages alone: attackers who see what a certified defence lets through, and no more.

They know the channel, and have other pictures of the people, whose answers they compute as the edge does. All
of them score ``(N, P)``, the higher the likelier.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.attacks.gallery_lda import Discriminant
from crafter_pl.crafting.channel import Channel
from crafter_pl.crafting.codebook import divergence
from crafter_pl.metrics import person_means

Scores = Callable[[Tensor], Tensor]  # messages (N,) -> (N, P)


def bayes(channel: Channel, answers: Tensor, identity: Tensor, shares: Tensor, weight: float = 1.0) -> Scores:
    """Log-likelihoods of messages: a person's frequencies in the gallery, smoothed by the public's.

    Args:
        channel: the defence's.
        answers: outputs for the gallery's pictures ``(G, S)``.
        identity: whose they are, ``(G,)``.
        shares: of public faces that have each message, ``(M,)``.
        weight: of the public's shares, in pictures.
    """
    people, place, means = person_means(channel.probabilities(answers), identity)
    counts = torch.bincount(place, minlength=len(people))[:, None]
    others = (1 - channel.kept) / max(channel.size - 1, 1)
    public = channel.kept * shares + others * (1 - shares)
    found = ((means * counts + weight * public) / (counts + weight)).clamp(min=1e-12).log()
    return lambda messages: found.T[messages]


def by_codeword(channel: Channel, answers: Tensor, identity: Tensor) -> Scores:
    """How near what a message says is to a person's mean answers (`divergence`)."""
    words, kind = channel.messages.codewords, channel.messages.answers
    means = person_means(kind.statistic(answers.double()), identity)[2]
    found = -divergence(means, words, answers=kind)
    return lambda messages: found.T[messages]


def by_discriminant(channel: Channel, answers: Tensor, identity: Tensor) -> Scores:
    """Linear discriminant analysis on the gallery's answers, applied to what a message says."""
    kind = channel.messages.answers
    lda = Discriminant(kind.natural(answers), identity, answers.shape[1], 0.1)
    found = lda(kind.natural_at(channel.messages.codewords))
    return lambda messages: found[messages]


def learnt(channel: Channel, answers: Tensor, identity: Tensor, decay: float = 1e-3) -> Scores:
    """Multinomial logistic regression on the messages of the gallery's pictures, by L-BFGS."""
    people, place = identity.unique(return_inverse=True)
    seen = channel.probabilities(answers).double()
    net = nn.Linear(channel.size, len(people)).double()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(seen), place) + decay * net.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    found = (net.weight.T + net.bias).detach()
    return lambda messages: found[messages]


def message_attackers(
    channel: Channel, answers: Tensor, identity: Tensor, shares: Tensor
) -> dict[str, Scores]:
    """All of them by name; see `bayes` for the arguments. Columns are people in ascending order."""
    return {
        "bayes": bayes(channel, answers, identity, shares),
        "codeword": by_codeword(channel, answers, identity),
        "discriminant": by_discriminant(channel, answers, identity),
        "regression": learnt(channel, answers, identity),
    }
