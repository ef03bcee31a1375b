"""The oracle that learns from reconstructions, and the heavy distortions."""

import pytest
import torch

from crafter_pl.attacks import BlackBox
from crafter_pl.audit.oracle import ReconstructionOracle, load_oracle
from crafter_pl.cli import main
from crafter_pl.errors import UserError
from crafter_pl.stages import IdentityOracle, load_stage
from crafter_pl.stages.augment import degrade, distort


@pytest.fixture(scope="module")
def oracle(tiny, tmp_path_factory):
    """Trained once, beside the tiny experiment."""
    runs = tmp_path_factory.mktemp("oracle")
    given = ["--model.init_args.black_box_ckpt", tiny.ckpt("black_box"), "--runs_dir", str(runs)]
    assert main([*tiny.command("fit", "oracle_reconstructions"), *given]) == 0
    return runs / "synthetic" / "oracle_reconstructions" / "checkpoints" / "best.ckpt"


def test_it_loads_as_an_oracle_without_the_decoder_in_its_weights(oracle, tiny):
    stage = load_oracle(oracle)
    assert isinstance(stage, ReconstructionOracle) and stage.hparams["backbone"] == "plain"
    assert stage.hparams["heavy"] is True and stage.hparams["reconstructed"] == 0.5
    assert not any("decoder" in name for name in torch.load(oracle, weights_only=True)["state_dict"])
    assert stage.logits(tiny.data().rows("private_test")["image"]).shape == (16, 4)
    assert type(load_oracle(tiny.ckpt("oracle_plain"))) is IdentityOracle
    with pytest.raises(UserError, match=r"GanPrior.*IdentityOracle"):
        load_oracle(tiny.ckpt("prior"))


def test_it_sees_a_share_of_reconstructions_and_the_other_pictures_as_they_are(oracle, tiny):
    stage, decoder = load_oracle(oracle), load_stage(tiny.ckpt("black_box"), BlackBox)
    images = tiny.data().rows("private_train")["image"]
    with torch.no_grad():
        made = decoder.reconstruct(decoder.encode(images))
    torch.manual_seed(0)
    shown = stage.shown(images)
    kept = (shown == images).flatten(1).all(1)
    assert torch.allclose(shown[~kept], made[~kept], atol=1e-6) and 0.2 < kept.float().mean() < 0.8
    for share, expected in ((0.0, images), (1.0, made)):
        stage.hparams["reconstructed"] = share
        assert torch.allclose(stage.shown(images), expected, atol=1e-6)


def test_it_refuses_what_does_not_fit(tiny, capsys):
    with pytest.raises(UserError, match=r"reconstructed 1\.5"):
        ReconstructionOracle(tiny.ckpt("black_box"), reconstructed=1.5)
    given = ["--model.init_args.black_box_ckpt", tiny.ckpt("black_box"), "--name", "other"]
    assert main([*tiny.command("fit", "oracle_reconstructions"), *given, "--data.image_size", "64"]) == 2
    assert "32 pixels" in capsys.readouterr().err


def test_heavy_distortion_is_heavier():
    coarse = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    moved = []
    for heavy in (False, True):
        torch.manual_seed(0)
        made = distort(images, heavy)
        assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1
        moved.append((made - images).square().mean())
    assert moved[1] > 1.1 * moved[0]
    torch.manual_seed(0)
    blurred = degrade(images, 1.0, factor=4, noise=0.0)
    torch.manual_seed(0)
    assert blurred.var() < degrade(images, 1.0, factor=2, noise=0.0).var() < images.var()
