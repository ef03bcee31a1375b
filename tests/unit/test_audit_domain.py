"""Which gallery a recogniser knows people by is decided on public people."""

from types import SimpleNamespace

import pytest
import torch

from crafter_pl.attacks import Gallery
from crafter_pl.audit import domain
from crafter_pl.audit.domain import Domain
from crafter_pl.judges import GalleryJudge

COLOURS = torch.tensor([[0.1, 0.2, 0.9], [0.8, 0.7, 0.3], [0.4, 0.1, 0.2], [0.2, 0.9, 0.6]])
MEAN = SimpleNamespace(
    name="mean",
    threshold=None,
    checkpoint="",
    sha256="",
    settings=dict,
    similarity=lambda a, b: -torch.cdist(a, b),
)


def faces(people: list[int]) -> Gallery:
    """Three pictures of each of some people, nearly of one colour."""
    identity = torch.tensor(people).repeat_interleave(3)
    noise = 0.02 * torch.rand(len(identity), 3, 1, 1, generator=torch.Generator().manual_seed(0))
    images = COLOURS[identity][:, :, None, None].expand(-1, -1, 4, 4) + noise
    return Gallery(images, identity, torch.empty(0))


@pytest.mark.parametrize(("drawn", "expected"), [(lambda x: x, "originals"), (lambda x: 1 - x, "drawn")])
def test_the_gallery_that_names_more_public_people_counts(drawn, expected, monkeypatch):
    monkeypatch.setattr(domain, "FEWEST", 2)
    suspects, held_out = faces([0, 1]), faces([2, 3])
    pictures = drawn(torch.cat([suspects.images, held_out.images]))
    judge = GalleryJudge(MEAN, suspects.images.mean((2, 3)), suspects.identity)
    oracle = SimpleNamespace(name="oracle")
    panel = SimpleNamespace(
        judges={"mean": judge, "oracle": oracle}, embedded=lambda judge, images: images.mean((2, 3))
    )
    judges, chosen = Domain(suspects, held_out, SimpleNamespace(pictures=lambda: pictures)).judges(panel)
    assert chosen == {"mean": expected} and judges[1] is oracle
    monkeypatch.setattr(domain, "FEWEST", 3)
    few = Domain(suspects, held_out, SimpleNamespace(pictures=lambda: pictures)).judges(panel)
    assert few == ([judge, oracle], {"mean": "originals"}), "two people decide nothing"
    named = judges[0].scores(pictures[:6].mean((2, 3))).argmax(1)
    assert judges[0].identities[named].tolist() == suspects.identity.tolist()
