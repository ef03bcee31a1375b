import re

import pytest
import torch
from black_box_lab import fit
from rounds import ROUNDS, WHOLE
from torch.nn import functional as F

from crafter_pl.attacks.adaptive_black_box import AdaptiveBlackBox
from crafter_pl.cli import main
from crafter_pl.errors import UserError
from crafter_pl.stages import sha256


def test_losses(tiny):
    """Against their formulas; the clean share replaces features, never pictures."""
    data = tiny.data().dataset("public_train").take(tiny.data().dataset("public_train").index[:6])
    upstream = {"defense_ckpt": tiny.ckpt("crafter"), **tiny.upstream("black_box")}
    crafted = torch.randn(6, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    for loss, weight, share in (("l2", 0.0, 0.0), ("l1", 0.5, 0.0), ("l1", 0.0, 1.0)):
        stage = AdaptiveBlackBox(**upstream, loss=loss, feature_weight=weight, clean_share=share).eval()
        stage.log = lambda *_, **__: None
        stage._trainer = type("T", (), {"current_epoch": 0})()
        made = stage.training_step({**data, "features": crafted}, 0)
        edge = stage.defense.edge_module()
        with torch.no_grad():
            features = edge(data["image"]) if share else crafted
            decoded = stage.reconstruct(features)
            expected = (F.mse_loss if loss == "l2" else F.l1_loss)(decoded, data["image"])
            expected = expected + weight * F.mse_loss(edge(decoded), edge(data["image"]))
        assert made.item() == pytest.approx(expected.item(), rel=1e-5)
        made.backward()
        assert all(p.grad is not None for p in stage.net.parameters())
        assert all(p.grad is None for p in stage.defense.parameters())


def test_the_learning_rate_rises_and_falls_once_a_round(tiny, monkeypatch):
    seen = []
    step = AdaptiveBlackBox.training_step

    def watched(self, batch, batch_idx):
        seen.append(self.optimizers().param_groups[0]["lr"])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(AdaptiveBlackBox, "training_step", watched)
    more = ["--model.init_args.batch_size", "2", "--model.init_args.lr", "0.002"]
    assert main(fit(tiny, "rates", *ROUNDS, *WHOLE, *more)) == 0
    first, second = seen[:16], seen[16:]  # two epochs of 8 steps, then two of 16
    assert len(second) == 32
    for rates in (first, second):
        assert rates[0] < 0.0002 and rates[-1] < 0.0002
        assert max(rates) == pytest.approx(0.002, rel=0.05) and rates.index(max(rates)) < len(rates) / 4


# Refusals


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--trainer.max_epochs", "3"],
            "max_epochs 3",
        ),
        (
            ["--model.init_args.pairs_per_round", "99"],
            "198 pairs",
        ),
        (["--model.init_args.val_pairs", "999"], "999 queries"),
        (["--model.init_args.loss", "l3"], "loss l3"),
        (
            ["--model.init_args.clean_share", "2"],
            "clean_share 2",
        ),
        (
            ["--model.init_args.val_pairs", "0"],
            "val_pairs 0",
        ),
        (["--model.init_args.critic", "absent"], "critic 'absent'|critic absent"),
    ],
)
def test_settings_out_of_range(tiny, more, words, capsys):
    assert main(fit(tiny, "refused", *ROUNDS, *more)) == 2
    assert re.search(words, capsys.readouterr().err)


def test_a_decoder_of_another_task_model(tiny, tmp_path):
    content = torch.load(tiny.ckpt("task"), weights_only=True)
    other = tmp_path / "task.ckpt"
    torch.save({**content, "epoch": 99}, other)
    decoder = torch.load(tiny.ckpt("black_box"), weights_only=True)
    decoder["upstream"]["task"] = [str(other), sha256(other)]
    decoder["hyper_parameters"]["task_ckpt"] = str(other)
    torch.save(decoder, tmp_path / "black_box.ckpt")
    with pytest.raises(UserError, match=r"task\.ckpt"):
        AdaptiveBlackBox(tiny.ckpt("crafter"), str(tmp_path / "black_box.ckpt"))
    with pytest.raises(UserError, match="BlackBox"):
        AdaptiveBlackBox(tiny.ckpt("black_box"), tiny.ckpt("black_box"))


def test_upstream_stages_say_where_they_are(tiny):
    """A defence crafts on its own device, which it must know when it is upstream of another stage."""
    stage = AdaptiveBlackBox(tiny.ckpt("crafter"), tiny.ckpt("black_box"))
    assert stage.defense.device == torch.device("cpu")
    stage.to("meta")
    assert stage.defense.device == stage.defense.task.device == torch.device("meta")
