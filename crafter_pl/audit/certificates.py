"""What an audit says of a certified defence: a part of `schema`."""

from dataclasses import dataclass, field

from crafter_pl.audit.utility import AUC, NOUNS, needs_key
from crafter_pl.certificate import Certificate
from crafter_pl.metrics import Estimate

SHOWN = 6  # names in a sentence


@dataclass(frozen=True)
class Album:
    """What several pictures of one person give away together: measured, and at most.

    Attributes:
        named: people whom the best message attacker names by so many pictures.
        bits: that the accountant has charged.
        bound: of naming one of the audited people.
    """

    named: Estimate
    bits: float
    bound: float


@dataclass(frozen=True)
class RareMessage:
    """A message that few people have: it may name its owner, whatever holds on average.

    Attributes:
        share: of the public faces.
        faces, people: audited ones that have it.
        says: the needed attributes' or classes' probabilities, or the values; nothing of an embedding.
    """

    share: float
    faces: int
    people: int
    says: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CertificateResult:
    """What a certified defence's messages can give away, and do on these faces.

    Attributes:
        needs: the attributes, classes or values that are answered for.
        bits: ``log2 K`` of a picture's message.
        messages: how many there are.
        bounds: of naming one of so many equally likely people.
        needs_kept, needs_kept_unprotected: utility of the needed answers; in the JSON under its name.
        figure: key of that utility; None: the mean AUC.
        agreement: it is agreement with the unprotected model, see `Utility`.
        ceiling: what nobody exceeds on these faces by the messages alone, see `certificate.ceiling`.
        list_ceiling: the same with as many guesses as there are in the worst case, `guesses`.
        attackers: who see the messages alone, and have a gallery.
        albums: by the number of pictures.
        most_exposed: of the best attacker, its rate with the person whom it names most often.
        exposed: share of people whom it names in half of their pictures or more.
        groups: its rate by attribute and side, of those who have it and who have not.
        rare: the rarest messages.
        exceeded: who names significantly more than the ceiling, which something else than the message must
            have told.
    """

    needs: list[str]
    bits: float
    epsilon: float | None = None
    messages: int
    bounds: dict[str, float]
    needs_kept: Estimate
    needs_kept_unprotected: Estimate
    figure: str | None = None
    agreement: bool | None = None
    ceiling: float
    list_ceiling: float
    guesses: int
    attackers: dict[str, Estimate]
    albums: dict[str, Album]
    most_exposed: float
    exposed: float
    groups: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    rare: list[RareMessage] = field(default_factory=list)
    exceeded: list[str] = field(default_factory=list)

    def json_names(self) -> dict[str, str]:
        """What the JSON calls the utility."""
        ends = {"needs_kept": "", "needs_kept_unprotected": "_unprotected"}
        return {name: needs_key(self.figure, end) for name, end in ends.items()}

    @property
    def about(self) -> str:
        """The needs, or how many they are."""
        few = len(self.needs) <= SHOWN
        return ", ".join(self.needs) if few else f"{len(self.needs)} {NOUNS[self.figure or AUC]}"

    def bound(self, people: int) -> float:
        """Of naming somebody, on average, among so many equally likely ones."""
        return Certificate(self.bits).naming(people)

    @property
    def strongest(self) -> Estimate:
        """Of the message attackers."""
        return max(self.attackers.values(), key=lambda one: one.value)
