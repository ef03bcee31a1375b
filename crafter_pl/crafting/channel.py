"""A channel from a face to a message of a few bits: what a certified defence lets through.

The answers ``a`` that a service needs, outputs of a classifier, become a message from a finite set: the
number of a codeword, and behind it randomised response. What the message can give away has a bound that
holds against everybody, see `Channel.factor`.
"""

import math

import torch
from torch import Tensor, nn

from crafter_pl.crafting.codebook import Codebook, Quantiser
from crafter_pl.errors import UserError


class Channel(nn.Module):
    """``P(m | a)``: a message, and behind it randomised response over all ``M`` messages.

    Args:
        messages: the deterministic map.
        epsilon: the message is kept with probability ``e^eps / (e^eps + M - 1)``, else any other one takes
            its place, uniformly; None: it is always kept.

    Raises:
        UserError: epsilon is not above 0.
    """

    def __init__(self, messages: Codebook | Quantiser, epsilon: float | None = None) -> None:
        super().__init__()
        if epsilon is not None and not 0 < epsilon < math.inf:
            raise UserError(f"epsilon is {epsilon}; give a number above 0; without one nothing is tossed")
        self.messages, self.epsilon = messages, epsilon

    @property
    def size(self) -> int:
        """How many messages there are, M."""
        return len(self.messages.codewords)

    @property
    def kept(self) -> float:
        """With what probability a message is kept."""
        if self.epsilon is None:
            return 1.0
        return 1 / (1 + (self.size - 1) * math.exp(-self.epsilon))

    @property
    def factor(self) -> float:
        """``K = sum_m sup_a P(m | a)``: how many times more than blindly anybody can gain, at most.

        Claim. For every prior over pictures and people, every non-negative gain ``g(guess, secret)`` and
        every attacker who sees what is made of the message by means that do not know the picture,
        ``F = T(m, z)``, even together with ``z``: the expected gain is at most K times the best without
        ``F``.

        Proof. ``m`` tells at least as much as ``F``: ``X -> m -> (F, z)`` with ``z`` independent of both. Of
        an attacker who guesses ``w(m)`` the gain is ``sum_m sum_s p(s) P(m | s) g(w(m), s)``, where
        ``P(m | s) = E[P(m | a(X)) | s] <= sup_a P(m | a)``. So it is at most
        ``sum_m sup_a P(m | a) sum_s p(s) g(w(m), s) <= K max_w sum_s p(s) g(w, s)``. QED

        ``log2 K`` is the min-capacity (Smith 2009), the multiplicative Bayes capacity (Alvim et al. 2012),
        and maximal leakage (Issa, Wagner and Kamath 2020). Without randomised response K is M, the number of
        messages; with it ``M e^eps / (e^eps + M - 1)``, which is at most ``e^eps``. It is an upper bound
        where some message is never chosen.
        """
        return self.size * self.kept

    @property
    def bits(self) -> float:
        """``log2 K``."""
        return max(0.0, math.log2(self.factor))

    def probabilities(self, answers: Tensor) -> Tensor:
        """``P(m | a)`` of outputs ``(N, A)``: ``(N, M)``, float64."""
        others = (1 - self.kept) / max(self.size - 1, 1)
        made = answers.new_full((len(answers), self.size), others, dtype=torch.float64)
        return made.scatter_(1, self.messages(answers)[:, None], self.kept)

    def forward(self, answers: Tensor, coins: Tensor) -> Tensor:
        """Outputs ``(N, A)`` -> messages ``(N,)``, int64.

        Args:
            answers: of one picture each.
            coins: uniform in [0, 1), float64 ``(N,)``, fresh for each picture and known to nobody.
        """
        message = self.messages(answers)
        if self.epsilon is None or self.size == 1:
            return message
        other = ((coins - self.kept) / (1 - self.kept) * (self.size - 1)).long().clamp(0, self.size - 2)
        other = other + (other >= message).long()  # any but the message
        return torch.where(coins < self.kept, message, other)
