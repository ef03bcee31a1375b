"""The split of a data set into public and private people, and its hash.

Public people train the networks and the attacks; private people are protected and attacked. The two share
nobody. A private person's pictures are in two parts: `private_train` for the oracle only, `private_test` for
the audit.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import torch
from torch import Tensor

from crafter_pl.data.faces import Faces
from crafter_pl.data.pictures import shown
from crafter_pl.errors import UserError
from crafter_pl.files import write_file

PARTS = ("public_train", "public_val", "private_train", "private_test")
UNIONS = {
    "public": ("public_train", "public_val"),
    "all_private": ("private_train", "private_test"),
    "oracle": ("private_train", "public_train", "public_val"),
    "gallery": ("private_train",),  # what a suspect's pictures on the web are to whoever looks for a face
}
LABELLED = {"labelled_train": "public_train", "labelled_val": "public_val"}  # whose attributes are known
PUBLIC = {"public", *UNIONS["public"], *LABELLED}

Splits = dict[str, Tensor]


def check_several(people: int, option: str) -> None:
    """Refuses so few people that telling them apart means nothing: whoever guesses is right.

    Args:
        people: how many there are.
        option: what sets that.

    Raises:
        UserError: there are fewer than two.
    """
    if people < 2:
        raise UserError(
            f"{people} {'person' if people == 1 else 'people'}: nobody can be told apart, and no such figure "
            f"means anything; give 2 at least, better 20 ({option})"
        )


def make_split(
    faces: Faces,
    private_people: int,
    min_private_images: int,
    test_images: int,
    public_val_fraction: float,
    seed: int,
) -> Splits:
    """Split a data set by identity.

    Private people are among those whose pictures are all labelled; of the others, too, a share of the public
    people is held out. Where the source says who is private, all of these are who have enough pictures, and
    the others are left out; of people without names each has one picture, in `private_test`. Who is private
    and which picture is for the test depend on the seed and names, not on the order of rows.

    Args:
        faces: the data set.
        private_people: how many people are private, chosen among those with enough pictures.
        min_private_images: the fewest pictures that a private person may have.
        test_images: how many pictures of each private person go to `private_test`; the others are for
            `private_train`.
        public_val_fraction: the share of public *people* held out for validation; at least one person.
        seed: of the choice.

    Returns:
        Rows of `faces`, int64, ascending, for each of `PARTS`.

    Raises:
        UserError: the data set has too few people for it, or the settings contradict each other.
    """
    given = faces.private is not None
    if not faces.named:
        min_private_images, test_images = 1, 1
    elif private_people < 1 or test_images < 1:
        raise UserError(
            f"private_people {private_people} and test_images {test_images} must both be at least 1 "
            "(--data.private_people, --data.test_images)"
        )
    if faces.named and min_private_images <= test_images:
        raise UserError(
            f"min_private_images {min_private_images} leaves nothing to train the oracle on after "
            f"{test_images} test pictures a person; raise --data.min_private_images or lower "
            "--data.test_images"
        )
    if not 0 < public_val_fraction < 1:
        raise UserError(
            f"public_val_fraction is {public_val_fraction}; give a number between 0 and 1, such as 0.1"
        )
    rows = _rows_of_people(faces)
    theirs = {p for p, own in rows.items() if faces.private is None or bool(faces.private[own[0]])}
    unknown = {person for person, own in rows.items() if not bool(faces.labelled[own].all())}
    fit = [p for p in rows if p in theirs and len(rows[p]) >= min_private_images and p not in unknown]
    private_people = max(len(fit), 1) if given else private_people
    others = len(rows) - (len(theirs) if given else private_people)
    if len(fit) < private_people or others < 2:
        most = max((len(own) for own in rows.values()), default=0)
        raise UserError(
            f"the split needs {private_people} private people with at least {min_private_images} pictures "
            f"each and two public people besides; of {len(rows)} people {len(fit)} qualify (most pictures of "
            f"one person: {most}). Lower --data.private_people or --data.min_private_images, or give more "
            "data"
        )
    fit.sort(key=lambda person: _draw(seed, "private", person))
    private = set(fit[:private_people])
    away = theirs if given else private
    public = sorted((p for p in rows if p not in away), key=lambda person: _draw(seed, "public", person))
    held_out: set[str] = set()
    for kind in ([p for p in public if p not in unknown], [p for p in public if p in unknown]):
        least = 5 if unknown else 1  # of a few labelled people among many others
        count = min(len(kind) - 1, max(least, math.floor(len(kind) * public_val_fraction + 0.5)))
        held_out |= set(kind[: max(count, 0)])

    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for person, own in rows.items():
        if person in private:
            dealt = sorted(own, key=lambda row: _draw(seed, "test", faces.file_names[row]))
            parts["private_test"] += dealt[:test_images]
            parts["private_train"] += dealt[test_images:]
        elif person not in away:
            parts["public_val" if person in held_out else "public_train"] += own
    splits = {part: torch.tensor(sorted(chosen), dtype=torch.long) for part, chosen in parts.items()}
    check_split(faces, splits)
    return splits


def rank_in_person(people: Tensor) -> Tensor:
    """For each picture of ``people`` ``(N,)`` how many of the same person stand before it."""
    order = people.argsort(stable=True)
    counts = people.unique(return_counts=True)[1]
    rank = torch.arange(len(people)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(rank).scatter_(0, order, rank)


def first_of_each(people: Tensor, count: int) -> Tensor:
    """Places of the first ``count`` pictures of every person in ``people`` ``(N,)``, ascending; 0: of all."""
    return (rank_in_person(people) < (count or len(people))).nonzero()[:, 0]


def _rows_of_people(faces: Faces) -> dict[str, list[int]]:
    """The rows of each person, by name."""
    order = torch.argsort(faces.identity, stable=True)
    groups = order.split(faces.identity.unique(return_counts=True)[1].tolist())
    return {name: rows.tolist() for name, rows in zip(faces.identity_names, groups, strict=True)}


def _draw(seed: int, purpose: str, name: str) -> bytes:
    """A sorting key that shuffles names, the same on every machine."""
    return hashlib.sha256(_bytes(f"{seed}\n{purpose}\n{name}")).digest()


def _bytes(text: str) -> bytes:
    """Names as the bytes they are."""
    return text.encode("utf-8", "surrogateescape")


def check_split(faces: Faces, splits: Splits) -> None:
    """Refuse a split that shares a person between public and private, or a picture between any two parts.

    Raises:
        UserError: an overlap, naming the parts and the first person or picture shared.
    """
    pictures = torch.cat([splits[part] for part in PARTS]).sort().values
    if len(twice := pictures[1:][pictures[1:] == pictures[:-1]]):
        raise UserError(
            f"the split holds picture {shown(faces.file_names[int(twice[0])])} twice; its parts must not "
            "overlap"
        )
    people = {part: set(faces.identity[splits[part]].tolist()) for part in PARTS}
    people["private"] = people.pop("private_train") | people.pop("private_test")
    for one, other in combinations(sorted(people), 2):
        if shared := people[one] & people[other]:
            raise UserError(
                f"the split has {len(shared)} people in both {one} and {other}, "
                f"{shown(faces.names()[min(shared)])} first; no person may be in two of them"
            )


def split_rows(faces: Faces, splits: Splits) -> list[tuple[str, str, str]]:
    """The split as sorted rows `(file name, person's name, part)`."""
    names, people = faces.names(), faces.identity.tolist()
    rows = sorted(
        (faces.file_names[row], names[people[row]], part) for part in PARTS for row in splits[part].tolist()
    )
    for one, other in pairwise(rows):
        if one[0] == other[0]:
            raise UserError(
                f"two pictures have the name {shown(one[0])}; file names must be unique in a data set"
            )
    return rows


def rows_hash(rows: Sequence[tuple[str, str, str]]) -> str:
    """SHA-256 over the rows of `split_rows`, or some of them: equal on every machine for the same split."""
    return hashlib.sha256(_bytes("".join(",".join(row) + "\n" for row in rows))).hexdigest()


def write_split_csv(path: str | Path, faces: Faces, splits: Splits) -> None:
    """Write the split as `file,person,part`, sorted, atomically."""
    rows = [("file", "person", "part"), *split_rows(faces, splits)]
    write_file(path, "".join(",".join(map(_quoted, row)) + "\n" for row in rows))


def _quoted(text: str) -> str:
    """A cell of a CSV; Python's own writer leaves a carriage return in a name as it is."""
    return '"' + text.replace('"', '""') + '"' if re.search('[",\r\n]', text) else text
