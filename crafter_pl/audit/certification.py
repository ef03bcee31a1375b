"""What a certified defence's messages give away on the audited faces, beside what they can at most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crafter_pl.answers import Answers
from crafter_pl.attacks.message import message_attackers
from crafter_pl.attacks.reader import Gallery
from crafter_pl.audit.certificates import Album, CertificateResult, RareMessage
from crafter_pl.audit.features import Loaded
from crafter_pl.audit.sides import MIN_PEOPLE, SIDES
from crafter_pl.audit.utility import AUC
from crafter_pl.audit.yardstick import Yardstick
from crafter_pl.certificate import Certificate, ceiling, chance_beyond
from crafter_pl.data.split import rank_in_person
from crafter_pl.defenses.certified import Certified, CertifiedOptions
from crafter_pl.device import one_thread
from crafter_pl.errors import UserError
from crafter_pl.metrics import Estimate, IdentityBootstrap, person_means

PEOPLE = (3, 100, 10_000, 1_000_000)
ALBUMS = (1, 2, 3, 10)
RARE = 5
UNLIKELY = 0.001  # that some rate is above the ceiling by luck, over all tries


@dataclass(frozen=True)
class Messages:
    """The messages of the audited pictures, and what attackers make of them.

    Attributes:
        defense: that sent them.
        certificate: of its channel, with the options in force.
        sent: ``(N,)`` int64.
        scores: of each message attacker, ``(N, P)``, people in ascending order.
        people: the gallery's, ``(P,)``.
    """

    defense: Certified
    certificate: Certificate
    sent: Tensor
    scores: dict[str, Tensor]
    people: Tensor

    def named(self, attacker: str) -> Tensor:
        """Whom it names, identities ``(N,)``."""
        return self.people[self.scores[attacker].argmax(1)]


def read_messages(loaded: Loaded, gallery: Gallery, rows: Mapping[str, Tensor]) -> Messages | None:
    """Of a set of features; None: no certified defence has made them, or it is not at hand.

    Raises:
        UserError: a feature is none that it sends, or there are several queries of a face, with coins.
    """
    target = loaded.target
    if target is None or not isinstance(target.defense, Certified):
        return None
    defense, options = target.defense, target.options
    assert isinstance(options, CertifiedOptions)
    if options.epsilon is not None and len(loaded.queries) > 1:
        raise UserError(
            f"{loaded.about.store} and others are several queries of the same faces, each with coins of its "
            "own: their bits add up, and a device never sends two; audit them one at a time"
        )
    channel, answer = defense.channel(options).cpu(), defense.answering()
    sent = _sent(loaded, defense, options, rows)
    with torch.no_grad(), one_thread():
        answers = torch.cat([answer(part.to(defense.device)).cpu() for part in gallery.images.split(1)])
    attackers = message_attackers(channel, answers, gallery.identity, defense.shares.cpu().double())
    scores = {name: score(sent) for name, score in attackers.items()}
    return Messages(defense, defense.certificate(options), sent, scores, gallery.people)


def _sent(
    loaded: Loaded, defense: Certified, options: CertifiedOptions, rows: Mapping[str, Tensor]
) -> Tensor:
    """Of a pool's features as they can be read; else of the pictures, by the store's own keyed coins."""
    settings = loaded.about.settings
    if options.way == "pool":
        return defense.read(loaded.queries[0], options)
    if settings.get("draws") != "keyed" or "seed" not in settings:
        raise UserError(f"{loaded.about.store}: without its seed nobody knows what was sent, but for a pool")
    keyed = replace(options, seed=settings["seed"])
    coins, _ = defense.draw(rows["index"], keyed)
    return defense.messages(rows["image"].to(defense.device), coins, keyed).cpu()


def certify(
    messages: Messages,
    rows: Mapping[str, Tensor],
    names: Sequence[str],
    boot: IdentityBootstrap,
    scores: Tensor,
    plain: Tensor,
    yardstick: Yardstick,
    named: Mapping[str, Tensor],
    groups: Sequence[str] = (),
) -> CertificateResult:
    """All figures of the certificate of one set of features.

    Args:
        messages: of the audited pictures.
        rows: the pictures' ``identity`` and ``attributes``.
        names: of these.
        boot: resamples of people.
        scores: the cloud's answers to the features ``(N, A)``.
        plain: to unprotected ones.
        yardstick: what it should answer.
        named: whom each attack with each judge, and each reader, names: identities ``(N,)`` by what did; the
            message attackers are added.
        groups: attributes.
    """
    certificate, identity, sent = messages.certificate, rows["identity"], messages.sent
    own = {name: messages.named(name) for name in messages.scores}
    every = {**named, **{f"message attacker {name}": one for name, one in own.items()}}
    top, several = ceiling(sent, identity), ceiling(sent, identity, len(every))
    tries = {name: (int((one == identity).sum()), top) for name, one in every.items()}
    listed = torch.stack([one == identity for one in every.values()]).any(0)
    tries["all together"] = (int(listed.sum()), several)
    hits = {name: (one == identity).double() for name, one in own.items()}
    best = max(hits, key=lambda name: float(hits[name].mean()))
    by_person = person_means(hits[best][:, None], identity)[2]
    columns = messages.defense.columns
    needed = yardstick.part(columns)
    answers, main = needed.answers, needed.answers.main
    found = [needed.figures(boot, one).figures.get(main) for one in (scores, plain)]
    kept, clean = (Estimate(0, 0, 0) if one is None else one.estimate() for one in found)
    return CertificateResult(
        needs=messages.defense.answered,
        bits=certificate.bits,
        epsilon=certificate.epsilon,
        messages=len(messages.defense.codewords),
        bounds={str(people): certificate.naming(people) for people in PEOPLE},
        needs_kept=kept,
        needs_kept_unprotected=clean,
        figure=None if main == AUC else main,
        agreement=yardstick.agreement or None,
        ceiling=top,
        list_ceiling=several,
        guesses=len(every),
        attackers={name: boot.mean(one).estimate() for name, one in hits.items()},
        albums=_albums(messages, best, identity, boot),
        most_exposed=float(by_person.max()),
        exposed=float((by_person >= 0.5).double().mean()),
        groups={name: _sides(hits[best], rows, names.index(name), boot) for name in groups},
        rare=_rare(messages, identity, answers),
        exceeded=[
            name
            for name, (count, rate) in tries.items()
            if chance_beyond(count, len(identity), rate) < UNLIKELY / len(tries)
        ],
    )


def _albums(messages: Messages, attacker: str, identity: Tensor, boot: IdentityBootstrap) -> dict[str, Album]:
    """Several pictures of one person together: their scores are summed."""
    order = rank_in_person(identity)
    scores, found = messages.scores[attacker].double(), {}
    for count in ALBUMS:
        album = identity * (int(order.max()) + 1) + order // count
        _, place, sizes = album.unique(return_inverse=True, return_counts=True)
        whole = sizes[place] == count
        if not bool(whole.any()):
            continue
        total = torch.zeros(len(sizes), scores.shape[1]).double().index_add_(0, place, scores)
        hits = (messages.people[total.argmax(1)][place] == identity).double()
        found[str(count)] = Album(
            boot.part(whole.numpy()).mean(hits[whole]).estimate(),
            messages.certificate.bits * count,
            messages.certificate.naming(len(messages.people), pictures=count),
        )
    return found


def _sides(
    hits: Tensor, rows: Mapping[str, Tensor], column: int, boot: IdentityBootstrap
) -> dict[str, Estimate]:
    has, found = rows["attributes"][:, column] > 0.5, {}
    for side, mask in zip(SIDES, (has, ~has), strict=True):
        if len(rows["identity"][mask].unique()) >= MIN_PEOPLE:
            found[side] = boot.part(mask.numpy()).mean(hits[mask]).estimate()
    return found


def _rare(messages: Messages, identity: Tensor, answers: Answers) -> list[RareMessage]:
    """Those of the fewest public faces first, among the messages that somebody here has."""
    defense, shares = messages.defense, messages.defense.shares.cpu()
    told = answers.told(defense.codewords)
    present = messages.sent.unique()
    order = present[shares[present].argsort()][:RARE]
    return [
        RareMessage(
            float(shares[one]),
            int((messages.sent == one).sum()),
            len(identity[messages.sent == one].unique()),
            dict(zip(defense.answered, told[one].tolist(), strict=True)) if answers.labelled else {},
        )
        for one in order.tolist()
    ]
