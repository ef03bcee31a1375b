import pytest
import torch
from white_box_lab import stage  # noqa: F401

from crafter_pl.attacks.adaptive_white_box import AdaptiveWhiteBox
from crafter_pl.errors import UserError

# Refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inversion_steps": -1}, "inversion_steps -1"),
        ({"inversion_steps": 0, "amortize": False}, "inversion_steps 0"),
        ({"attack_steps": -1}, "attack_steps -1"),
        ({"inversion_lr": 0.0}, "inversion_lr 0.0"),
        ({"loss": "l3"}, "loss 'l3'"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"val_pairs": 0}, "val_pairs 0"),
    ],
)
def test_settings_out_of_range(stage, settings, words):
    with pytest.raises(UserError, match=words):
        stage(**settings)


def test_an_amortizer_of_another_prior(tiny, tmp_path):
    content = torch.load(tiny.ckpt("prior"), weights_only=True)
    torch.save({**content, "epoch": 99}, tmp_path / "prior.ckpt")
    with pytest.raises(UserError, match=r"amortizer .*prior\.ckpt"):
        AdaptiveWhiteBox(tiny.ckpt("crafter"), str(tmp_path / "prior.ckpt"), tiny.ckpt("amortizer"))
