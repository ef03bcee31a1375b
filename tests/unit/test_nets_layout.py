"""Features laid out as square maps and back, pictures resized, decoders of any side."""

import pytest
import torch

from crafter_pl.errors import UserError
from crafter_pl.nets import build_decoder
from crafter_pl.nets.layout import Layout, Resize, Undo


@pytest.mark.parametrize(
    ("given", "kind", "made"),
    [
        ((6, 4, 4), "map", (6, 4, 4)),
        ((4, 4, 6), "last", (6, 4, 4)),
        ((6,), "vector", (6, 1, 1)),
        ((9, 6), "tokens", (6, 3, 3)),
        ((10, 6), "tokens", (6, 4, 4)),
        ((14, 6), "tokens", (6, 4, 4)),
        ((15, 6), "tokens", (6, 4, 4)),
        ((1, 6), "tokens", (6, 1, 1)),
    ],
)
def test_layouts_are_undone_exactly(given, kind, made):
    features = torch.randn(3, *given)
    layout = Layout(given)
    laid = layout(features)
    assert layout.kind == kind and layout.shape == made and laid.shape == (3, *made)
    assert torch.equal(Undo(layout)(laid), features)
    assert laid.count_nonzero() == features.numel()  # moved, and nothing but zeros added
    if given == (10, 6):
        assert torch.equal(laid[:, :, :3, :3], features[:, 1:].transpose(1, 2).unflatten(2, (3, 3)))
        assert torch.equal(laid[:, :, 3, 0], features[:, 0])


@pytest.mark.parametrize("given", [(), (6, 4, 5), (2, 3, 4, 4)])
def test_what_cannot_be_laid_out(given):
    with pytest.raises(UserError):
        Layout(given)


def test_resizing_keeps_what_has_the_size_and_passes_gradients():
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert torch.equal(Resize(8)(images), images)
    Resize(20)(images).sum().backward()
    assert images.grad.min() > 0


@pytest.mark.parametrize(("side", "size"), [(7, 32), (1, 32), (15, 64), (56, 32), (8, 48), (64, 32)])
@pytest.mark.parametrize("kind", ["residual", "paper"])
def test_decoders_take_any_side(side, size, kind):
    features = torch.rand(2, 4, side, side, requires_grad=True)
    made = build_decoder(kind, (4, side, side), size, 64)(features)
    assert made.shape == (2, 3, size, size)
    made.sum().backward()
    assert (features.grad != 0).all()  # nothing of the feature is left out
